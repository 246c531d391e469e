"""The manifest: what a snapshot is. Its bytes are the commit, their SHA-256 is the snapshot's id.

Rule 1: a manifest is never changed. Names, labels, pins and times to live are kept beside it, in `refs`.
Rule 2: whatever decides whether a restore is a restore is named here by digest: the engine's files, the rootfs
layers, and, through its id, the parent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from thawbox.errors import CorruptSnapshot, Incompatible, InvalidRequest
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store.compat import Compat

FORMAT = 1
MAX_MANIFEST_BYTES = 16 << 20
"""A manifest of an honest snapshot is a few KiB; more than this is not read into memory."""

SIGNATURE = "signature.json"
"""The one file beside manifest and images: a signature of the id, so not covered by it."""
SNAPSHOT_FILES = frozenset({"images", "manifest.json", SIGNATURE})

DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
FILE_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]{0,199}")
"""Names of engine files: flat, printable, never hidden, never a path."""
TREE_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""Names of overlays, such as `root` or `usr`."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One engine file: its size in bytes and SHA-256."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a snapshot consists of. `layers` lists, base first, the layer digests of each overlay by name.

    `own_layers` are those of them that came with this snapshot; the others an earlier one brought.
    `links` are symbolic links among the engine's files; the only one allowed points to the parent's images.
    `flattens` names the delta whose chain this full snapshot holds rewritten as one. `body` belongs to the sandbox
    layer and means nothing to the store.
    """

    format: int
    kind: SnapshotKind
    parent: SnapshotId | None
    created_at: float
    files: dict[str, FileEntry]
    layers: dict[str, tuple[str, ...]]
    compat: Compat
    own_layers: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict[str, str])
    flattens: SnapshotId | None = None
    body: dict[str, object] = field(default_factory=dict[str, object])

    @property
    def images_bytes(self) -> int:
        """Bytes of the engine's files of this snapshot alone."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True, slots=True)
class Draft:
    """What a caller of `put` says about a snapshot; the store adds the digests.

    `layers` names, base first, the stored layers beneath each overlay; a staged tree of the same name goes on top.
    """

    kind: SnapshotKind
    compat: Compat
    parent: SnapshotId | None = None
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    flattens: SnapshotId | None = None
    body: Mapping[str, object] = field(default_factory=dict[str, object])


def parent_link(parent: SnapshotId) -> str:
    """The one link target allowed inside an images directory: the parent's, as seen from there.

    It resolves in a staging directory too, which lies beside the snapshots.
    """
    return f"../../{parent}/images"


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest: JSON with every key sorted."""
    return msgspec.json.encode(manifest, order="sorted")


def snapshot_id(content: bytes) -> SnapshotId:
    """The id of the snapshot whose manifest has these bytes."""
    return SnapshotId(hashlib.sha256(content).hexdigest())


def decode_manifest(content: bytes, *, expected: SnapshotId) -> Manifest:
    """The manifest with these bytes; raises CorruptSnapshot unless they hash to `expected` and are well-formed.

    Raises Incompatible for a store format that this version cannot read.
    """
    if snapshot_id(content) != expected:
        raise CorruptSnapshot(f"snapshot {expected[:12]}: manifest.json does not hash to the snapshot's id")
    try:
        version = msgspec.json.decode(content, type=_Version)
        if version.format != FORMAT:
            raise Incompatible(
                f"snapshot {expected[:12]} has store format {version.format}, this thawbox reads {FORMAT}",
                remediation="use the version of thawbox that wrote it, or a newer one",
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise CorruptSnapshot(f"snapshot {expected[:12]}: manifest.json is malformed: {error}") from None
    fault = manifest_fault(manifest)
    if fault:
        raise CorruptSnapshot(f"snapshot {expected[:12]}: manifest.json {fault}")
    return manifest


class _Version(msgspec.Struct):
    format: int


def manifest_fault(manifest: Manifest) -> str | None:
    """What makes a manifest impossible, in words; None if nothing does. Needs nothing but the manifest."""
    if (manifest.kind is SnapshotKind.DELTA) != (manifest.parent is not None):
        return f"is {manifest.kind.value} but parent is {manifest.parent}"
    for what in (manifest.parent, manifest.flattens):
        if what is not None and not DIGEST_PATTERN.fullmatch(what):
            return f"names {what!r}, which is no snapshot id"
    for name, entry in manifest.files.items():
        if not FILE_NAME_PATTERN.fullmatch(name) or entry.size < 0 or not DIGEST_PATTERN.fullmatch(entry.digest):
            return f"has an impossible file entry {name!r}"
    for name, target in manifest.links.items():
        allowed = manifest.parent is not None and target == parent_link(manifest.parent)
        if not allowed or not FILE_NAME_PATTERN.fullmatch(name) or name in manifest.files:
            return f"has the link {name!r} to {target!r}; only the parent's images may be linked"
    return _layers_fault(manifest)


def _layers_fault(manifest: Manifest) -> str | None:
    for name, digests in manifest.layers.items():
        if not TREE_NAME_PATTERN.fullmatch(name) or not all(DIGEST_PATTERN.fullmatch(digest) for digest in digests):
            return f"has an impossible layer list {name!r}"
    if not set(manifest.own_layers) <= {digest for digests in manifest.layers.values() for digest in digests}:
        return "has a layer of its own that it does not use"
    return None


def check_draft(draft: Draft) -> Draft:
    """Return the draft if a snapshot can be made of it, else raise InvalidRequest."""
    if (draft.kind is SnapshotKind.DELTA) != (draft.parent is not None):
        raise InvalidRequest(f"a {draft.kind.value} snapshot with parent {draft.parent}")
    for name, digests in draft.layers.items():
        if not TREE_NAME_PATTERN.fullmatch(name) or not all(DIGEST_PATTERN.fullmatch(digest) for digest in digests):
            raise InvalidRequest(f"layer list {name!r}: {digests!r} is not a list of layer digests")
    return draft
