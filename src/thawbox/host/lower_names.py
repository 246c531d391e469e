"""Hard links of which an overlay shows what lies nowhere in its writable layer.

With `index=on` a file of a lower layer that has several names stays one file when it is changed through one of them:
it is copied up under that name alone, and the other names show the copy too. A copy of the writable layer has only the
one name; under the others its reader would find the old file of the lower layer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass

from thawbox.host.tree_copies import open_below

_NLINK = "trusted.overlay.nlink"


@dataclass(frozen=True, slots=True)
class OverlayView:
    """An overlay as its programs see it: a path to its mountpoint, its lower directories, and where its index lies."""

    view: str
    lowers: tuple[str, ...]
    index: str


def has_lower_names(path: str) -> bool:
    """Whether a file in the writable layer has names that only a lower layer has.

    The overlay notes the number of all names as a difference from that of the copy's own, which includes one in the
    index: `U-1` are as many (fs/overlayfs/util.c, ovl_set_nlink_upper).
    """
    try:
        noted = os.getxattr(path, _NLINK, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return noted != b"U-1"


def has_orphans(overlay: OverlayView) -> bool:
    """Whether a file was copied up under a name that is gone now, so that the index alone has it."""
    with os.scandir(overlay.index) as entries:
        return any(
            stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            for found in (entry.stat(follow_symlinks=False) for entry in entries)
        )


def shown_through(overlay: OverlayView, view: int, *, known: Container[str]) -> Iterator[str]:
    """Every path of a lower layer, not `known`, at which the overlay shows a copied-up file instead.

    `view` is a descriptor of the mountpoint. The overlay must not change meanwhile.
    """
    seen: set[str] = set()
    for lower in overlay.lowers:
        for path, found in _linked_files(lower, ""):
            if path in known or path in seen:
                continue
            seen.add(path)
            shown = _shown(view, path)
            if shown is not None and _differ(shown, found):
                yield path


def _linked_files(root: str, path: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(root + path) as entries:
        for entry in entries:
            below = f"{path}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _linked_files(root, below)
            elif entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink > 1:
                    yield below, found


def _shown(view: int, path: str) -> os.stat_result | None:
    parent, _, name = path.rpartition("/")
    try:
        fd = open_below(view, parent[1:])
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)


def _differ(shown: os.stat_result, lower: os.stat_result) -> bool:
    """Whether this is another file: a copy has a change time of its own. A lower file's own shows through untouched."""
    return stat.S_ISREG(shown.st_mode) and shown.st_ctime_ns != lower.st_ctime_ns
