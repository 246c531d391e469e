"""Copying the writable layer of an overlay in one frozen moment, and merging layers copied before.

Rule 1: only what changed since the last copy is copied: a file is known by inode and change time (ctime), which no
program can set.
Rule 2: a file that may change without a new ctime (mapped shared and writable, or changed within a clock tick of the
copy) is never remembered, and so copied again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

OPAQUE = "trusted.overlay.opaque"
OVERLAY_PREFIX = "trusted.overlay."
KEPT_OVERLAY_ATTRIBUTES = frozenset({OPAQUE, "trusted.overlay.whiteout", "trusted.overlay.redirect"})
"""What of the overlay's own attributes says something about content; the rest names inodes of this very mount."""

CLOCK_TICK_NS = 20_000_000
"""More than a tick of any kernel's coarse clock (10 ms at 100 Hz), by which ctimes are taken."""

_CHUNK = 64 << 20

Marks = dict[str, tuple[int, int, int]]
"""What was seen at each path below a layer: inode number, ctime in nanoseconds (0: not to be trusted), file type."""


@dataclass(slots=True)
class Copied:
    """One copy: regular files and bytes copied, names deleted since the earlier copy, and what it saw of the layer."""

    files: int = 0
    bytes: int = 0
    entries: int = 0
    deleted: int = 0
    marks: Marks = field(default_factory=dict[str, tuple[int, int, int]], repr=False)
    links: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str], repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing had changed since the earlier copy."""
        return not (self.entries or self.deleted)


@dataclass(frozen=True, slots=True)
class _Walk:
    """What stays the same during one copy. `mapped` holds inode numbers that must not be remembered."""

    source: str
    target: str
    since: Marks
    mapped: Collection[int]
    trusted_before_ns: int
    copied: Copied = field(default_factory=Copied)
    made: list[str] = field(default_factory=list[str])


def copy_layer(
    source: str, target: str, *, since: Marks | None = None, mapped: Collection[int] = (), now_ns: int
) -> Copied:
    """Copy into the empty directory `target` what changed in `source` since the copy that left the marks `since`.

    The result is a layer for on top of that earlier copy: deletions are whiteouts, replaced directories opaque.
    Without `since` it is the whole layer. Kept: types, modes, owners, modification times, extended attributes, hard
    links, holes. Nothing is flushed to the disk. `source` must not change meanwhile; `now_ns` is the wall time in
    nanoseconds. An OSError is passed on.
    """
    walk = _Walk(source, target, since or {}, mapped, now_ns - CLOCK_TICK_NS)
    _copy_attributes(source, target, os.lstat(source))
    _visit_directory(walk, "", fresh=not walk.since)
    _delete_missing(walk)
    for path in reversed(("", *walk.made)):  # last, since every name made in a directory changed its times
        _copy_times(target + path, os.lstat(source + path))
    return walk.copied


def _visit_directory(walk: _Walk, path: str, *, fresh: bool) -> None:
    """Copy what changed below the directory `path`; with `fresh`, everything."""
    with os.scandir(walk.source + path) as entries:
        for entry in entries:
            _visit(walk, entry, f"{path}/{entry.name}", fresh=fresh)


def _visit(walk: _Walk, entry: os.DirEntry[str], path: str, *, fresh: bool) -> None:
    found = entry.stat(follow_symlinks=False)
    mark = _mark(walk, found)
    walk.copied.marks[path] = mark
    before = walk.since.get(path)
    if stat.S_ISDIR(found.st_mode):
        replaced = fresh or before is None or before[0] != mark[0]
        if replaced or before != mark:
            _make_parents(walk, path)
            if replaced and before is not None:
                os.setxattr(walk.target + path, OPAQUE, b"y")
        _visit_directory(walk, path, fresh=replaced)
        return
    if before != mark or fresh or not mark[1]:
        _make_parents(walk, path.rpartition("/")[0])
        _copy_entry(entry.path, walk.target + path, found, walk.copied)


def _mark(walk: _Walk, found: os.stat_result) -> tuple[int, int, int]:
    trusted = found.st_ctime_ns < walk.trusted_before_ns and found.st_ino not in walk.mapped
    return (found.st_ino, found.st_ctime_ns if trusted else 0, stat.S_IFMT(found.st_mode))


def _make_parents(walk: _Walk, path: str) -> None:
    """Make the directory `path` of the copy, and those above it, as they are in the layer."""
    if not path or os.path.lexists(walk.target + path):
        return
    _make_parents(walk, path.rpartition("/")[0])
    os.mkdir(walk.target + path, 0o700)  # noqa: PTH102
    found = os.lstat(walk.source + path)
    _copy_attributes(walk.source + path, walk.target + path, found)
    before = walk.since.get(path)
    if before is not None and before[0] == found.st_ino and _is_opaque(walk.target + path):
        # It hides what is below the earlier copy; here it must let the earlier copy itself be seen.
        os.removexattr(walk.target + path, OPAQUE)
    walk.made.append(path)
    walk.copied.entries += 1


def _delete_missing(walk: _Walk) -> None:
    for path, (_, _, kind) in walk.since.items():
        if path in walk.copied.marks:
            continue
        walk.copied.deleted += 1
        parent = path.rpartition("/")[0]
        # With its directory it went already; and a whiteout goes only with its directory.
        if kind != stat.S_IFCHR and _is_same_directory(walk, parent):
            _make_parents(walk, parent)
            os.mknod(walk.target + path, stat.S_IFCHR | 0o600, 0)


def _is_same_directory(walk: _Walk, path: str) -> bool:
    """Whether this directory was there at the earlier copy and is the same one still."""
    return not path or (path in walk.copied.marks and walk.copied.marks[path][0] == walk.since[path][0])


def _copy_entry(source: str, target: str, found: os.stat_result, copied: Copied) -> None:
    copied.entries += 1
    kind = stat.S_IFMT(found.st_mode)
    if found.st_nlink > 1:
        first = copied.links.setdefault((found.st_dev, found.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
    if kind == stat.S_IFREG:
        _copy_file(source, target, found)
        copied.files += 1
        copied.bytes += found.st_size
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
    else:
        os.mknod(target, found.st_mode, found.st_rdev)
    _copy_attributes(source, target, found)


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


def _copy_attributes(source: str, target: str, found: os.stat_result) -> None:
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))  # noqa: PTH101
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(OVERLAY_PREFIX) or name in KEPT_OVERLAY_ATTRIBUTES:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    _copy_times(target, found)


def _copy_times(target: str, found: os.stat_result) -> None:
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def shared_mappings(pids: Iterable[int]) -> frozenset[int]:
    """Inode numbers of the files that these processes have mapped shared: they may change without a new ctime."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
                fields = line.split(maxsplit=5)
                if fields[1][3:4] == b"s" and fields[4] != b"0":
                    found.add(int(fields[4]))
    return frozenset(found)


