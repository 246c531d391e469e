"""Files inside a running sandbox's root, for callers that do not trust what runs in there.

Rule 1: a directory is opened by the kernel inside the root (inside.py), once; what is done then is done to one name in
it, by descriptor, and no link is followed. A program that moves things meanwhile moves them within its own root.
Rule 2: nothing is opened before it is known, by a descriptor that opens nothing (O_PATH), to be a regular file or a
directory: no device is woken, no pipe waited for.
Rule 3: what is written grows under a name of its own and is renamed into its place.
Rule 4: file systems that the kernel makes up (proc, sysfs, …) are none of these files: reading or writing them would
be done with our rights, not with the sandbox's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from thawbox.errors import InvalidRequest
from thawbox.host.inside import open_inside

PIECE = 256 << 10
MODE_BITS = 0o1777
"""What of a mode is taken over from outside: never set-user-id or set-group-id."""
_PATH_LIMIT = 4095
_ENTRY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEEPEST = 4096
_FIXED_DEEPEST = 150
_ROUNDS = 100_000

_KERNEL_FILE_SYSTEMS = frozenset({
    0x9FA0,  # proc
    0x62656572,  # sysfs
    0x27E0EB, 0x63677270,  # cgroup, cgroup2
    0x1CD1,  # devpts
    0x19800202,  # mqueue
    0x64626720, 0x74726163,  # debugfs, tracefs
    0x73636673, 0x62656570, 0xCAFE4A11,  # securityfs, configfs, bpf
    0x6E736673, 0x50494446,  # nsfs, pidfs
    0x187,  # autofs: a look would mount
    0x42494E4D, 0x6C6F6F70,  # binfmt_misc, binder
    0xDE5E81E4, 0x6165676C,  # efivarfs, pstore
})  # fmt: skip
"""linux/magic.h."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory, link or other thing. `type` is `file, directory, symlink, fifo, socket, device`."""

    name: str
    path: str
    type: str
    size: int
    mode: int
    mtime: float
    target: str | None
    uid: int
    gid: int


def normal(path: str) -> str:
    """An absolute path without doubled slashes; `..` stays, for the kernel to resolve. Raises InvalidRequest."""
    if not path.startswith("/"):
        raise InvalidRequest("a path inside a sandbox begins with a slash")
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the path holds characters that are none") from None
    if b"\0" in raw:
        raise InvalidRequest("the path holds a NUL byte")
    if len(raw) > _PATH_LIMIT:
        raise InvalidRequest(f"the path is {len(raw)} bytes long, more than {_PATH_LIMIT}")
    return str(PurePosixPath("/" + path.lstrip("/")))


