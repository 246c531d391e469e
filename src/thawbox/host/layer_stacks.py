"""Several layers of one overlay made into one: by copying (what is stored stays) or by moving (what is ours to use up).

The result equals the stack over any rootfs: whiteouts and opaque directories stay in it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from thawbox.host.layers import is_whiteout
from thawbox.host.tree_copies import (
    OPAQUE,
    Tally,
    copy_attributes,
    copy_entry,
    is_opaque,
    note_whiteout,
    replace_attributes,
)

Take = Callable[[str, str, os.stat_result], None]
"""Brings the entry at a path, of this lstat, to a new path."""


def merge_layers(layers: Iterable[Path], target: Path) -> None:
    """Copy a stack of layers, base first, into the empty directory `target` as one layer equal to them."""
    for layer in layers:
        _lay(str(layer), str(target), _copying(Tally()))


def stack_onto(layer: Path, beneath: Path) -> None:
    """Move everything of `layer` into `beneath`, which becomes equal to both; `layer` is gone then.

    Both lie on one filesystem.
    """
    _lay(str(layer), str(beneath), _move)
    shutil.rmtree(layer)


def _lay(source: str, target: str, take: Take) -> None:
    found = os.lstat(source)
    _lay_directory(source, target, take)
    replace_attributes(source, target, found)


def _lay_directory(source: str, target: str, take: Take) -> None:
    with os.scandir(source) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, entry in found:
        _lay_entry(f"{source}/{name}", f"{target}/{name}", entry, take)


def _lay_entry(source: str, target: str, found: os.stat_result, take: Take) -> None:
    if is_whiteout(found):
        note_whiteout(os.path.dirname(target))  # noqa: PTH120
    there = _lstat(target)
    if there is None:
        take(source, target, found)
        return
    is_directory = stat.S_ISDIR(found.st_mode)
    if is_directory and stat.S_ISDIR(there.st_mode) and not is_opaque(source):
        _lay(source, target, take)
        return
    _remove(target, there)
    take(source, target, found)
    if is_directory:  # what was there hid what lies beneath, or is hidden itself: so it goes on
        os.setxattr(target, OPAQUE, b"y")


def _move(source: str, target: str, _found: os.stat_result) -> None:
    os.rename(source, target)  # noqa: PTH104


def _copying(tally: Tally) -> Take:
    def take(source: str, target: str, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            copy_entry(source, target, found, tally)
            return
        os.mkdir(target, 0o700)  # noqa: PTH102
        _lay_directory(source, target, take)
        copy_attributes(source, target, found)

    return take


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _remove(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)  # noqa: PTH108
