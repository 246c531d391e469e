"""Put: how a staging directory becomes a snapshot.

Order, and what a crash leaves (docs/store-format.md has the table):
1. flush what was staged; hash it; write indices and manifest into the staging directory; flush again
2. under the shared lock: rows in refs, then each new layer renamed into place, then the staging directory itself,
   stripped to what a snapshot holds, renamed to `snapshots/<id>`: the commit
3. remember the verification; drop superseded names
Nothing before the last rename is visible as a snapshot; what is left of a dead process is swept by the next open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import BrokenChain, CorruptSnapshot, InvalidRequest
from thawbox.host.files import names_in, rename_durably, sync_tree, write_durably
from thawbox.model import SnapshotId
from thawbox.store.catalog import Catalog, Layout
from thawbox.store.digests import Mark
from thawbox.store.layers import Scan, encode_index, is_bare, layer_digest, scan_tree
from thawbox.store.manifest import (
    FORMAT,
    SIGNATURE,
    SNAPSHOT_FILES,
    TREE_NAME_PATTERN,
    Draft,
    Manifest,
    check_draft,
    encode_manifest,
    manifest_fault,
    snapshot_id,
)
from thawbox.store.staging import Staging, private_name
from thawbox.store.verify import layer_marks, scan_images, snapshot_marks


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer hashed and wrapped in the staging directory, ready to be renamed into `layers/`."""

    digest: str
    path: Path
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A snapshot complete in its staging directory: everything durable but its name."""

    staging: Staging
    id: SnapshotId
    manifest: Manifest
    layers: tuple[NewLayer, ...]
    marks: tuple[Mark, ...]


def prepare(
    staging: Staging, draft: Draft, *, created_at: float, catalog: Catalog, sign: Callable[[SnapshotId], bytes] | None
) -> Prepared:
    """Hash and flush what was staged and write its manifest beside it. Slow, takes no lock, changes nothing visible."""
    check_draft(draft)
    wrappers = _wrap_trees(staging)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="flush") as beside:  # the disk writes while the processor hashes
        flushed = beside.submit(sync_tree, staging.path)
        scans = {name: scan_tree(wrapper / "tree") for name, wrapper in wrappers.items()}
        files, links, image_marks = scan_images(staging.images)
        flushed.result()
    layers = {name: tuple(digests) for name, digests in draft.layers.items()}
    new_layers: list[NewLayer] = []
    for name, scan in scans.items():
        beneath = layers.get(name, ())
        if beneath and is_bare(scan.index, catalog.index(beneath[-1])):
            continue
        new_layers.append(seal_layer(wrappers[name], scan))
        layers[name] = (*beneath, new_layers[-1].digest)
    manifest = Manifest(
        format=FORMAT, kind=draft.kind, parent=draft.parent, created_at=created_at, files=files, layers=layers,
        own_layers=tuple(layer.digest for layer in new_layers), compat=draft.compat, links=links,
        flattens=draft.flattens, body=dict(draft.body),
    )  # fmt: skip
    fault = manifest_fault(manifest)
    if fault:
        raise InvalidRequest(f"this cannot become a snapshot: its manifest {fault}")
    return finish(staging, encode_manifest(manifest), manifest, tuple(new_layers), image_marks, sign=sign)


def finish(
    staging: Staging,
    content: bytes,
    manifest: Manifest,
    new_layers: tuple[NewLayer, ...],
    image_marks: list[Mark],
    *,
    sign: Callable[[SnapshotId], bytes] | None,
) -> Prepared:
    """Write the manifest's bytes, and the signature, into the staging directory: the last step before the commit."""
    snapshot = snapshot_id(content)
    if sign is not None:
        write_durably(staging.path / SIGNATURE, sign(snapshot))
    write_durably(staging.path / "manifest.json", content)
    return Prepared(staging, snapshot, manifest, new_layers, tuple(snapshot_marks(staging.path, image_marks)))


def _wrap_trees(staging: Staging) -> dict[str, Path]:
    """Move each staged tree into the directory that will be renamed into `layers/`; by overlay name, sorted."""
    wrappers: dict[str, Path] = {}
    for name in sorted(names_in(staging.layer)):
        if not TREE_NAME_PATTERN.fullmatch(name):
            raise InvalidRequest(f"{name!r} is no name for a layer tree")
        wrappers[name] = staging.path / f"layer-{name}"
        wrappers[name].mkdir(mode=0o700)
        (staging.layer / name).rename(wrappers[name] / "tree")
    return wrappers


def seal_layer(wrapper: Path, scan: Scan) -> NewLayer:
    """Write the index of a scanned, flushed `wrapper/tree` beside it: the layer is complete but for its place."""
    content = encode_index(scan.index)
    write_durably(wrapper / "index", content)
    return NewLayer(layer_digest(content), wrapper, tuple(layer_marks(wrapper, scan.marks)))


def check_named_parts(prepared: Prepared, catalog: Catalog) -> None:
    """Raise BrokenChain or CorruptSnapshot if the manifest names a parent or layer that is not there."""
    parent = prepared.manifest.parent
    if parent is not None and not catalog.exists(parent):
        raise BrokenChain(f"the parent {parent[:12]} of the new snapshot is not in this store")
    arriving = {layer.digest for layer in prepared.layers}
    for name, digests in prepared.manifest.layers.items():
        for digest in digests:
            if digest not in arriving and not catalog.has_layer(digest):
                raise CorruptSnapshot(f"layer {digest[:12]} of {name!r} is not in this store")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit renamed into place, and the trash directory with what was left over, to be removed unlocked."""

    trash: Path
    layers: tuple[NewLayer, ...]
    is_new: bool


def commit(prepared: Prepared, layout: Layout, *, replaceable: frozenset[str]) -> Committed:
    """Rename the layers, then the snapshot, into place; the caller holds the shared lock and has checked the parts.

    A stored layer or snapshot that is named in `replaceable` is damaged and gives way to the new one.
    """
    trash = layout.snapshots / private_name("trash")
    trash.mkdir(mode=0o700)
    staging = prepared.staging.path
    arrived: list[NewLayer] = []
    for layer in prepared.layers:
        target = layout.layer(layer.digest)
        if layer.digest in replaceable and target.is_dir():
            target.rename(trash / layer.digest)
        if not target.is_dir():
            rename_durably(layer.path, target)
            arrived.append(layer)
    for name in names_in(staging):
        if name not in SNAPSHOT_FILES:
            (staging / name).rename(trash / name)
    if prepared.id in replaceable:
        layout.snapshot(prepared.id).rename(trash / prepared.id)
    is_new = not layout.snapshot(prepared.id).is_dir()
    if is_new:
        rename_durably(staging, layout.snapshot(prepared.id))
    else:  # the same manifest, byte for byte, is here already
        staging.rename(trash / "staging")
    return Committed(trash, tuple(arrived), is_new)
