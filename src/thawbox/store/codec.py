"""Objects as they lie in a backend: their names, their envelope, and what describes a snapshot or layer there.

Layout of an object: `TBX1`, one byte (0 plain, 1 sealed), then one zstd frame, encrypted if sealed.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import zstandard

from thawbox.errors import CorruptSnapshot, InvalidRequest
from thawbox.model import SnapshotId
from thawbox.store.pack import MAX_CHUNK, Chunk, Stream
from thawbox.store.seal import SEALED_OVERHEAD, Sealer

PARCEL_FORMAT = 1
MAX_PARCEL = 256 << 20
_MAGIC = b"TBX1"
_PLAIN, _SEALED = b"\0", b"\1"
_LEVEL = 3
"""zstd's own default: 0.3 to 0.5 GB/s per core on memory images; higher levels save little and cost much."""


class SnapshotParcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot elsewhere: the exact bytes of its manifest and signature (empty: none), and its images as chunks."""

    format: int
    manifest: bytes
    signature: bytes
    streams: tuple[Stream, ...]


class LayerParcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A layer elsewhere: the exact bytes of its index, and its files as chunks, named by their place in the index."""

    format: int
    index: bytes
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """Names and envelopes under one node's sealing key, or in the plain without one."""

    sealer: Sealer | None = None
    _threads: threading.local = field(default_factory=threading.local, repr=False)

    def snapshot_name(self, snapshot: SnapshotId) -> str:
        return f"snapshots/{snapshot}"

    def layer_name(self, digest: str) -> str:
        return f"layers/{self._named(bytes.fromhex(digest))}"

    def chunk_name(self, digest: bytes) -> str:
        name = self._named(digest)
        return f"chunks/{name[:2]}/{name}"

    def _named(self, digest: bytes) -> str:
        return self.sealer.name(digest) if self.sealer else digest.hex()

    def encode(self, name: str, content: bytes) -> bytes:
        """The object to store under `name`."""
        frame = self._compressor().compress(content)
        if self.sealer is None:
            return _MAGIC + _PLAIN + frame
        return _MAGIC + _SEALED + self.sealer.seal(frame, name=name)

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._threads, "compressor", None)
        if compressor is None:  # one cannot be shared by threads
            compressor = self._threads.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        return compressor

    def decode(self, name: str, stored: bytes, *, limit: int) -> bytes:
        """The content of an object of at most `limit` bytes, which nobody has reason to trust yet.

        Raises CorruptSnapshot, UntrustedSnapshot when it cannot be opened, InvalidRequest when it is sealed and this
        node has no key.
        """
        magic, sealed, rest = stored[:4], stored[4:5], stored[5:]
        if magic != _MAGIC or sealed not in {_PLAIN, _SEALED}:
            raise CorruptSnapshot(f"the object {name} is not one of thawbox's")
        if sealed == _SEALED:
            if self.sealer is None:
                raise InvalidRequest(f"the object {name} is sealed", remediation="give this node the sealing key")
            rest = self.sealer.open(rest, name=name)
        try:
            declared = zstandard.get_frame_parameters(rest).content_size
            if declared > limit:  # unknown is the largest number there is
                raise CorruptSnapshot(f"the object {name} unpacks to {declared} bytes, more than it can have")
            return zstandard.ZstdDecompressor().decompress(rest, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(f"the object {name} does not unpack: {error}") from None

    def decode_chunk(self, name: str, stored: bytes, chunk: Chunk) -> bytes:
        """The bytes of a chunk, checked against its digest."""
        content = self.decode(name, stored, limit=chunk.size)
        if len(content) != chunk.size or hashlib.sha256(content).digest() != chunk.digest:
            raise CorruptSnapshot(f"the object {name} does not match its digest")
        return content


def stored_limit(content_limit: int) -> int:
    """Bytes that the object for at most `content_limit` bytes of content can have."""
    return content_limit + content_limit // 128 + 1024 + SEALED_OVERHEAD


CHUNK_LIMIT = stored_limit(MAX_CHUNK)


_ParcelT = TypeVar("_ParcelT", SnapshotParcel, LayerParcel)


def decode_parcel(content: bytes, parcel_type: type[_ParcelT], *, what: str) -> _ParcelT:
    """A parcel of the given type; raises CorruptSnapshot naming `what` if the bytes are not one."""
    try:
        parcel = msgspec.msgpack.decode(content, type=parcel_type)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptSnapshot(f"{what}: its description is malformed: {error}") from None
    if parcel.format != PARCEL_FORMAT:
        raise CorruptSnapshot(f"{what}: its description has format {parcel.format}, not {PARCEL_FORMAT}")
    return parcel
