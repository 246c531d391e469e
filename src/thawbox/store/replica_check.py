"""Reading everything that a replica has of a snapshot, as a pull would, and keeping nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain

from thawbox.chain import MAX_LINKS
from thawbox.errors import BackendUnavailable, IntegrityError, SnapshotNotFound
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.codec import Codec
from thawbox.store.pack import Chunk, Stream
from thawbox.store.sources import LayerThere, SnapshotThere, Sources
from thawbox.store.transfer import THREADS, Fault, FaultKind, side_by_side


def check_replica(backend: Backend, codec: Codec, snapshot: SnapshotId, *, threads: int = THREADS) -> tuple[Fault, ...]:
    """Everything that is wrong with a replica's copy of a snapshot and its chain; empty if nothing is.

    Stops at the first answer that does not come: a replica that is away says nothing about its bytes.
    """
    sources = Sources([backend], codec)
    faults: list[Fault] = []
    try:
        described = _descriptions(sources, snapshot, faults)
        layers = {digest for there in described for digests in there.manifest.layers.values() for digest in digests}
        streams = [stream for there in described for stream in there.streams]
        for digest in sorted(layers):
            layer = _tried(partial(sources.layer, digest), codec.layer_name(digest), backend, faults)
            if isinstance(layer, LayerThere):
                streams += layer.streams
        faults += _chunk_faults(sources, streams, backend, threads)
    except BackendUnavailable as error:
        faults.append(Fault(backend.where, codec.snapshot_name(snapshot), error.cause, FaultKind.UNREACHABLE))
    return tuple(faults)


def _descriptions(sources: Sources, head: SnapshotId, faults: list[Fault]) -> list[SnapshotThere]:
    found: list[SnapshotThere] = []
    at: SnapshotId | None = head
    while at is not None and len(found) < MAX_LINKS:
        name = sources.codec.snapshot_name(at)
        there = _tried(partial(sources.snapshot, at), name, sources.backends[0], faults)
        if not isinstance(there, SnapshotThere):
            break
        found.append(there)
        at = there.manifest.parent
    return found


def _chunk_faults(sources: Sources, streams: list[Stream], backend: Backend, threads: int) -> list[Fault]:
    wanted = {one.digest: one for one in chain.from_iterable(stream.chunks for stream in streams)}

    def look(one: Chunk) -> list[Fault]:
        faults: list[Fault] = []
        _tried(partial(sources.chunk, one), sources.codec.chunk_name(one.digest), backend, faults)
        return faults

    return list(chain.from_iterable(side_by_side(look, wanted.values(), threads=threads)))


def _tried(ask: Callable[[], object], name: str, backend: Backend, faults: list[Fault]) -> object:
    """What `ask` answers, or None with a fault; raises BackendUnavailable."""
    try:
        return ask()
    except (IntegrityError, SnapshotNotFound) as error:
        kind = FaultKind.DAMAGED if backend.exists(name) else FaultKind.MISSING
        faults.append(Fault(backend.where, name, error.cause, kind))
        return None
