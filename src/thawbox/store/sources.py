"""Reading from backends that nobody has reason to trust: descriptions and chunks, each checked as it arrives.

Several sources may hold the same snapshot; the first sound answer counts, and a source that failed is reported. One
that does not answer is asked last from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from thawbox.store.hedging import first_good
from thawbox.store.layers import Index, decode_index
from thawbox.store.manifest import Manifest, decode_manifest
from thawbox.store.pack import Chunk, File, Stream, check_streams
from thawbox.store.transfer import Fault, FaultKind
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
class _Failure:
    """An answer that is none: what to report, and what to raise if nobody has a better one."""

    fault: Fault
    error: ThawboxError | None


@dataclass(frozen=True, slots=True)
class Sources:
    """Backends to read from, in the order to ask them.

    `patience` is seconds after which the next one is asked beside one that has not answered; None: none is.
    """

    backends: Sequence[Backend]
    codec: Codec
    patience: float | None = None
    faults: list[Fault] = field(default_factory=list[Fault])
    _tardy: set[str] = field(default_factory=set[str])

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
        backends = sorted(self.backends, key=lambda backend: backend.where in self._tardy)  # stable: else in order
        late = [False] * len(backends)

        def ask(backend: Backend) -> _FoundT | _Failure:
            try:
                stored = backend.read(name, limit=stored_limit(limit))
                if stored is not None:
                    return check(stored, name)
            except IntegrityError as error:
                return _Failure(Fault(backend.where, name, error.cause), error)
            except BackendUnavailable as error:
                self._tardy.add(backend.where)
                return _Failure(Fault(backend.where, name, error.cause, FaultKind.UNREACHABLE), error)
            return _Failure(Fault(backend.where, name, "is missing", FaultKind.MISSING), None)

        def is_late(place: int) -> None:
            late[place] = True
            self._tardy.add(backends[place].where)

        asks = [partial(ask, backend) for backend in backends]
        found, failures = first_good(
            asks, is_good=lambda answer: not isinstance(answer, _Failure), patience=self.patience, is_late=is_late
        )
        if found is None or isinstance(found, _Failure):
            bad = [failure for failure in failures if isinstance(failure, _Failure)]
            raise next((failure.error for failure in bad if failure.error is not None), None) or missing
        # only now: what no source has is an error, not a fault of one
        self.faults.extend(failure.fault for failure in failures if isinstance(failure, _Failure))
        told = {fault.where for fault in self.faults if fault.name == name}
        cause = f"did not answer within {self.patience or 0:g} s"
        self.faults.extend(
            Fault(backend.where, name, cause, FaultKind.SLOW)
            for backend, was_late in zip(backends, late, strict=True)
            if was_late and backend.where not in told
        )
        return found

    def _where(self) -> str:
        return ", ".join(backend.where for backend in self.backends)
