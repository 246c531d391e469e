"""Reading from backends that nobody has reason to trust: descriptions and chunks, each checked as it arrives.

Several sources may hold the same snapshot; the first sound answer counts, and a source that failed is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from thawbox.errors import BackendUnavailable, CorruptSnapshot, IntegrityError, SnapshotNotFound, ThawboxError
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.codec import (
    CHUNK_LIMIT,
    MAX_PARCEL,
    Codec,
    LayerParcel,
    SnapshotParcel,
    decode_parcel,
    stored_limit,
)
from thawbox.store.layers import Index, decode_index
from thawbox.store.manifest import Manifest, decode_manifest
from thawbox.store.pack import Chunk, File, Stream, check_streams
from thawbox.store.transfer import Fault
from thawbox.store.unpack import check_index

_FoundT = TypeVar("_FoundT")


@dataclass(frozen=True, slots=True)
class SnapshotThere:
    """A snapshot described elsewhere: sound as far as a description can be."""

    id: SnapshotId
    manifest: Manifest
    signature: bytes
    content: bytes
    files: tuple[File, ...]
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class LayerThere:
    """A layer described elsewhere; its files are named by their place in the index."""

    index: Index
    files: tuple[File, ...]
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Backends to read from, in the order to ask them."""

    backends: Sequence[Backend]
    codec: Codec
    faults: list[Fault] = field(default_factory=list[Fault])

    def snapshot(self, snapshot: SnapshotId) -> SnapshotThere:
        """The description of a snapshot, checked against its id; raises SnapshotNotFound if nobody has one."""
        what = f"snapshot {snapshot[:12]}"

        def check(stored: bytes, name: str) -> SnapshotThere:
            parcel = decode_parcel(self.codec.decode(name, stored, limit=MAX_PARCEL), SnapshotParcel, what=what)
            manifest = decode_manifest(parcel.manifest, expected=snapshot)
            files = tuple(File(name.encode(), entry.size) for name, entry in sorted(manifest.files.items()))
            check_streams(parcel.streams, files, what=what)
            return SnapshotThere(snapshot, manifest, parcel.signature, parcel.manifest, files, parcel.streams)

        missing = SnapshotNotFound(f"{what} is not in {self._where()}", remediation="push or export it there first")
        return self._first_sound(self.codec.snapshot_name(snapshot), MAX_PARCEL, check, missing=missing)

    def layer(self, digest: str) -> LayerThere:
        """The description of a layer, checked against its digest, and for what it asks to be made."""
        what = f"layer {digest[:12]}"

        def check(stored: bytes, name: str) -> LayerThere:
            parcel = decode_parcel(self.codec.decode(name, stored, limit=MAX_PARCEL), LayerParcel, what=what)
            index = decode_index(parcel.index, expected=digest)
            check_index(index, what=what)
            files = tuple(File(b"%d" % at, one.size) for at, one in enumerate(index.entries) if one.kind == "f")
            check_streams(parcel.streams, files, what=what)
            return LayerThere(index, files, parcel.streams)

        missing = CorruptSnapshot(f"{what} is missing in {self._where()}")
        return self._first_sound(self.codec.layer_name(digest), MAX_PARCEL, check, missing=missing)

    def chunk(self, chunk: Chunk) -> tuple[bytes, int]:
        """A chunk's bytes, checked, and how many travelled for it."""

        def check(stored: bytes, name: str) -> tuple[bytes, int]:
            return self.codec.decode_chunk(name, stored, chunk), len(stored)

        missing = CorruptSnapshot(f"chunk {chunk.digest.hex()[:12]} is missing in {self._where()}")
        return self._first_sound(self.codec.chunk_name(chunk.digest), CHUNK_LIMIT, check, missing=missing)

    def _first_sound(
        self, name: str, limit: int, check: Callable[[bytes, str], _FoundT], *, missing: ThawboxError
    ) -> _FoundT:
        first_error: ThawboxError | None = None
        faults: list[Fault] = []
        for backend in self.backends:
            try:
                stored = backend.read(name, limit=stored_limit(limit))
                if stored is not None:
                    found = check(stored, name)
                    self.faults.extend(faults)  # only now: what no source has is an error, not a fault of one
                    return found
                faults.append(Fault(backend.where, name, "is missing"))
            except (IntegrityError, BackendUnavailable) as error:
                first_error = first_error or error
                faults.append(Fault(backend.where, name, error.cause))
        raise first_error or missing

    def _where(self) -> str:
        return ", ".join(backend.where for backend in self.backends)