@contextlib.contextmanager
def parent_of(root: int, path: str) -> Generator[tuple[int, str]]:
    """The directory that a path lies in, open, and its last name; raises InvalidRequest for `/` and for `..`."""
    pure = PurePosixPath(path)
    if pure.name in ("", ".."):
        raise InvalidRequest(f"{path} names no file in a directory")
    fd = open_inside(root, str(pure.parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        _refuse_kernel(fd, path)
        yield fd, pure.name
    finally:
        os.close(fd)


def open_file(root: int, path: str) -> tuple[BinaryIO, os.stat_result]:
    """A regular file to read, and what was seen of it; raises InvalidRequest for anything else, OSError."""
    fd = _reopened(open_inside(root, path, os.O_PATH), path, directory=False)
    return os.fdopen(fd, "rb", buffering=0), os.fstat(fd)


def open_directory(root: int, path: str) -> int:
    """A directory to list; raises InvalidRequest for one that the kernel makes up, OSError."""
    return _reopened(open_inside(root, path, os.O_PATH), path, directory=True)


def _reopened(known: int, path: str, *, directory: bool) -> int:
    """What an O_PATH descriptor names, open to read; that one is closed."""
    try:
        mode = os.fstat(known).st_mode
        if stat.S_ISDIR(mode) != directory:
            number = errno.ENOTDIR if directory else errno.EISDIR
            if directory or stat.S_ISDIR(mode):
                raise OSError(number, os.strerror(number), path)
        if not directory and not stat.S_ISREG(mode):
            raise InvalidRequest(f"{path} is a {_kind(mode)}: it has no content to read")
        _refuse_kernel(known, path)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (os.O_DIRECTORY if directory else 0)
        return os.open(f"/proc/self/fd/{known}", flags)  # the same inode, whatever became of its name
    finally:
        os.close(known)


def _refuse_kernel(fd: int, path: str) -> None:
    if is_kernel_made(fd):
        raise InvalidRequest(f"{path} lies in a file system that the kernel makes up", remediation="read it by `exec`")


def is_kernel_made(fd: int) -> bool:
    """Whether a descriptor lies in a file system that the kernel makes up."""
    answer = ctypes.create_string_buffer(256)  # struct statfs; its first word is f_type
    if _libc.fstatfs(fd, answer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(answer).value in _KERNEL_FILE_SYSTEMS


def describe(root: int, path: str) -> Entry:
    """What a path names, links not followed at its end; `/` too."""
    if PurePosixPath(path).name in ("", ".."):
        fd = open_directory(root, path)
        try:
            return _entry(fd, "", path, os.fstat(fd))
        finally:
            os.close(fd)
    with parent_of(root, path) as (parent, name):
        return _entry(parent, name, path, os.stat(name, dir_fd=parent, follow_symlinks=False))


def entries(root: int, path: str, *, limit: int) -> list[Entry]:
    """What a directory holds, by name; raises InvalidRequest where that is more than `limit`."""
    fd = open_directory(root, path)
    try:
        names: list[str] = []
        with os.scandir(fd) as found:
            for one in found:
                if len(names) >= limit:
                    raise InvalidRequest(
                        f"{path} holds more than {limit} entries", remediation="list it by `exec`, or as an archive"
                    )
                names.append(one.name)
        listed: list[Entry] = []
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
                listed.append(_entry(fd, name, f"{path.rstrip('/')}/{name}", seen))
        return listed
    finally:
        os.close(fd)


def _entry(parent: int, name: str, path: str, seen: os.stat_result) -> Entry:
    target = None
    if stat.S_ISLNK(seen.st_mode):
        with contextlib.suppress(OSError):  # it was replaced just now
            target = _shown(os.readlink(name, dir_fd=parent))
    return Entry(
        _shown(name), _shown(path), _kind(seen.st_mode), seen.st_size, stat.S_IMODE(seen.st_mode), seen.st_mtime,
        target, seen.st_uid, seen.st_gid,
    )  # fmt: skip


def _shown(name: str) -> str:
    """A name as text: bytes that are no UTF-8 become question marks of Unicode's."""
    return os.fsencode(name).decode(errors="replace")


def is_file(seen: os.stat_result) -> bool:
    return stat.S_ISREG(seen.st_mode)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "device")


def pieces(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The bytes from `begin` to `end`; fewer if the file shrinks meanwhile. The caller closes the file."""
    at = begin
    while at < end and (piece := os.pread(file.fileno(), min(PIECE, end - at), at)):
        at += len(piece)
        yield piece


def make_directories(root: int, path: str, *, mode: int, owner: tuple[int, int]) -> None:
    """Make a directory and what is missing above it; raises FileExistsError where something else is in the way."""
    missing: list[str] = []
    at = path
    while len(missing) < _DEEPEST:
        try:
            known = open_inside(root, at, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            missing.append(at)
            at = str(PurePosixPath(at).parent)
            continue
        except NotADirectoryError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), at) from None
        os.close(known)
        break
    for one in reversed(missing):
        with parent_of(root, one) as (parent, name):
            make_directory(parent, name, mode=mode, owner=owner)


def make_directory(parent: int, name: str, *, mode: int, owner: tuple[int, int]) -> None:
    """Make one directory, if it is not there. It is given away only while it is surely the one that was made."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        return
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _ENTRY, dir_fd=parent)
    try:
        seen = os.fstat(made)
        ours = (seen.st_uid, stat.S_IMODE(seen.st_mode)) == (os.geteuid(), 0o700) and not _listed(made)
        if ours:  # else a program exchanged it for one of its root's: that one keeps its owner
            os.fchown(made, *owner)
            os.fchmod(made, mode & MODE_BITS)
    finally:
        os.close(made)


@contextlib.contextmanager
def replacing(parent: int, name: str, *, mode: int, owner: tuple[int, int]) -> Generator[int]:
    """A descriptor to write to, which becomes the file `name` at the end of the block, in one step; or nothing does."""
    staging = f".thawbox-{secrets.token_hex(6)}"
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ENTRY, 0o600, dir_fd=parent)
    try:
        try:
            yield fd
            os.fchown(fd, *owner)
            os.fchmod(fd, mode & MODE_BITS)
        finally:
            os.close(fd)
        os.rename(staging, name, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        with contextlib.suppress(OSError):  # not there any more, if all went well
            os.unlink(staging, dir_fd=parent)


def write_all(fd: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def remove(root: int, path: str, *, recursive: bool) -> None:
    """Remove what a path names, a link itself; a directory that is not empty only if `recursive`."""
    with parent_of(root, path) as (parent, name):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
        elif not recursive:
            os.rmdir(name, dir_fd=parent)
        else:
            _remove_below(parent, name)
            os.rmdir(name, dir_fd=parent)


def _remove_below(parent: int, name: str, depth: int = 0) -> None:
    """Empty a directory, however deep: what is a directory below is brought up before it is emptied in its turn.

    So few descriptors are open at a time, and a tree of any depth costs no more than its size.
    """
    top = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _ENTRY, dir_fd=parent)
    try:
        for _ in range(_ROUNDS):  # one for each level, and some for a program that goes on writing
            children = _listed(top)
            if not children:
                return
            for child in children:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    _remove_child(top, child, depth)
    finally:
        os.close(top)


def _remove_child(top: int, child: str, depth: int) -> None:
    """Remove what is no directory; of a directory all but the directories in it, which are put beside it."""
    if not stat.S_ISDIR(os.stat(child, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(child, dir_fd=top)
        return
    below = os.open(child, os.O_RDONLY | os.O_DIRECTORY | _ENTRY, dir_fd=top)
    try:
        if os.fstat(below).st_dev != os.fstat(top).st_dev:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), child)  # another file system is mounted there
        for name in _listed(below):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                _bring_up(below, name, top, depth)
    finally:
        os.close(below)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(child, dir_fd=top)


def _listed(directory: int) -> list[str]:
    return os.listdir(directory)


def _bring_up(below: int, name: str, top: int, depth: int) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=below, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=below)
        return
    try:
        os.rename(name, f".thawbox-{secrets.token_hex(8)}", src_dir_fd=below, dst_dir_fd=top)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if depth >= _FIXED_DEEPEST:
            raise InvalidRequest("the tree is too deep", remediation="remove it by `exec`, with rm -rf") from None
        _remove_below(below, name, depth + 1)  # of a lower layer, whose directories cannot be moved
        os.rmdir(name, dir_fd=below)
