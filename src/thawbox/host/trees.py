"""Copying the writable layer of an overlay: what changed since the last copy, in one frozen moment or ahead of it.

Rule 1: a file is known by inode and change time (ctime), which no program can set; a known one is not copied again.
Rule 2: a file that may change without a new ctime (mapped shared, or changed within a clock tick of the copy) is never
trusted, and so copied again.
Rule 3: a copy ahead, while programs run, may be wrong wherever they are at work: it says what it saw before it copied,
so that the copy in the frozen moment finds that and copies it again.
Rule 4: every directory is opened from its parent's descriptor: a program cannot lead the copy out of its layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.errors import Unsupported
from thawbox.host.lower_names import OverlayView, has_lower_names, has_orphans, shown_through
from thawbox.host.tree_copies import (
    OPAQUE,
    Tally,
    copy_attributes,
    copy_entry,
    copy_times,
    is_opaque,
    note_whiteout,
    open_below,
)

CLOCK_TICK_NS = 20_000_000
"""More than a tick of any kernel's coarse clock (10 ms at 100 Hz), by which ctimes are taken."""

MAX_DEPTH = 300
"""Directories within directories that can be captured: each level holds a descriptor."""

WHITEOUT = 0
_OPAQUE_DIRECTORY = stat.S_IFDIR | 1
_DIRECTORIES = frozenset({stat.S_IFDIR, _OPAQUE_DIRECTORY})
_FORMAT = 0o170000

Mark = tuple[int, int, int]
Marks = dict[str, Mark]
"""What was seen at each path below a layer (`""` is its root): inode number, ctime in nanoseconds (0: not to be
trusted), and file type: WHITEOUT for a deletion, one more than a directory's for an opaque one."""

_OWN_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE})
"""What a program at work in the tree does not cause."""


