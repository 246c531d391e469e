"""Trees inside a running sandbox's root as tar streams, out and in; the rules of inside_files.py hold."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from thawbox.errors import InvalidRequest
from thawbox.host.inside import open_inside
from thawbox.host.inside_files import (
    MODE_BITS,
    PIECE,
    is_kernel_made,
    make_directories,
    normal,
    open_directory,
    open_file,
    pieces,
    replacing,
    write_all,
)

_BLOCK = 512
_MEMBER_LIMIT = 1_000_000
_ORDINARY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_HEADERS_LIMIT = 1 << 20
_ENTRY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def archive(root: int, path: str) -> Iterator[bytes]:
    """A tar stream of a file or of what a directory holds, made as it is read.

    Links are kept as links; sockets, pipes, devices and what vanishes meanwhile are left out, and file systems that the
    kernel makes up. Raises OSError, InvalidRequest before the first piece for a path that cannot be read.
    """
    try:
        top = open_directory(root, path)
    except NotADirectoryError:
        yield from _single(root, path)
    else:
        try:
            yield from _below(top)
        finally:
            os.close(top)
    yield bytes(2 * _BLOCK)


def _single(root: int, path: str) -> Iterator[bytes]:
    file, seen = open_file(root, path)
    with file:
        yield from _member(PurePosixPath(path).name, seen, file)


def _below(top: int) -> Iterator[bytes]:
    """Every directory is opened anew from the top, by a path without links: one descriptor at a time."""
    waiting = [""]
    while waiting:
        at = waiting.pop()
        try:
            directory = open_inside(top, at or ".", os.O_RDONLY | os.O_DIRECTORY, follow_symlinks=False)
        except OSError as error:
            if at and isinstance(error, (FileNotFoundError, NotADirectoryError)):
                continue  # it went away, or became something else
            raise
        try:
            if is_kernel_made(directory):
                continue
            for name in sorted(os.listdir(directory), reverse=True):  # noqa: PTH208 - of a descriptor
                below = f"{at}/{name}" if at else name
                if (yield from _entry(directory, name, below)):
                    waiting.append(below)
        finally:
            os.close(directory)


def _entry(directory: int, name: str, path: str) -> Generator[bytes, None, bool]:
    """The member for one entry; the generator's own value is whether it is a directory."""
    try:
        seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(seen.st_mode):
            yield _header(path, seen, tarfile.SYMTYPE, link=os.readlink(name, dir_fd=directory))
        elif stat.S_ISDIR(seen.st_mode):
            yield _header(path, seen, tarfile.DIRTYPE)
            return True
        elif stat.S_ISREG(seen.st_mode):
            file, now = open_file(directory, name)
            with file:
                yield from _member(path, now, file)
    except (FileNotFoundError, NotADirectoryError, InvalidRequest, IsADirectoryError):
        return False
    return False


def _member(path: str, seen: os.stat_result, file: BinaryIO) -> Iterator[bytes]:
    yield _header(path, seen, tarfile.REGTYPE)
    left = seen.st_size
    for piece in pieces(file, 0, seen.st_size):
        left -= len(piece)
        yield piece
    while left > 0:  # it shrank: its header is gone out already
        yield bytes(min(left, PIECE))
        left -= min(left, PIECE)
    yield bytes(-seen.st_size % _BLOCK)


def _header(path: str, seen: os.stat_result, kind: bytes, *, link: str = "") -> bytes:
    info = tarfile.TarInfo(path + "/" * (kind == tarfile.DIRTYPE))
    info.type, info.linkname = kind, link
    info.size = seen.st_size if kind == tarfile.REGTYPE else 0
    info.mode, info.mtime = stat.S_IMODE(seen.st_mode), int(seen.st_mtime)
    info.uid, info.gid = seen.st_uid, seen.st_gid
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded: tarfile would read any number of bytes of them into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.type not in _ORDINARY and self.size > _HEADERS_LIMIT:
            raise tarfile.HeaderError("a header is too long")
        parent: Any = super()
        found: tarfile.TarInfo = parent._proc_member(tar)
        return found

    def _proc_sparse(self, *_: object) -> tarfile.TarInfo:
        raise tarfile.HeaderError("sparse members are not taken")

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.HeaderError("sparse members are not taken")


