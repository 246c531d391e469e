"""Checkpoint archives for other people's tools: one file that is both a checkpoint archive and an OCI image.

At the top of the tar lies what `checkpointctl show` and `podman container restore --import` look for (`config.dump`,
`spec.dump`, `checkpoint/`, `rootfs-diff.tar`); beside it an OCI image layout whose one layer holds the same again,
annotated as CRI-O, containerd and Podman annotate theirs, so that it can be pushed to a registry.
Names and fields follow checkpointctl's lib/metadata.go and lib/annotations.go, and Podman's libpod/define package.
docs/store-format.md says what those runtimes can restore from it and what they cannot.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple, cast

import msgspec
import zstandard

from thawbox.errors import InvalidRequest
from thawbox.host.files import fsync_path, remove_tree, rename_durably
from thawbox.store.layers import Entry, Index, shown

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
_TAR_TYPES = {
    "d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE, "c": tarfile.CHRTYPE,
    "b": tarfile.BLKTYPE, "p": tarfile.FIFOTYPE,
}  # fmt: skip
_STAT_TYPES = {"f": stat.S_IFREG, "l": stat.S_IFLNK, "c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """What other tools want to know of a checkpointed sandbox. Times are seconds since the epoch."""

    id: str
    name: str
    image: str
    arch: str
    engine: str
    created_at: float
    checkpointed_at: float
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    hostname: str = ""
    annotations: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class LayerTree:
    """One stored layer: where its tree lies, and its index."""

    tree: Path
    index: Index


def export_checkpoint(
    description: CheckpointDescription, images: Path, layers: Mapping[str, Sequence[LayerTree]], path: Path
) -> None:
    """Write one full set of images, with its writable layers, as a checkpoint archive; it appears when it is whole.

    `layers` are base first, by the path they are seen at inside the sandbox (`""` for its root). Raises
    InvalidRequest if the file exists or the images are a delta: other tools read no chains.
    """
    if path.exists():
        raise InvalidRequest(f"{path} exists", remediation="remove it, or export to another name")
    if (images / "parent").is_symlink():
        raise InvalidRequest("a delta cannot be exported for other tools", remediation="flatten the snapshot first")
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _write(description, images, layers, work)
        fsync_path(work / "archive")
        rename_durably(work / "archive", path)
    finally:
        remove_tree(work)


def _write(
    description: CheckpointDescription, images: Path, layers: Mapping[str, Sequence[LayerTree]], work: Path
) -> None:
    deleted = _write_rootfs_diff(layers, work / "rootfs-diff.tar")
    parts = {
        "config.dump": _json(_config_dump(description)),
        "spec.dump": _json(_spec_dump(description)),
        "deleted.files": _json(deleted),
    }
    layer = _write_layer(parts, images, work)
    blobs = _image_blobs(description, layer)
    index = _json(_index(description, blobs[0]))
    with tarfile.open(work / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}.items():
            _add_bytes(archive, name, content)
        for blob in blobs:
            _add_bytes(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        archive.add(work / "layer", arcname=f"blobs/sha256/{layer.digest}")
        _add_checkpoint(archive, parts, images, work)


def _add_checkpoint(archive: tarfile.TarFile, parts: Mapping[str, bytes], images: Path, work: Path) -> None:
    """The files of a checkpoint archive, as Podman lays them out."""
    for name, content in parts.items():
        _add_bytes(archive, name, content)
    archive.add(images, arcname="checkpoint", recursive=False)
    for image in sorted(images.iterdir()):
        archive.add(image, arcname=f"checkpoint/{image.name}")
    archive.add(work / "rootfs-diff.tar", arcname="rootfs-diff.tar")
    if (images / "stats-dump").exists():
        archive.add(images / "stats-dump", arcname="stats-dump")


class _Layer(NamedTuple):
    digest: str
    diff_id: str
    size: int


class _Hashing(io.RawIOBase):
    """Passes writes on and hashes them."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]  # the base allows any buffer; so does sha256
        self.sha256.update(content)
        self.size += len(content)
        self._target.write(content)
        return len(content)


def _write_layer(parts: Mapping[str, bytes], images: Path, work: Path) -> _Layer:
    with (work / "layer").open("wb") as file:
        packed = _Hashing(file)
        with zstandard.ZstdCompressor().stream_writer(cast("IO[bytes]", packed), closefd=False) as compressing:
            plain = _Hashing(compressing)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _add_checkpoint(archive, parts, images, work)
    return _Layer(packed.sha256.hexdigest(), plain.sha256.hexdigest(), packed.size)


def _write_rootfs_diff(layers: Mapping[str, Sequence[LayerTree]], path: Path) -> list[str]:
    """Write what differs from the rootfs beneath, all layers merged; returns the paths deleted from it."""
    deleted: list[str] = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for prefix, stack in sorted(layers.items()):
            merged, gone = _merged(stack)
            start = os.fsencode(prefix.strip("/")) + b"/" if prefix.strip("/") else b""
            deleted += [shown(b"/" + start + one) for one in sorted(gone)]
            for found in sorted(merged, key=lambda one: one.entry.path):
                _add_entry(archive, found, start)
    return deleted


