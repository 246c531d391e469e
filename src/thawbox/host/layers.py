"""Reading a stack of directories as overlayfs would show it, before it is mounted.

Rule 1: a link met on the way leads nowhere but into the stack: it is resolved by us, never by the kernel.
Rule 2: nothing may run in the stack while it is read: a sandbox could swap a directory for a link in between.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import InvalidSpec
from thawbox.host.tree_copies import OPAQUE

MAX_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at a path: its place inside the root with no links left, and the host's paths of it.

    `real` holds the directories that merge there, top first, or the one file; it is empty where nothing stands.
    """

    inside: tuple[str, ...]
    real: tuple[Path, ...]
    status: os.stat_result | None


@dataclass(frozen=True, slots=True)
class Layers:
    """The directories of an overlay, topmost first."""

    directories: tuple[Path, ...]

    def find(self, path: str) -> Found:
        """What stands at `path`, links followed as in a root of its own; raises InvalidSpec for a loop of links."""
        links = 0
        waiting = _parts(path)
        stacks: list[tuple[Path, ...]] = [self.directories]
        inside: list[str] = []
        while waiting:
            name = waiting.pop(0)
            if name == "..":
                del stacks[max(1, len(stacks) - 1) :], inside[-1:]
                continue
            real, status = look_up(stacks[-1], name)
            if status is not None and stat.S_ISLNK(status.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise InvalidSpec(f"{path} of the rootfs is a loop of links", remediation="use another rootfs")
                target = real[0].readlink().as_posix()
                if target.startswith("/"):
                    stacks, inside = [self.directories], []
                waiting = _parts(target) + waiting
                continue
            inside.append(name)
            if status is None or (waiting and not stat.S_ISDIR(status.st_mode)):
                return Found((*inside, *waiting), (), None)
            stacks.append(real)
            if not waiting:
                return Found(tuple(inside), real, status)
        return Found(tuple(inside), stacks[-1], self.directories[0].lstat())

    def read(self, path: str, *, at_most: int = 4 << 20) -> bytes | None:
        """The content of a regular file, cut after `at_most` bytes; None where there is none."""
        found = self.find(path)
        if found.status is None or not stat.S_ISREG(found.status.st_mode):
            return None
        fd = os.open(found.real[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(at_most)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this hides what is below it (overlayfs.rst: a character device 0/0)."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def look_up(stack: tuple[Path, ...], name: str) -> tuple[tuple[Path, ...], os.stat_result | None]:
    """`name` in a directory merged of `stack`, top first: (its host paths, status of the topmost), or ((), None)."""
    merged: list[Path] = []
    first: os.stat_result | None = None
    for directory in stack:
        path = directory / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_whiteout(status):
            break
        if not stat.S_ISDIR(status.st_mode):
            return (tuple(merged), first) if merged else ((path,), status)
        merged.append(path)
        first = first or status
        if _is_opaque(path):
            break
    return tuple(merged), first


def _is_opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) == b"y"
    except OSError as absent:
        if absent.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
