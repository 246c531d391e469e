"""Archives: a whole chain in one file, laid out like any backend, so that export is a push and import a pull.

The file is a zip with nothing compressed by zip itself (the objects are zstd already): any tool lists it, and an
object is found without reading the rest. Import treats it like a bucket that belongs to a stranger.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

from thawbox.errors import CorruptSnapshot, InvalidRequest
from thawbox.host.files import fsync_path, rename_durably
from thawbox.model import SnapshotId
from thawbox.store.codec import Codec
from thawbox.store.listing import Record
from thawbox.store.pull import pull, remote_snapshots
from thawbox.store.push import push
from thawbox.store.seal import sealer_of
from thawbox.store.sources import Sources
from thawbox.store.store import Store
from thawbox.store.transfer import OnProgress, TransferReport

MAX_OBJECTS = 1_000_000
_WHAT_ZIPFILE_RAISES = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError,
    OverflowError, UnicodeError, IndexError, KeyError, OSError,
)  # fmt: skip
"""For a damaged file it raises whatever it stumbled over; its documentation promises BadZipFile alone."""


class ZipBackend:
    """Objects in one zip file: written once from beginning to end, or read."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._lock = threading.Lock()
        self._names = set(archive.namelist())

    @property
    def where(self) -> str:
        return self._path.name

    def read(self, name: str, *, limit: int) -> bytes | None:
        if name not in self._names:
            return None
        try:
            found = self._archive.getinfo(name)
            if found.file_size > limit or found.compress_size > limit or found.compress_type != zipfile.ZIP_STORED:
                raise CorruptSnapshot(f"{self.where}: {name} is bigger than it can be, or compressed by zip")
            with self._archive.open(found) as file:
                return file.read(limit)
        except _WHAT_ZIPFILE_RAISES as error:
            raise CorruptSnapshot(f"{self.where}: {name} cannot be read: {error}") from None

    def exists(self, name: str) -> bool:
        return name in self._names

    def write(self, name: str, content: bytes) -> None:
        self.write_once(name, content)

    def write_once(self, name: str, content: bytes) -> bool:
        with self._lock:
            if name in self._names:
                return False
            self._archive.writestr(zipfile.ZipInfo(name), content)
            self._names.add(name)
            return True

    def names(self, prefix: str) -> Iterator[str]:
        return iter(sorted(name for name in self._names if name.startswith(prefix)))


@contextlib.contextmanager
def open_archive(path: Path) -> Generator[ZipBackend]:
    """An archive to read from; raises InvalidRequest if there is no such file, CorruptSnapshot if it is no archive."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except (FileNotFoundError, IsADirectoryError):
            raise InvalidRequest(f"there is no file {path}", remediation="give an archive made by export") from None
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
            too_many = len(archive.filelist) > MAX_OBJECTS
        except _WHAT_ZIPFILE_RAISES as error:
            raise CorruptSnapshot(f"{path.name} is not a whole archive: {error}") from None
        if too_many:
            raise CorruptSnapshot(f"{path.name} holds more than {MAX_OBJECTS} objects")
        yield ZipBackend(archive, path)


def export_archive(
    store: Store, snapshot: SnapshotId, path: Path, *, on_progress: OnProgress | None = None
) -> TransferReport:
    """Write a snapshot with its whole chain into one new file; the file appears when it is whole and durable.

    Sealed if the store has a sealing key, signed if the snapshot is. Raises InvalidRequest if there is such a file.
    """
    if path.exists():
        raise InvalidRequest(f"{path} exists", remediation="remove it, or export to another name")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as archive:
            report = push(store, ZipBackend(archive, path), snapshot, on_progress=on_progress)
        fsync_path(partial)
        rename_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def import_archive(
    store: Store, path: Path, *, name: str = "", on_progress: OnProgress | None = None
) -> tuple[Record, ...]:
    """Bring every chain of an archive into the store; returns their newest snapshots. Trusts nothing in the file.

    A snapshot is visible only when every byte of it was checked. `name` is given to the newest if there is just one.
    Raises CorruptSnapshot, BrokenChain, UntrustedSnapshot.
    """
    with open_archive(path) as backend:
        heads = _heads(store, backend)
        if not heads:
            raise CorruptSnapshot(f"{path.name} holds no snapshot")
        if name and len(heads) > 1:
            raise InvalidRequest(f"{path.name} holds {len(heads)} chains: one name does not fit them")
        for head in heads:
            pull(store, [backend], head, name=name, on_progress=on_progress)
        return tuple(store.record(head) for head in heads)


def _heads(store: Store, backend: ZipBackend) -> list[SnapshotId]:
    """The snapshots of an archive that are nobody's parent there."""
    sources = Sources([backend], Codec(sealer_of(store.keys)))
    ids = remote_snapshots(backend)
    parents = {sources.snapshot(one).manifest.parent for one in ids}
    return [one for one in ids if one not in parents]