def merge_layers(layers: Iterable[Path], target: Path) -> None:
    """Copy a stack of layers, base first, into the empty directory `target` as one layer equal to them.

    Whiteouts and opaque directories stay: the rootfs still lies beneath.
    """
    for layer in layers:
        _merge_directory(str(layer), str(target), Copied())
        _copy_attributes(str(layer), str(target), os.lstat(layer))


def _merge_directory(source: str, target: str, copied: Copied) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            _merge_entry(entry, f"{target}/{entry.name}", copied)


def _merge_entry(entry: os.DirEntry[str], target: str, copied: Copied) -> None:
    found = entry.stat(follow_symlinks=False)
    there = _lstat(target)
    if not stat.S_ISDIR(found.st_mode):
        if there is not None:
            _remove(target, there)
        _copy_entry(entry.path, target, found, copied)
        return
    merges = there is not None and stat.S_ISDIR(there.st_mode) and not _is_opaque(entry.path)
    opaque = there is not None and (not merges or _is_opaque(target))
    if there is not None and not merges:
        _remove(target, there)
    if not merges:
        os.mkdir(target, 0o700)  # noqa: PTH102
    _merge_directory(entry.path, target, copied)
    _copy_attributes(entry.path, target, found)
    if opaque:
        os.setxattr(target, OPAQUE, b"y")


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


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