@dataclass(frozen=True, slots=True)
class Copied:
    """One copy: regular files, bytes and entries copied, names deleted since, and what it saw of the layer."""

    files: int
    bytes: int
    entries: int
    deleted: int
    marks: Marks = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing had changed since the earlier copy."""
        return not (self.entries or self.deleted)


@dataclass(slots=True)
class _Directory:
    """An open directory of the layer. `made` once it stands in the copy.

    `is_same` is the one of the earlier copy, `hides` replaces something else that was there.
    """

    path: str
    fd: int
    found: os.stat_result
    parent: _Directory | None
    is_same: bool
    hides: bool
    made: bool = False


@dataclass(slots=True)
class _Walk:
    """One copy on its way. `mapped` holds inode numbers as programs see them, cut to 32 bits."""

    target: str
    since: Marks
    mapped: frozenset[int]
    trusted_before_ns: int
    live: bool
    overlay: OverlayView | None
    marks: Marks = field(default_factory=dict[str, Mark])
    tally: Tally = field(default_factory=Tally)
    made: list[_Directory] = field(default_factory=list[_Directory])
    with_lower_names: list[str] = field(default_factory=list[str])
    has_new_whiteouts: bool = False


def copy_layer(
    source: str, target: str, *, since: Marks | None = None, mapped: Collection[int] = (), now_ns: int,
    live: bool = False, overlay: OverlayView | None = None,
) -> Copied:  # fmt: skip
    """Copy into the empty directory `target` what changed in `source` since the copy that left the marks `since`.

    The result is a layer for on top of that earlier copy: deletions are whiteouts, replaced directories opaque.
    Without `since` it is the whole layer. Kept: types, modes, owners, modification times, extended attributes, hard
    links, holes. Nothing is flushed to the disk. `source` must not change meanwhile, unless it is said to be `live`:
    then the result is whole only with a later copy, of a frozen layer, since these marks, stacked onto it.
    `now_ns` is the wall time in nanoseconds, and `mapped` what `shared_mappings` says, both from before the call.
    An OSError is passed on; raises Unsupported for directories nested too deeply.
    """
    walk = _Walk(
        target, since or {}, frozenset(inode & 0xFFFFFFFF for inode in mapped), now_ns - CLOCK_TICK_NS, live, overlay
    )
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _visit_root(walk, fd)
        _link_further_names(walk, fd)
        _bring_lower_names(walk)
        deleted = _delete_missing(walk, fd)
    finally:
        os.close(fd)
    for directory in reversed(walk.made):  # last, since every name made in a directory changed its times
        copy_times(walk.target + directory.path, directory.found)
    tally = walk.tally
    return Copied(tally.files, tally.bytes, tally.entries, deleted, walk.marks)


def _visit_root(walk: _Walk, fd: int) -> None:
    found = os.fstat(fd)
    root = _Directory("", fd, found, None, is_same=True, hides=False, made=True)
    mark = (found.st_ino, _trusted_ctime(walk, found), stat.S_IFDIR)
    copy_attributes(fd, walk.target, found)
    walk.made.append(root)
    if not walk.since or walk.since.get("") != mark or not mark[1]:
        walk.tally.entries += 1
    walk.marks[""] = mark
    _visit_directory(walk, root, fresh=not walk.since, depth=0)


def _trusted_ctime(walk: _Walk, found: os.stat_result) -> int:
    return found.st_ctime_ns if found.st_ctime_ns < walk.trusted_before_ns else 0


def _visit_directory(walk: _Walk, directory: _Directory, *, fresh: bool, depth: int) -> None:
    """Copy what changed below an open directory; with `fresh`, everything. The inner loop of a frozen moment."""
    since, marks, mapped, trusted_before = walk.since, walk.marks, walk.mapped, walk.trusted_before_ns
    path = directory.path + "/"
    with os.scandir(directory.fd) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                if not walk.live:
                    raise
                continue
            child = path + entry.name
            kind = found.st_mode & _FORMAT
            if kind == stat.S_IFDIR:
                _visit_child(walk, directory, entry.name, fresh=fresh, depth=depth)
                continue
            ctime = found.st_ctime_ns
            if ctime >= trusted_before or (mapped and _is_mapped(walk, child, found)):
                ctime = 0
            if kind == stat.S_IFCHR and not found.st_rdev:
                kind = WHITEOUT
            mark = marks[child] = (found.st_ino, ctime, kind)
            if fresh or not ctime or since.get(child) != mark:
                _copy_changed(walk, directory, entry.name, found)


def _is_mapped(walk: _Walk, path: str, found: os.stat_result) -> bool:
    """Whether a program may have the file mapped. One that was copied up bears the number of its lower file there."""
    if found.st_ino & 0xFFFFFFFF in walk.mapped:
        return True
    # With the options of our overlays every file that was copied up has a second name, in the index.
    if found.st_nlink == 1 or walk.overlay is None:
        return False
    try:
        return os.lstat(walk.overlay.view + path).st_ino & 0xFFFFFFFF in walk.mapped
    except OSError:
        return True


def _copy_changed(walk: _Walk, directory: _Directory, name: str, found: os.stat_result) -> None:
    child = f"{directory.path}/{name}"
    source = f"/proc/self/fd/{directory.fd}/{name}"
    try:
        _make(walk, directory)
        copy_entry(source, walk.target + child, found, walk.tally)
        if walk.overlay is not None and found.st_nlink > 1 and has_lower_names(source):
            walk.with_lower_names.append(child)
            _distrust(walk, child)
        elif walk.marks[child][2] == WHITEOUT:
            walk.has_new_whiteouts = True
            note_whiteout(walk.target + directory.path)
            _distrust(walk, child)
    except OSError as error:
        if not walk.live or error.errno in _OWN_DISK:
            raise
        walk.tally.entries += 1
        _distrust(walk, child)


def _distrust(walk: _Walk, path: str) -> None:
    """While live: let the copy in the frozen moment look at this path again, whatever it finds there."""
    if walk.live:
        inode, _, kind = walk.marks[path]
        walk.marks[path] = (inode, 0, kind)


def _visit_child(walk: _Walk, parent: _Directory, name: str, *, fresh: bool, depth: int) -> None:
    path = f"{parent.path}/{name}"
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
    except OSError as error:
        if not walk.live or error.errno in _OWN_DISK:
            raise
        return
    try:
        if depth >= MAX_DEPTH:
            if walk.live:
                return
            raise Unsupported(
                f"directories are nested more than {MAX_DEPTH} deep below {path[:60]!r}",
                remediation="remove the deeply nested directories inside the sandbox",
            )
        found = os.fstat(fd)
        before = walk.since.get(path)
        ctime = _trusted_ctime(walk, found)
        if before is not None and ctime and before[:2] == (found.st_ino, ctime) and before[2] & _FORMAT == stat.S_IFDIR:
            mark, is_same = before, True
        else:
            mark = (found.st_ino, ctime, _OPAQUE_DIRECTORY if is_opaque(fd) else stat.S_IFDIR)
            is_same = before is not None and _may_be_same(before, mark)
        walk.marks[path] = mark
        is_same = is_same and not fresh
        directory = _Directory(path, fd, found, parent, is_same=is_same, hides=before is not None and not is_same)
        if not is_same or before != mark or not ctime:
            _make(walk, directory)
        _visit_directory(walk, directory, fresh=not is_same, depth=depth + 1)
    finally:
        os.close(fd)


def _may_be_same(before: Mark, now: Mark) -> bool:
    """Whether two marks may be of one directory. One that became opaque is another one with the inode number reused."""
    return before[0] == now[0] and (before[2] == now[2] or (before[2], now[2]) == (_OPAQUE_DIRECTORY, stat.S_IFDIR))


def _make(walk: _Walk, directory: _Directory) -> None:
    """Make a directory of the copy, and those above it, as they are in the layer."""
    if directory.made or directory.parent is None:
        return
    _make(walk, directory.parent)
    target = walk.target + directory.path
    os.mkdir(target, 0o700)  # noqa: PTH102
    copy_attributes(directory.fd, target, directory.found)
    if directory.hides:
        os.setxattr(target, OPAQUE, b"y")
    elif directory.is_same and is_opaque(target):
        # It hides what is below the earlier copy; here it must let the earlier copy itself be seen.
        os.removexattr(target, OPAQUE)
    directory.made = True
    walk.made.append(directory)
    walk.tally.entries += 1


def _delete_missing(walk: _Walk, root: int) -> int:
    """Hide what the earlier copy has and the layer has not; while live, only remember that it is to be looked at."""
    missing = walk.since.keys() - walk.marks.keys()
    # With its directory it went already; and a whiteout goes only with its directory.
    needed = [path for path in missing if walk.since[path][2] != WHITEOUT and _is_same_parent(walk, path)]
    if walk.live:
        walk.marks.update((path, walk.since[path]) for path in needed)
        return 0
    for path in needed:
        _make_parents(walk, root, path.rpartition("/")[0])
        os.mknod(walk.target + path, stat.S_IFCHR | 0o600, 0)
        note_whiteout(walk.target + path.rpartition("/")[0])
    return len(missing)


def _is_same_parent(walk: _Walk, path: str) -> bool:
    parent = path.rpartition("/")[0]
    before, now = walk.since.get(parent), walk.marks.get(parent)
    return before is not None and now is not None and now[2] & _FORMAT == stat.S_IFDIR and _may_be_same(before, now)


def _make_parents(walk: _Walk, root: int, path: str) -> None:
    """Make the directory `path` below `root`, and those above it. Not made yet, it is the one of the earlier copy."""
    if not path or os.path.lexists(walk.target + path):
        return
    _make_parents(walk, root, path.rpartition("/")[0])
    fd = open_below(root, path[1:])
    try:
        found = os.fstat(fd)
        above = _Directory("", root, found, None, is_same=True, hides=False, made=True)
        _make(walk, _Directory(path, fd, found, above, is_same=True, hides=False))
    finally:
        os.close(fd)


def _link_further_names(walk: _Walk, root: int) -> None:
    """Bring along every further name of a copied inode, also where nothing changed: they are one file."""
    firsts = {inode: target for (_, inode), target in walk.tally.links.items()}
    if not firsts:
        return
    further = [path for path, (inode, _, kind) in walk.marks.items() if inode in firsts and kind not in _DIRECTORIES]
    for path in further:
        target = walk.target + path
        if os.path.lexists(target):
            continue
        try:
            _make_parents(walk, root, path.rpartition("/")[0])
            os.link(firsts[walk.marks[path][0]], target, follow_symlinks=False)
        except OSError as error:
            if not walk.live or error.errno in _OWN_DISK:
                raise
            _distrust(walk, path)


def _bring_lower_names(walk: _Walk) -> None:
    """Copy names that only a lower layer has, of files that were changed through another name of theirs."""
    overlay = walk.overlay
    if overlay is None or walk.live:
        return
    if not walk.with_lower_names and not (walk.has_new_whiteouts and has_orphans(overlay)):
        return
    for path in walk.with_lower_names:
        found = os.lstat(overlay.view + path)
        walk.tally.links[found.st_dev, found.st_ino] = walk.target + path
    view = os.open(overlay.view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in shown_through(overlay, view, known=walk.marks):
            parent, _, name = path.rpartition("/")
            fd = open_below(view, parent[1:])
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                _make_parents(walk, view, parent)
                copy_entry(f"/proc/self/fd/{fd}/{name}", walk.target + path, found, walk.tally)
            finally:
                os.close(fd)
    finally:
        os.close(view)


def shared_mappings(pids: Iterable[int]) -> frozenset[int]:
    """Inode numbers of the files that these processes have mapped shared: they may change without a new ctime."""
    found: set[int] = set()
    for pid in pids:
        for line in _maps(pid).splitlines():
            fields = line.split(maxsplit=5)
            if fields[1][3:4] == b"s" and fields[4] != b"0":
                found.add(int(fields[4]))
    return frozenset(found)


def _maps(pid: int) -> bytes:
    """The mappings of a process, read from a thread where its first one has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        content = Path(f"/proc/{pid}/maps").read_bytes()
        if content:
            return content
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                content = content or (task / "maps").read_bytes()
        return content
    return b""