class _Found(NamedTuple):
    entry: Entry
    tree: Path


def _merged(stack: Sequence[LayerTree]) -> tuple[list[_Found], set[bytes]]:
    """What a stack of layers, base first, shows over whatever lies beneath it; and what it hides of that."""
    there: dict[bytes, _Found] = {}
    gone: set[bytes] = set()
    for layer in stack:
        for entry in layer.index.entries:
            is_whiteout = entry.kind == "c" and entry.rdev == 0
            old = there.get(entry.path)
            is_opaque = (b"trusted.overlay.opaque", b"y") in entry.xattrs
            stops_being_a_directory = old is not None and old.entry.kind == "d" and entry.kind != "d"
            if is_whiteout or is_opaque or stops_being_a_directory:
                there = {path: one for path, one in there.items() if not path.startswith(entry.path + b"/")}
            if is_whiteout:
                there.pop(entry.path, None)
                gone.add(entry.path)
            elif entry.kind != "s" and entry.path:  # a socket file means nothing where its owner is restored
                there[entry.path] = _Found(entry, layer.tree)
                gone.discard(entry.path)
    return list(there.values()), gone


def _add_entry(archive: tarfile.TarFile, found: _Found, start: bytes) -> None:
    entry, tree = found
    full = os.fsencode(tree) + b"/" + entry.path
    kind = entry.kind
    if kind == "h":  # its other name may be hidden by a layer above: written out again
        kind = next(one for one, made in _STAT_TYPES.items() if made == stat.S_IFMT(os.lstat(full).st_mode))
    member = tarfile.TarInfo(os.fsdecode(start + entry.path))
    member.type = _TAR_TYPES[kind]
    member.mode, member.uid, member.gid, member.mtime = entry.mode, entry.uid, entry.gid, entry.mtime_ns // 10**9
    member.linkname = os.readlink(os.fsdecode(full)) if kind == "l" else ""  # noqa: PTH115
    member.devmajor, member.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    if kind != "f":
        archive.addfile(member)
        return
    member.size = os.lstat(full).st_size
    with open(full, "rb") as content:  # noqa: PTH123 — names inside a layer are bytes
        archive.addfile(member, content)


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _config_dump(description: CheckpointDescription) -> dict[str, object]:
    return {
        "id": description.id,
        "name": description.name,
        "rootfsImage": description.image,
        "rootfsImageName": description.image,
        "runtime": "thawbox",
        "createdTime": _time(description.created_at),
        "checkpointedTime": _time(description.checkpointed_at),
    }


def _spec_dump(description: CheckpointDescription) -> dict[str, object]:
    """A runtime spec with what is known; the names under `io.kubernetes.cri` are where checkpointctl finds ours."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": list(description.command),
            "env": list(description.env),
            "cwd": description.workdir,
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs"},
        "hostname": description.hostname,
        "annotations": {
            "io.container.manager": "thawbox",
            "io.kubernetes.cri.container-name": description.name,
            **description.annotations,
        },
    }


def _annotations(description: CheckpointDescription) -> dict[str, str]:
    return {
        "io.kubernetes.cri-o.annotations.checkpoint.name": description.name,
        "org.criu.checkpoint.container.name": description.name,
        "org.criu.checkpoint.engine.name": "thawbox",
        "org.criu.checkpoint.runtime.name": description.engine,
        "org.criu.checkpoint.rootfsImageName": description.image,
        "io.podman.annotations.checkpoint.name": description.name,
        "io.podman.annotations.checkpoint.rawImageName": description.image,
        "org.opencontainers.image.created": _time(description.checkpointed_at),
    }


def _image_blobs(description: CheckpointDescription, layer: _Layer) -> tuple[bytes, bytes]:
    """The image's manifest and configuration."""
    config = _json({
        "architecture": _ARCHITECTURES.get(description.arch, description.arch),
        "os": "linux",
        "created": _time(description.checkpointed_at),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}"]},
    })  # fmt: skip
    manifest = _json({
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": _descriptor(_CONFIG_TYPE, config),
        "layers": [{"mediaType": _LAYER_TYPE, "digest": f"sha256:{layer.digest}", "size": layer.size}],
        "annotations": _annotations(description),
    })  # fmt: skip
    return manifest, config


def _index(description: CheckpointDescription, manifest: bytes) -> dict[str, object]:
    platform = {"architecture": _ARCHITECTURES.get(description.arch, description.arch), "os": "linux"}
    name = {"org.opencontainers.image.ref.name": f"localhost/thawbox/{description.name.lower()}:checkpoint"}
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**_descriptor(_MANIFEST_TYPE, manifest), "platform": platform, "annotations": name}],
        "annotations": _annotations(description),
    }


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
