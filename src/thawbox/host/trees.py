"""Copying the writable layer of an overlay, as it is in one frozen moment."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field

OVERLAY_PREFIX = "trusted.overlay."
KEPT_OVERLAY_ATTRIBUTES = frozenset({"trusted.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.redirect"})
"""What of the overlay's own attributes says something about content; the rest names inodes of this very mount."""

_CHUNK = 64 << 20


@dataclass(slots=True)
class Copied:
    """What a copy was made of: regular files, and bytes of their content."""

    files: int = 0
    bytes: int = 0
    links: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str], repr=False)
    """First copy of each inode that has several names, by device and inode number."""


def copy_layer(source: str, target: str) -> Copied:
    """Copy the tree `source` into the existing empty directory `target`, as usable as an overlay's lower directory.

    Kept: types (whiteouts and other nodes too), modes, owners, modification times, extended attributes, hard links,
    holes. Nothing is flushed to the disk. `source` must not change meanwhile; OSError otherwise and when out of space.
    """
    copied = Copied()
    _copy_directory(source, target, copied)
    return copied


def _copy_directory(source: str, target: str, copied: Copied) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            _copy_entry(entry, f"{target}/{entry.name}", copied)
    _copy_marks(source, target, os.lstat(source))


def _copy_entry(entry: os.DirEntry[str], target: str, copied: Copied) -> None:
    found = entry.stat(follow_symlinks=False)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(target, 0o700)  # noqa: PTH102 - paths stay strings here: this runs while the sandbox is frozen
        _copy_directory(entry.path, target, copied)
        return
    if found.st_nlink > 1:
        first = copied.links.setdefault((found.st_dev, found.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
    if kind == stat.S_IFREG:
        _copy_file(entry.path, target, found)
        copied.files += 1
        copied.bytes += found.st_size
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(entry.path), target)  # noqa: PTH115, PTH211
    else:
        os.mknod(target, found.st_mode, found.st_rdev)
    _copy_marks(entry.path, target, found)


def _copy_file(source: str, target: str, found: os.stat_result) -> None:
    with contextlib.ExitStack() as undo:
        reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        undo.callback(os.close, reading)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, writing)
        if found.st_size == 0:
            return
        os.ftruncate(writing, found.st_size)
        if found.st_blocks * 512 >= found.st_size:
            _copy_range(reading, writing, 0, found.st_size)
            return
        for begin, end in _data_ranges(reading, found.st_size):
            _copy_range(reading, writing, begin, end)


def _data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are not holes."""
    ranges: list[tuple[int, int]] = []
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        offset = os.lseek(fd, begin, os.SEEK_HOLE)
        ranges.append((begin, min(offset, size)))
    return ranges


def _copy_range(reading: int, writing: int, begin: int, end: int) -> None:
    while begin < end:
        moved = os.copy_file_range(reading, writing, min(_CHUNK, end - begin), begin, begin)
        if not moved:
            raise OSError(errno.EIO, "a file became shorter while its sandbox was frozen")
        begin += moved


def _copy_marks(source: str, target: str, found: os.stat_result) -> None:
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))  # noqa: PTH101
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(OVERLAY_PREFIX) or name in KEPT_OVERLAY_ATTRIBUTES:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