@dataclass(slots=True)
class Unpacked:
    """What was unpacked; `left_out` are members that are neither files, directories nor links."""

    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list[str])


def unpack(root: int, path: str, stream: BinaryIO, *, owner: tuple[int, int], limit: int) -> Unpacked:
    """Unpack a tar stream into a directory, which is made if it is missing; each file appears whole.

    Everything belongs to `owner`. Raises InvalidRequest for what is no tar, for a member that names a place outside the
    directory or behind a link, and for content of more than `limit` bytes; what came before it has then been unpacked.
    """
    make_directories(root, path, mode=0o755, owner=owner)
    top = open_directory(root, path)
    done = Unpacked()
    try:
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape", tarinfo=_Member) as tar:
            for number, member in enumerate(iter(tar.next, None), 1):
                vars(tar)["members"] = []  # else it remembers them all
                if number > _MEMBER_LIMIT:
                    raise InvalidRequest(f"the archive has more than {_MEMBER_LIMIT} members")
                done.bytes += member.size if member.isreg() else 0
                if done.bytes > limit:
                    raise InvalidRequest(f"the archive unpacks to more than {limit} bytes")
                _unpack_member(top, tar, member, owner, done)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError) as error:
        raise InvalidRequest(f"the archive cannot be read: {error}") from None
    finally:
        os.close(top)
    return done


def _unpack_member(
    top: int, tar: tarfile.TarFile, member: tarfile.TarInfo, owner: tuple[int, int], done: Unpacked
) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidRequest(f"the archive names a place outside: {_brief(member.name)}")
    if not parts:
        return
    path = normal("/" + "/".join(parts))
    if member.isdir():
        make_directories(top, path, mode=member.mode or 0o755, owner=owner)
        return
    make_directories(top, str(PurePosixPath(path).parent), mode=0o755, owner=owner)
    parent = open_inside(top, str(PurePosixPath(path).parent), os.O_RDONLY | os.O_DIRECTORY, follow_symlinks=False)
    try:
        if member.isreg():
            _unpack_file(parent, parts[-1], tar, member, owner)
        elif member.issym():
            _replace_link(parent, parts[-1], member.linkname, owner)
        elif member.islnk():
            _link(top, member.linkname, parent, parts[-1])
        else:
            done.left_out.append(_brief(member.name))
            return
        done.files += 1
    finally:
        os.close(parent)


def _unpack_file(parent: int, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, owner: tuple[int, int]) -> None:
    content = tar.extractfile(member)
    with replacing(parent, name, mode=member.mode & MODE_BITS, owner=owner) as fd:
        while content is not None and (piece := content.read(PIECE)):
            write_all(fd, piece)
        with contextlib.suppress(OverflowError, OSError, ValueError):  # a time that no clock knows
            os.utime(fd, (member.mtime, member.mtime))


def _replace_link(parent: int, name: str, target: str, owner: tuple[int, int]) -> None:
    _clear(parent, name)
    os.symlink(target, name, dir_fd=parent)
    with contextlib.suppress(FileNotFoundError):
        os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)


def _link(top: int, source: str, parent: int, name: str) -> None:
    """A second name for what was unpacked before, by a path in which no link is followed."""
    pure = PurePosixPath(normal("/" + source))
    if ".." in pure.parts:
        raise InvalidRequest(f"the archive names a place outside: {_brief(source)}")
    above = open_inside(top, str(pure.parent), os.O_RDONLY | os.O_DIRECTORY, follow_symlinks=False)
    try:
        _clear(parent, name)
        os.link(pure.name, name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(above)


def _clear(parent: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _brief(name: str) -> str:
    return os.fsencode(name)[:200].decode(errors="replace")
