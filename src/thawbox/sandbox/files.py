"""The files of a running sandbox, for a service: inside its own root alone, and never in the way of a dump.

A dump sees a file whole or not at all: while one is put into its place, none begins. What takes as long as a caller
takes (an upload) is gathered outside before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from thawbox.errors import InvalidPath, InvalidRequest, InvalidTransition, NoSpace, NotFound, PathNotFound, Unavailable
from thawbox.host import inside_archives, inside_files
from thawbox.host.files import private_directory
from thawbox.host.identity import lookup_user
from thawbox.host.inside import open_inside, open_root
from thawbox.host.inside_archives import Unpacked
from thawbox.host.inside_files import Entry, normal
from thawbox.lifecycle import ALIVE
from thawbox.model import SandboxId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import without_dumps
from thawbox.sandbox.observe import observe
from thawbox.sandbox.shells import root_layers

LIST_LIMIT = 100_000
_IN_MEMORY = 1 << 20


_NOT_FOUND = (errno.ENOENT,)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUSY = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.ENOMEM)
_INVALID = (
    errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES,
    errno.EPERM, errno.EROFS, errno.EBUSY, errno.EINVAL, errno.EXDEV, errno.ENXIO, errno.EOPNOTSUPP, errno.EMLINK,
    errno.ENODEV,
)  # fmt: skip


class Reading:
    """A regular file, open: its size when it was opened, and its bytes. A context manager."""

    def __init__(self, file: BinaryIO, seen: os.stat_result) -> None:
        self._file = file
        self.size = seen.st_size
        self.mtime = seen.st_mtime

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `begin` to `end`; fewer only if the file shrinks meanwhile."""
        return inside_files.pieces(self._file, begin, self.size if end is None else end)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upload:
    """What comes from a caller, gathered outside the sandbox until it is whole: in memory, then in a file without name.

    A context manager. `add` raises InvalidRequest beyond `limit` bytes.
    """

    def __init__(self, directory: Path, *, limit: int) -> None:
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(directory))  # noqa: SIM115 - see close
        self._limit = limit
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._limit:
            raise self._too_long()
        try:
            self._spool.write(piece)
        except OSError as error:
            raise _told(error, "the upload") from error

    def _too_long(self) -> InvalidRequest:
        remedy = "raise THAWBOX_UPLOAD_LIMIT, or send less"
        return InvalidRequest(f"the upload has more than {self._limit} bytes", remediation=remedy)

    def expect(self, size: int) -> None:
        """Raise as `add` would for so many bytes, before they come."""
        if size > self._limit:
            raise self._too_long()

    def rewound(self) -> BinaryIO:
        self._spool.seek(0)
        return cast("BinaryIO", self._spool)

    def close(self) -> None:
        self._spool.close()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Files:
    """The files of one sandbox. Paths are absolute, and resolved as a program inside would, within its root.

    Raises InvalidTransition when it has no processes, PathNotFound, InvalidPath, NoSpace, Unavailable.
    """

    def __init__(self, context: Context, sandbox: SandboxId) -> None:
        self._context = context
        self._sandbox = sandbox

    def open(self, path: str) -> Reading:
        """A regular file to read; the caller closes it."""
        with self._root(path) as (root, place):
            return Reading(*inside_files.open_file(root, place))

    def read(self, path: str) -> bytes:
        with self.open(path) as reading:
            return b"".join(reading.pieces())

    def upload(self, *, limit: int | None = None) -> Upload:
        """A place to gather what is to be written or unpacked."""
        scratch = private_directory(self._context.home / "scratch")
        return Upload(scratch, limit=self._context.settings.upload_limit if limit is None else limit)

    def write(self, path: str, content: bytes | Upload, *, mode: int | None = None, user: str = "") -> Entry:
        """Put a file there in one step, with the directories above it; a file or link of that name is replaced.

        It belongs to `user` (default: the sandbox's). Without `mode` it keeps that of the file it replaces, or has 644.
        """
        with self._change(path) as (root, place, record):
            owner = self._owner(record, user)
            inside_files.make_directories(root, str(PurePosixPath(place).parent), mode=0o755, owner=owner)
            with inside_files.parent_of(root, place) as (parent, name):
                bits = _mode_of(parent, name) if mode is None else mode
                with inside_files.replacing(parent, name, mode=bits, owner=owner) as fd:
                    if isinstance(content, Upload):
                        source = content.rewound()
                        while piece := source.read(inside_files.PIECE):
                            inside_files.write_all(fd, piece)
                    else:
                        inside_files.write_all(fd, content)
            return inside_files.describe(root, place)

    def list(self, path: str) -> list[Entry]:
        """What a directory holds, by name."""
        with self._root(path) as (root, place):
            return inside_files.entries(root, place, limit=LIST_LIMIT)

    def stat(self, path: str) -> Entry:
        """What a path names; a link is described itself."""
        with self._root(path) as (root, place):
            return inside_files.describe(root, place)

    def make_directory(self, path: str, *, mode: int = 0o755, user: str = "") -> Entry:
        """Make a directory and those above it; one that is there stays as it is."""
        with self._change(path) as (root, place, record):
            inside_files.make_directories(root, place, mode=mode, owner=self._owner(record, user))
            return inside_files.describe(root, place)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory; with `recursive` a whole tree."""
        with self._change(path) as (root, place, _):
            inside_files.remove(root, place, recursive=recursive)

    def archive(self, path: str) -> Generator[bytes]:
        """A tar stream of a file, or of what a directory holds."""
        with self._root(path) as (root, place):
            mine = os.dup(root)
        stream = self._archived(mine, place)
        next(stream)  # what cannot be read at all is told now
        return stream

    def _archived(self, root: int, path: str) -> Generator[bytes]:
        try:
            with _telling(path):
                stream = inside_archives.archive(root, path)
                first = next(stream)
                yield b""
                yield first
                yield from stream
        finally:
            os.close(root)

    def unpack(self, path: str, upload: Upload, *, user: str = "") -> Unpacked:
        """Unpack a tar archive into a directory, which is made if it is missing; each file appears whole."""
        with self._change(path) as (root, place, record):
            limit = self._context.settings.upload_limit
            owner = self._owner(record, user)
            return inside_archives.unpack(root, place, upload.rewound(), owner=owner, limit=limit)

    def _owner(self, record: Record, user: str) -> tuple[int, int]:
        account = lookup_user(root_layers(self._context, record), user or record.spec.user)
        return account.uid, account.gid

    @contextlib.contextmanager
    def _root(self, path: str) -> Generator[tuple[int, str]]:
        place = normal(path)
        with contextlib.ExitStack() as closing:
            root = open_living_root(self._context, self._sandbox)[0]
            closing.callback(os.close, root)
            with _telling(place):
                yield root, place

    @contextlib.contextmanager
    def _change(self, path: str) -> Generator[tuple[int, str, Record]]:
        place = normal(path)
        record = self._context.journal.find(self._sandbox)
        with without_dumps(self._context, record), contextlib.ExitStack() as closing:
            root, record = open_living_root(self._context, self._sandbox)
            closing.callback(os.close, root)
            with _telling(place):
                yield root, place, record


def open_living_root(context: Context, sandbox: SandboxId) -> tuple[int, Record]:
    """The root of a sandbox that has processes, open; raises InvalidTransition for one that has none."""
    record = observe(context, context.journal.find(sandbox))
    if record.phase in ALIVE:
        with contextlib.suppress(NotFound):
            return open_root(record.keeper_pid, started=record.keeper_started), record
        record = observe(context, record)
    remedy = "restore it, or clone one of its snapshots"
    raise InvalidTransition(f"{record.name} is {record.phase.value}: it has no files now", remediation=remedy)


@contextlib.contextmanager
def _telling(path: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _told(error, path) from error


def _told(error: OSError, path: str) -> Exception:
    """What the kernel refused, as an error of ours; what is our own disk's failure stays as it is."""
    shown = path if len(path) <= 300 else path[:300] + "…"
    what = f"{shown}: {os.strerror(error.errno)}" if error.errno else f"{shown}: {error}"
    families: tuple[tuple[tuple[int, ...], Callable[[str], Exception]], ...] = (
        (_NOT_FOUND, PathNotFound), (_NO_SPACE, NoSpace), (_BUSY, Unavailable), (_INVALID, InvalidPath),
    )  # fmt: skip
    return next((make(what) for numbers, make in families if error.errno in numbers), error)


def _mode_of(parent: int, name: str) -> int:
    """The mode of a regular file of that name, or what a new one gets."""
    with contextlib.suppress(OSError):
        known = open_inside(parent, name, os.O_PATH, follow_symlinks=False)
        try:
            seen = os.fstat(known)
        finally:
            os.close(known)
        if inside_files.is_file(seen):
            return seen.st_mode & inside_files.MODE_BITS
    return 0o644
