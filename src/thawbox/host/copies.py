"""Copying files and directories between the host and a running sandbox, whole or not at all.

Rule 1: a path of the sandbox is resolved by the kernel inside the sandbox's root (see inside.py), and only once:
everything below is reached through descriptors, one name at a time, and no link is followed.
Rule 2: what is copied grows under a name of its own beside its place, and is renamed there at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from thawbox.errors import InvalidRequest
from thawbox.host.inside import open_inside

Opener = Callable[[str, int], int]
"""Opens a path of one side (path, flags) and returns a descriptor; raises OSError."""

_PIECE = 1 << 20
_ENTRY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(slots=True)
class Moved:
    """What was copied; `left_out` are paths of sockets, pipes and devices, which have no content to copy."""

    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class _Errand:
    """What stays the same during one copy."""

    owner: tuple[int, int] | None
    moved: Moved = field(default_factory=Moved)


def on_host(path: str, flags: int) -> int:
    """The opener of the host's own paths."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def within(root_fd: int) -> Opener:
    """The opener of paths inside the root that `root_fd` names; nothing in there leads out."""
    return partial(open_inside, root_fd)


def copy_between(
    source: Opener, path: str, target: Opener, destination: str, *, owner: tuple[int, int] | None = None
) -> Moved:
    """Copy the file or directory `path` to `destination`: into it if it is a directory, else under that name.

    An existing file is replaced in one step. Modes and times are kept, but set-user-id bits; links stay links. With
    `owner` (uid, gid) it all belongs to them, else to us. Raises InvalidRequest for what cannot be copied (a device)
    or is in the way (a directory of that name), OSError; nothing has then changed.
    """
    with contextlib.ExitStack() as stack:
        fd = source(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRequest(f"{path} is neither a file nor a directory")
        parent, name = _place(target, destination, PurePosixPath(path).name)
        stack.callback(os.close, parent)
        _check_free(parent, name, is_directory=kind == stat.S_IFDIR)
        staging = f".thawbox-{secrets.token_hex(6)}"
        stack.callback(_remove, parent, staging)
        errand = _Errand(owner)
        _copy_entry(fd, parent, staging, path, errand)
        os.rename(staging, name, src_dir_fd=parent, dst_dir_fd=parent)
    return errand.moved


def _place(target: Opener, destination: str, name: str) -> tuple[int, str]:
    """A descriptor of the directory that the copy goes into, and the copy's name there."""
    try:
        parent = target(destination, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        pure = PurePosixPath(destination)
        if destination.endswith("/") or pure.name in ("", ".."):
            raise
        return target(str(pure.parent), os.O_RDONLY | os.O_DIRECTORY), pure.name
    if name in ("", ".."):
        os.close(parent)
        raise InvalidRequest("the copy would have no name", remediation="name a place that does not exist yet")
    return parent, name


def _check_free(parent: int, name: str, *, is_directory: bool) -> None:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if is_directory or stat.S_ISDIR(mode):
        raise InvalidRequest(
            f"there is {'a directory' if stat.S_ISDIR(mode) else 'a file'} {name!r} in the way",
            remediation="remove it first, or copy to another name",
        )


def _remove(parent: int, staging: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(staging, dir_fd=parent, follow_symlinks=False).st_mode):
            shutil.rmtree(staging, dir_fd=parent)
        else:
            os.unlink(staging, dir_fd=parent)


def _copy_entry(fd: int, parent: int, name: str, path: str, errand: _Errand) -> None:
    """Copy what `fd` is open on to `name` in `parent`; `path` is what to call it in words."""
    seen = os.fstat(fd)
    if stat.S_ISDIR(seen.st_mode):
        os.mkdir(name, 0o700, dir_fd=parent)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _ENTRY, dir_fd=parent)
    else:
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ENTRY, 0o600, dir_fd=parent)
    try:
        if stat.S_ISDIR(seen.st_mode):
            for entry in sorted(os.listdir(fd)):
                _copy_below(fd, entry, made, f"{path.rstrip('/')}/{entry}", errand)
        else:
            errand.moved.bytes += _copy_content(fd, made)
            errand.moved.files += 1
        if errand.owner is not None:
            os.fchown(made, *errand.owner)
        os.fchmod(made, stat.S_IMODE(seen.st_mode) & 0o1777)
        os.utime(made, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    finally:
        os.close(made)


def _copy_below(above: int, entry: str, made: int, path: str, errand: _Errand) -> None:
    mode = os.stat(entry, dir_fd=above, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(entry, dir_fd=above), entry, dir_fd=made)
        if errand.owner is not None:
            os.chown(entry, *errand.owner, dir_fd=made, follow_symlinks=False)
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        errand.moved.left_out.append(path)
        return
    fd = os.open(entry, os.O_RDONLY | _ENTRY, dir_fd=above)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) == stat.S_IFMT(mode):  # else it was exchanged just now
            _copy_entry(fd, made, entry, path, errand)
        else:
            errand.moved.left_out.append(path)
    finally:
        os.close(fd)


def _copy_content(fd: int, made: int) -> int:
    total = 0
    while piece := os.read(fd, _PIECE):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(made, rest) :]
        total += len(piece)
    return total
