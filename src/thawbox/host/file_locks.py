"""Locks that a tree holds on files which others can open too: those of the host's directories that are mounted in it.

CRIU takes every lock anew, and waits for one that somebody else holds. On its own files a restored tree is alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from thawbox.host.inside import open_inside
from thawbox.host.proc import command_name, pid_inside
from thawbox.model import Mount

# For every descriptor in the frozen moment: plain calls take half the time of Path's.
# ruff: noqa: PTH115, PTH208

_HELD = re.compile(r"^lock:\s+\d+: (FLOCK|POSIX|OFDLCK) +\S+ +(READ|WRITE) \S+ \S+ (\d+) (\d+|EOF)$", re.MULTILINE)
"""As fs/locks.c writes it; leases are left out: nobody waits for one."""
_RANGE = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


@dataclass(frozen=True, slots=True)
class SharedLock:
    """A lock that process `pid` (its number inside) holds by `fd` on `path`, a path inside.

    `whole` is one by flock; else `length` bytes from `start` on, 0 for all that follow.
    """

    pid: int
    program: str
    fd: int
    path: str
    exclusive: bool
    whole: bool
    start: int = 0
    length: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} ({self.program}), descriptor {self.fd}: the lock on {self.path}"


def find_shared_locks(pids: Iterable[int], mounts: Sequence[Mount]) -> tuple[SharedLock, ...]:
    """The locks that the processes `pids` (the host's numbers) hold on files of `mounts`."""
    found: list[SharedLock] = []
    for pid in pids if mounts else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            found += _held_by(pid, mounts)
    return tuple(found)


def _held_by(pid: int, mounts: Sequence[Mount]) -> Iterator[SharedLock]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            if _shown_by(path, mounts) is None:
                continue
            for kind, mode, start, end in _HELD.findall(Path(f"/proc/{pid}/fdinfo/{fd}").read_text()):
                first, length = int(start), 0 if end == "EOF" else int(end) - int(start) + 1
                yield SharedLock(
                    pid_inside(pid) or 0, command_name(pid), int(fd), path, mode == "WRITE", kind == "FLOCK", first,
                    length,
                )  # fmt: skip


def _shown_by(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that shows a path inside; the innermost where one lies in another."""
    showing = [mount for mount in mounts if path == mount.target or path.startswith(f"{mount.target.rstrip('/')}/")]
    return max(showing, key=lambda mount: len(mount.target), default=None)


def is_held(lock: SharedLock, mounts: Sequence[Mount]) -> bool:
    """Whether somebody holds now what keeps a restored tree from this lock. A file that is not there, nobody holds."""
    mount = _shown_by(lock.path, mounts)
    if mount is None:
        return False
    try:
        fd = _open(Path(mount.source), lock.path[len(mount.target) :])
    except OSError:
        return False  # the restore itself says what is wrong with it
    try:
        return _cannot_lock(fd, exclusive=lock.exclusive) if lock.whole else _is_range_held(fd, lock)
    finally:
        os.close(fd)


def _open(source: Path, beneath: str) -> int:
    """No link is followed below the source: the sandbox may have planted it."""
    if not beneath:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_inside(root, beneath, follow_symlinks=False)
    finally:
        os.close(root)


def _cannot_lock(fd: int, *, exclusive: bool) -> bool:
    """flock cannot be asked: it is tried, and let go as the descriptor is closed."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without such locks
    return False


def _is_range_held(fd: int, lock: SharedLock) -> bool:
    wanted = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
    try:
        asked = fcntl.fcntl(
            fd, fcntl.F_OFD_GETLK, _RANGE.pack(wanted, os.SEEK_SET, lock.start, lock.length, 0)
        )  # fmt: skip
    except OSError:
        return False  # a file system without such locks
    kind: int = _RANGE.unpack(asked)[0]
    return kind != fcntl.F_UNLCK
