"""Push: a snapshot's whole chain to a backend.

Order: a layer's or snapshot's chunks, then its description; parents before children; the head's description last.
So whoever finds a description finds everything it speaks of. Interrupted, the next push goes on: what is there by
name is not sent again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from thawbox.errors import CorruptSnapshot, IntegrityError
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.codec import CHUNK_LIMIT, PARCEL_FORMAT, Codec, LayerParcel, SnapshotParcel
from thawbox.store.pack import Chunk, File, Slice, Stream, cut, cut_evenly, group, read_slices, slices
from thawbox.store.seal import sealer_of
from thawbox.store.store import Store
from thawbox.store.transfer import THREADS, OnProgress, Tally, TransferReport, side_by_side


class _Sent(NamedTuple):
    chunk: Chunk
    stored: int


@dataclass(frozen=True, slots=True)
class _Pusher:
    store: Store
    backend: Backend
    codec: Codec
    tally: Tally
    threads: int
    repair: bool

    def has(self, name: str) -> bool:
        return not self.repair and self.backend.exists(name)

    def streams(self, root: Path, files: Sequence[File]) -> tuple[Stream, ...]:
        """Send the chunks of these files that are missing; what describes them all."""
        found: list[Stream] = []
        for members in group(files):
            path = Path(os.fsdecode(os.fsencode(root) + b"/" + members[0].name))
            alone = len(members) == 1
            sizes = cut(path, members[0].size) if alone else cut_evenly(sum(file.size for file in members))
            chunks: list[Chunk] = []

            def send(parts: list[Slice]) -> _Sent:
                return self._send(read_slices(root, parts), sum(part.size for part in parts))

            for sent in side_by_side(send, slices(members, sizes), threads=self.threads):
                chunks.append(sent.chunk)
                self.tally.add(sent.chunk.size, stored=sent.stored)
            found.append(Stream(tuple(file.name for file in members), tuple(chunks)))
        return tuple(found)

    def _send(self, content: bytes, size: int) -> _Sent:
        if len(content) != size:
            raise CorruptSnapshot("a file became shorter while it was being pushed")
        chunk = Chunk(hashlib.sha256(content).digest(), size)
        name = self.codec.chunk_name(chunk.digest)
        if self.backend.exists(name) and not (self.repair and self._is_damaged(name, chunk)):
            return _Sent(chunk, 0)
        stored = self.codec.encode(name, content)
        self.backend.write(name, stored)
        return _Sent(chunk, len(stored))

    def _is_damaged(self, name: str, chunk: Chunk) -> bool:
        try:
            stored = self.backend.read(name, limit=CHUNK_LIMIT)
            if stored is not None:
                self.codec.decode_chunk(name, stored, chunk)
        except IntegrityError:
            return True
        return stored is None

    def describe(self, name: str, parcel: SnapshotParcel | LayerParcel) -> None:
        """Write a description: the last step, after everything it names."""
        content = self.codec.encode(name, msgspec.msgpack.encode(parcel))
        if self.repair:
            self.backend.write(name, content)
        else:
            self.backend.write_once(name, content)

    def layer(self, digest: str) -> None:
        index = self.store.catalog.index(digest)
        paths = {str(at).encode(): entry for at, entry in enumerate(index.entries) if entry.kind == "f"}
        by_path = {entry.path: at for at, entry in paths.items()}
        files = [File(entry.path, entry.size) for entry in paths.values()]
        streams = tuple(
            Stream(tuple(by_path[name] for name in stream.files), stream.chunks)
            for stream in self.streams(self.store.layout.tree(digest), files)
        )
        content = (self.store.layout.layer(digest) / "index").read_bytes()
        self.describe(self.codec.layer_name(digest), LayerParcel(PARCEL_FORMAT, content, streams))

    def snapshot(self, snapshot: SnapshotId) -> None:
        manifest = self.store.manifest(snapshot)
        files = [File(name.encode(), entry.size) for name, entry in sorted(manifest.files.items())]
        streams = self.streams(self.store.layout.images(snapshot), files)
        content = self.store.catalog.manifest_bytes(snapshot)
        signature = self.store.signature(snapshot) or b""
        parcel = SnapshotParcel(PARCEL_FORMAT, content, signature, streams)
        self.describe(self.codec.snapshot_name(snapshot), parcel)


def push(
    store: Store,
    backend: Backend,
    snapshot: SnapshotId,
    *,
    on_progress: OnProgress | None = None,
    threads: int = THREADS,
    repair: bool = False,
) -> TransferReport:
    """Send a snapshot and its whole chain; only what is not there travels. Sealed if the store has a sealing key.

    `repair` trusts nothing that is there: every chunk is read back and replaced if it is wrong. Raises
    CorruptSnapshot before anything is sent if ours is damaged, BackendUnavailable; call again to go on.
    """
    tally = Tally(snapshot, on_progress)
    pusher = _Pusher(store, backend, Codec(sealer_of(store.keys)), tally, threads, repair)
    with store.reading(snapshot):
        chain = store.chain(snapshot)
        present = [link for link in chain if pusher.has(pusher.codec.snapshot_name(link))]
        missing = [link for link in chain if link not in present]
        layers = [digest for digest in _layers_of(store, missing) if not pusher.has(pusher.codec.layer_name(digest))]
        tally.expect(sum(store.manifest(link).images_bytes for link in missing))
        tally.expect(sum(store.catalog.layer_bytes(digest) for digest in layers))
        for link in missing:
            store.fetch(link)
        for digest in layers:
            pusher.layer(digest)
        for link in missing:
            pusher.snapshot(link)
    return tally.report(missing, present)


def _layers_of(store: Store, snapshots: Iterable[SnapshotId]) -> Iterator[str]:
    """Digests of all layers these snapshots need, each once, beneath before on top."""
    seen: dict[str, None] = {}
    for snapshot in snapshots:
        for digests in store.manifest(snapshot).layers.values():
            seen.update(dict.fromkeys(digests))
    return iter(seen)
