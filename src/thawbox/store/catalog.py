"""What is in the store: its directories, and the manifests in them, read once and checked against their ids."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from thawbox.chain import chain_of
from thawbox.errors import BrokenChain, CorruptSnapshot, IntegrityError, SnapshotNotFound
from thawbox.host.files import names_in, private_directory
from thawbox.model import SnapshotId
from thawbox.store.layers import Index, content_bytes, decode_index
from thawbox.store.manifest import DIGEST_PATTERN, MAX_MANIFEST_BYTES, Manifest, decode_manifest


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie below the store's root."""

    root: Path

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def verified(self) -> Path:
        return self.root / "verified"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def refs(self) -> Path:
        return self.root / "refs.sqlite"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def snapshot(self, snapshot: SnapshotId) -> Path:
        return self.snapshots / snapshot

    def images(self, snapshot: SnapshotId) -> Path:
        return self.snapshots / snapshot / "images"

    def layer(self, digest: str) -> Path:
        return self.layers / digest

    def tree(self, digest: str) -> Path:
        """The directory that overlayfs takes as a lower directory."""
        return self.layers / digest / "tree"

    def make(self) -> None:
        private_directory(self.root)
        for directory in (self.snapshots, self.layers, self.verified, self.incoming):
            directory.mkdir(mode=0o700, exist_ok=True)


class Catalog:
    """Reads of the store. A manifest never changes, so each is decoded once per process."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._manifests: dict[SnapshotId, Manifest] = {}
        self._layer_bytes: dict[str, int] = {}

    def ids(self) -> set[SnapshotId]:
        """Ids of all committed snapshots, damaged or not."""
        return {SnapshotId(name) for name in names_in(self._layout.snapshots) if DIGEST_PATTERN.fullmatch(name)}

    def exists(self, snapshot: SnapshotId) -> bool:
        return self._layout.snapshot(snapshot).is_dir()

    def manifest(self, snapshot: SnapshotId) -> Manifest:
        """The manifest of a snapshot; raises SnapshotNotFound, or CorruptSnapshot if its bytes are not its id's."""
        if not self.exists(snapshot):
            raise SnapshotNotFound(f"there is no snapshot {snapshot[:12]} in this store")
        with self._lock:
            known = self._manifests.get(snapshot)
        return known if known is not None else self.read_manifest(snapshot)

    def read_manifest(self, snapshot: SnapshotId) -> Manifest:
        """The manifest as it lies on the disk now, whatever was read before."""
        with self._lock:
            self._manifests.pop(snapshot, None)
        content = self.manifest_bytes(snapshot)
        manifest = decode_manifest(content, expected=snapshot)
        with self._lock:
            self._manifests[snapshot] = manifest
        return manifest

    def manifest_bytes(self, snapshot: SnapshotId) -> bytes:
        try:
            with (self._layout.snapshot(snapshot) / "manifest.json").open("rb") as file:
                content = file.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            raise CorruptSnapshot(f"snapshot {snapshot[:12]}: manifest.json is missing") from None
        if len(content) > MAX_MANIFEST_BYTES:
            raise CorruptSnapshot(f"snapshot {snapshot[:12]}: manifest.json is longer than {MAX_MANIFEST_BYTES} bytes")
        return content

    def manifests(self) -> tuple[dict[SnapshotId, Manifest], dict[SnapshotId, IntegrityError]]:
        """All readable manifests, and why the others are not."""
        readable: dict[SnapshotId, Manifest] = {}
        damaged: dict[SnapshotId, IntegrityError] = {}
        for snapshot in self.ids():
            try:
                readable[snapshot] = self.manifest(snapshot)
            except IntegrityError as error:
                damaged[snapshot] = error
            except SnapshotNotFound:
                continue
        return readable, damaged

    def chain(self, snapshot: SnapshotId) -> tuple[SnapshotId, ...]:
        """The ids of a snapshot's chain, base first; raises BrokenChain naming the missing link."""
        self.manifest(snapshot)
        return chain_of(snapshot, self._parent_of)

    def _parent_of(self, snapshot: SnapshotId) -> SnapshotId | None:
        try:
            return self.manifest(snapshot).parent
        except SnapshotNotFound:
            raise BrokenChain(f"snapshot {snapshot[:12]} is missing, and another is a delta of it") from None

    def index(self, digest: str) -> Index:
        """The index of a stored layer; raises CorruptSnapshot when it is missing or damaged."""
        try:
            content = (self._layout.layer(digest) / "index").read_bytes()
        except FileNotFoundError:
            raise CorruptSnapshot(f"layer {digest[:12]}, or its index, is not in this store") from None
        return decode_index(content, expected=digest)

    def has_layer(self, digest: str) -> bool:
        return self._layout.layer(digest).is_dir()

    def layer_bytes(self, digest: str) -> int:
        """Bytes of file content in a layer; 0 if it cannot be read."""
        known = self._layer_bytes.get(digest)
        if known is None:
            try:
                known = content_bytes(self.index(digest))
            except IntegrityError:
                return 0
            self._layer_bytes[digest] = known
        return known

    def layers_on_disk(self) -> set[str]:
        return {name for name in names_in(self._layout.layers) if DIGEST_PATTERN.fullmatch(name)}
