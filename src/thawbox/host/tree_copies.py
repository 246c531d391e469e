"""Copies of single files with all that a rootfs cares for: type, mode, owner, times, extended attributes, holes, links.

Rule 1: nothing here follows a symbolic link at the end of a path; who needs the way there to be safe too gives a path
below `/proc/self/fd/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field

OPAQUE = "trusted.overlay.opaque"
ORIGIN = "trusted.overlay.origin"
OVERLAY_PREFIX = "trusted.overlay."
KEPT_OVERLAY_ATTRIBUTES = frozenset({OPAQUE, "trusted.overlay.whiteout", "trusted.overlay.redirect"})
"""What of the overlay's own attributes says something about content; the rest names inodes of this very mount."""

_CHUNK = 64 << 20

Inode = tuple[int, int]
"""Device and inode number."""


@dataclass(slots=True)
class Tally:
    """What was copied: regular files, bytes, all entries; and the first name that each hard-linked inode was given."""

    files: int = 0
    bytes: int = 0
    entries: int = 0
    links: dict[Inode, str] = field(default_factory=dict[Inode, str], repr=False)


def copy_entry(source: str, target: str, found: os.stat_result, tally: Tally) -> None:
    """Copy anything but a directory to the new name `target`; a further name of an inode copied before is a link.

    `found` is the source's lstat. Raises OSError with ESTALE when the source is not that any more.
    """
    if found.st_nlink > 1:
        first = tally.links.setdefault((found.st_dev, found.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            tally.entries += 1
            return
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFREG:
        _copy_file(source, target, found)
        tally.files += 1
        tally.bytes += found.st_size
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
    else:
        os.mknod(target, found.st_mode, found.st_rdev)
    copy_attributes(source, target, found)
    tally.entries += 1


def _copy_file(source: str, target: str, found: os.stat_result) -> None:
    with contextlib.ExitStack() as undo:
        # NONBLOCK: what was a file a moment ago may be a fifo now
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
        reading = os.open(source, flags)
        undo.callback(os.close, reading)
        opened = os.fstat(reading)
        if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino):
            raise OSError(errno.ESTALE, "a file was replaced while it was copied", source)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, writing)
        if found.st_size == 0:
            return
        os.ftruncate(writing, found.st_size)
        if found.st_blocks * 512 >= found.st_size:
            _copy_range(reading, writing, 0, found.st_size)
            return
        for begin, end in _parts(reading, found.st_size):
            _copy_range(reading, writing, begin, end)


def _parts(fd: int, size: int) -> list[tuple[int, int]]:
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
    os.lseek(writing, begin, os.SEEK_SET)
    while begin < end:
        moved = _copy_some(reading, writing, begin, min(_CHUNK, end - begin))
        if not moved:
            raise OSError(errno.ESTALE, "a file became shorter while it was copied")
        begin += moved


def _copy_some(reading: int, writing: int, begin: int, count: int) -> int:
    try:
        return os.copy_file_range(reading, writing, count, begin)  # shares blocks where the filesystem can
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return os.sendfile(writing, reading, begin, count)


def copy_attributes(source: str | int, target: str, found: os.stat_result) -> None:
    """Give the new file or directory `target` the owner, mode, extended attributes and times of `source`.

    `source` is a path, not followed, or a descriptor; `found` its stat.
    """
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))  # noqa: PTH101
    for name, value in read_attributes(source).items():
        os.setxattr(target, name, value, follow_symlinks=False)
    copy_times(target, found)


def replace_attributes(source: str, target: str, found: os.stat_result) -> None:
    """The same for a `target` that has attributes already; what it hides in an overlay (opaque) it goes on to hide."""
    wanted = read_attributes(source)
    for name in read_attributes(target):
        if name not in wanted and name != OPAQUE:
            os.removexattr(target, name, follow_symlinks=False)
    copy_attributes(source, target, found)


def read_attributes(source: str | int) -> dict[str, bytes]:
    """The extended attributes of a path (not followed) or descriptor, less what the overlay noted for one mount."""
    follow = isinstance(source, int)
    return {
        name: os.getxattr(source, name, follow_symlinks=follow)
        for name in os.listxattr(source, follow_symlinks=follow)
        if not name.startswith(OVERLAY_PREFIX) or name in KEPT_OVERLAY_ATTRIBUTES
    }


def note_whiteout(directory: str | bytes) -> None:
    """Have an overlay not show the whiteouts of this directory of a layer, also where no layer beneath has it.

    It looks for them where directories are merged, and in those that were copied up once: of unknown origin, if this
    attribute is empty (fs/overlayfs/util.c, ovl_path_check_origin_xattr). In any other it lists them as files.
    """
    os.setxattr(directory, ORIGIN, b"")


def copy_times(target: str, found: os.stat_result) -> None:
    """Give `target` (not followed) these times."""
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def open_below(root: int, path: str) -> int:
    """A descriptor of the directory `path`, relative to the directory `root`; no part of it may be a symbolic link."""
    fd = os.dup(root)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def is_opaque(path: str | int) -> bool:
    """Whether a directory of a layer hides everything beneath it."""
    try:
        return os.getxattr(path, OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
