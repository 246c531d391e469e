"""Whether a layer shows anything that the stack beneath it does not.

A capture copies again what may have changed without a sign (see trees.py), and mostly it had not.

Rule 1: what cannot be told apart cheaply (further names of a file, deletions, opaque directories) counts as a change.
Rule 2: all names are looked at before the first content is read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from thawbox.host.files import is_same_content
from thawbox.host.layers import is_whiteout, look_up
from thawbox.host.tree_copies import OPAQUE, read_attributes

_Pair = tuple[Path, Path]


def adds_nothing(layer: Path, beneath: Sequence[Path]) -> bool:
    """Whether `layer` on top of the layers `beneath`, base first, shows what they show without it.

    Times of reading (atime) are no difference. An OSError is passed on.
    """
    stack = tuple(reversed(beneath))
    if not stack or not _is_alike(layer, stack[0]):
        return False
    files: list[_Pair] = []
    for pair in _pairs(layer, stack):
        if pair is None:
            return False
        files.append(pair)
    return all(is_same_content(one, other) for one, other in files)


def _pairs(directory: Path, stack: tuple[Path, ...]) -> Iterator[_Pair | None]:
    """Each regular file below `directory` with what it would replace; None for anything that differs."""
    for entry in directory.iterdir():
        real, beneath = look_up(stack, entry.name)
        if beneath is None or not _is_alike(entry, real[0]):
            yield None
        elif stat.S_ISDIR(beneath.st_mode):
            yield from _pairs(entry, real)
        elif stat.S_ISREG(beneath.st_mode):
            yield entry, real[0]


def _is_alike(one: Path, other: Path) -> bool:
    """Whether two entries have the same type, owner, mode, modification time, size and extended attributes."""
    mine, theirs = one.lstat(), other.lstat()
    if is_whiteout(mine) or (mine.st_mode, mine.st_uid, mine.st_gid, mine.st_mtime_ns, mine.st_rdev) != (
        theirs.st_mode, theirs.st_uid, theirs.st_gid, theirs.st_mtime_ns, theirs.st_rdev,
    ):  # fmt: skip
        return False
    attributes = read_attributes(str(one))
    if OPAQUE in attributes:
        return False
    below = read_attributes(str(other))
    below.pop(OPAQUE, None)  # it hides what is beneath it, with this on top or without
    if attributes != below:
        return False
    if stat.S_ISDIR(mine.st_mode):
        return True
    if mine.st_nlink > 1 or theirs.st_nlink > 1 or mine.st_size != theirs.st_size:
        return False
    return not stat.S_ISLNK(mine.st_mode) or one.readlink() == other.readlink()
