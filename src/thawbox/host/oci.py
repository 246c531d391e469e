"""OCI image layouts and image archives, unpacked once per image by umoci.

Rule 1: of an archive only the members that a manifest names are read; nothing is ever extracted by an archive's path.
Rule 2: every blob is digested on the way and must be what its name says.
Rule 3: umoci unpacks the layers (links, whiteouts, hard links, devices: no path leads outside); the rename commits.

Formats: OCI image layout and image specification 1.1; docker-archive as `docker save` writes it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

import msgspec

from thawbox.errors import CorruptSnapshot, InvalidSpec, Unsupported
from thawbox.host.files import locked, private_directory, remove_tree
from thawbox.host.proc import run_program
from thawbox.host.rootfs import DEFAULT_PATH, Defaults

_DOCUMENT_LIMIT = 8 << 20
"""Bytes of an index, manifest or config; real ones are a few kilobytes."""
_UNPACK_TIMEOUT = 1800.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_T = TypeVar("_T")
_TAG = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image: its root directory, the digest of its config (which pins every layer), its defaults."""

    root: Path
    digest: str
    defaults: Defaults


class _Platform(msgspec.Struct):
    architecture: str = ""
    os: str = ""


class _Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    digest: str
    size: int = 0
    media_type: str = ""
    annotations: dict[str, str] = {}
    platform: _Platform | None = None


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _DockerImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Run(msgspec.Struct, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    user: str = ""


class _Config(msgspec.Struct):
    architecture: str = ""
    config: _Run | None = None


class _Source(Protocol):
    """A layout directory or an archive: members by name."""

    def has(self, name: str) -> bool: ...
    def open(self, name: str) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True, slots=True)
class _Directory:
    path: Path

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return (self.path / name).open("rb")


@dataclass(frozen=True, slots=True)
class _Archive:
    tar: tarfile.TarFile
    members: dict[str, tarfile.TarInfo]

    def has(self, name: str) -> bool:
        return name in self.members

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        file = self.tar.extractfile(self.members[name])
        if file is None:
            raise InvalidSpec(f"{name} of the image archive is not a file")
        with file:
            yield cast(BinaryIO, file)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's member name in its source, its media type, and its digest where the source names one."""

    member: str
    media_type: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class _Selected:
    """The one image that was asked for."""

    config: bytes
    layers: tuple[_Layer, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.config).hexdigest()


def unpack(path: Path, store: Path, *, tag: str = "") -> Image:
    """The image at `path` (layout directory or archive), unpacked below `store` unless it already is.

    `tag` chooses where the layout names several. Raises InvalidSpec when it is no image or names no such tag,
    Unsupported for another architecture or when umoci is missing, CorruptSnapshot when a blob is not what it should
    be.
    """
    private_directory(store)
    with ExitStack() as closing:
        source = _open_source(path, closing)
        selected = _select(source, path, tag)
        _check_platform(selected.config, path)
        if image := find(store, selected.digest):
            return image
        with locked(store / "lock", timeout=_UNPACK_TIMEOUT, what="the store of unpacked images"):
            if image := find(store, selected.digest):
                return image
            _unpack_into(source, selected, store, path)
    image = find(store, selected.digest)
    if image is None:
        raise CorruptSnapshot(f"the unpacked image {selected.digest} is gone from {store}")
    return image


def find(store: Path, digest: str) -> Image | None:
    """An image unpacked before; None if it is not here."""
    home = store / digest
    try:
        config = (home / "config.json").read_bytes()
    except FileNotFoundError:
        return None
    return Image(home / "root", digest, _defaults(config))


def _unpack_into(source: _Source, selected: _Selected, store: Path, path: Path) -> None:
    with ExitStack() as undo:
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
        undo.callback(remove_tree, staging)
        staging.chmod(0o755)
        layout = staging / "layout"
        _write_layout(source, selected, layout)
        # Run in the staging directory: umoci cuts its image argument at a colon, and our own path may hold one.
        done = run_program(
            ["umoci", "raw", "unpack", "--image", "layout:thawbox", "root"], timeout=_UNPACK_TIMEOUT, cwd=staging
        )
        if done.status != 0:
            last_words = done.stderr.decode(errors="replace")[-2000:]
            raise CorruptSnapshot(
                f"umoci could not unpack {path}: {last_words.strip().splitlines()[-1:]}",
                remediation="fetch the image again",
                log=last_words,
            )
        remove_tree(layout)
        (staging / "config.json").write_bytes(selected.config)
        run_program(["sync", "-f", str(staging)], timeout=_UNPACK_TIMEOUT)
        staging.rename(store / selected.digest)
        undo.pop_all()


def _open_source(path: Path, closing: ExitStack) -> _Source:
    if path.is_dir():
        return _Directory(path)
    try:
        tar = closing.enter_context(tarfile.open(path))  # noqa: SIM115  closed by the caller
        members = {member.name.removeprefix("./"): member for member in tar}
    except (tarfile.TarError, EOFError) as broken:
        raise InvalidSpec(
            f"{path} is no image archive: {broken}", remediation="give an OCI layout, or what `docker save` wrote"
        ) from broken
    return _Archive(tar, members)


def _select(source: _Source, path: Path, tag: str) -> _Selected:
    if source.has("index.json"):
        return _select_oci(source, path, tag)
    if source.has("manifest.json"):
        return _select_docker(source, path, tag)
    raise InvalidSpec(
        f"{path} holds neither an OCI layout nor a docker archive", remediation="give a directory, layout or archive"
    )


def _select_oci(source: _Source, path: Path, tag: str) -> _Selected:
    descriptors = _decode(_read(source, "index.json"), _Index, path).manifests
    if tag:
        descriptors = [d for d in descriptors if tag in (d.annotations.get(_TAG, ""), _tag_of(d))]
    for _ in range(4):  # an index may name indexes; deeper than this nobody nests them
        chosen = _choose(descriptors, path, tag)
        document = _read_blob(source, chosen.digest)
        if chosen.media_type not in _INDEX_TYPES:
            break
        descriptors = _decode(document, _Index, path).manifests
    else:
        raise InvalidSpec(f"{path} nests indexes more than four deep")
    manifest = _decode(document, _Manifest, path)
    layers = tuple(_Layer(_blob(d.digest), d.media_type, d.digest) for d in manifest.layers)
    return _Selected(_read_blob(source, manifest.config.digest), layers)


def _tag_of(descriptor: _Descriptor) -> str:
    """The tag in a full image name (`docker.io/library/x:tag`), as some tools write the annotation."""
    return descriptor.annotations.get(_TAG, "").rpartition(":")[2]


def _choose(descriptors: list[_Descriptor], path: Path, tag: str) -> _Descriptor:
    ours = _ARCHITECTURES.get(platform.machine(), platform.machine())
    wanted = _Platform(architecture=ours, os="linux")
    fitting = [d for d in descriptors if d.platform in (None, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if not descriptors:
        raise InvalidSpec(f"{path} holds no image{f' tagged {tag}' if tag else ''}")
    if not fitting:
        raise Unsupported(
            f"{path} holds no image for linux/{ours}", remediation="fetch the image for this architecture"
        )
    names = sorted(d.annotations.get(_TAG, "") for d in fitting)
    raise InvalidSpec(f"{path} holds several images: {', '.join(names)}", remediation=f"name one: {path}:TAG")


def _select_docker(source: _Source, path: Path, tag: str) -> _Selected:
    images = _decode(_read(source, "manifest.json"), list[_DockerImage], path)
    if tag:
        images = [image for image in images if any(name.rpartition(":")[2] == tag for name in image.repo_tags or [])]
    if len(images) != 1:
        raise InvalidSpec(
            f"{path} holds {len(images)} images{f' tagged {tag}' if tag else ''}", remediation=f"name one: {path}:TAG"
        )
    layers: list[_Layer] = []
    for member in images[0].layers:
        with _open(source, member) as file:
            packed = file.read(2) == b"\x1f\x8b"
        layers.append(_Layer(member, _LAYER + ("+gzip" if packed else "")))
    return _Selected(_read(source, images[0].config), tuple(layers))


def _write_layout(source: _Source, selected: _Selected, layout: Path) -> None:
    """A minimal layout that names the selected image `thawbox`, for umoci."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [_copy_layer(source, layer, blobs) for layer in selected.layers]
    config = _put(blobs, selected.config, "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST}
    document = json.dumps({**manifest, "config": config, "layers": layers}).encode()
    written = _put(blobs, document, _MANIFEST)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [{**written, "annotations": {_TAG: "thawbox"}}]}
    (layout / "index.json").write_text(json.dumps(index))


def _copy_layer(source: _Source, layer: _Layer, blobs: Path) -> dict[str, object]:
    """Copy a layer under the digest of what is written; zstd layers become plain ones, which umoci reads."""
    if layer.digest:
        with _open(source, layer.member) as file:
            _check_digest(layer.digest, "sha256:" + _hex_digest(file))
    copy = blobs / "copying"
    with _open(source, layer.member) as file, copy.open("wb") as out:
        if layer.media_type.endswith("zstd"):
            import zstandard

            zstandard.ZstdDecompressor().copy_stream(file, out)
        else:
            shutil.copyfileobj(file, out, 1 << 20)
    with copy.open("rb") as file:
        digest = _hex_digest(file)
    size = copy.stat().st_size
    copy.rename(blobs / digest)
    media_type = _LAYER + ("+gzip" if layer.media_type.endswith("gzip") else "")
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _put(blobs: Path, content: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _blob(digest: str) -> str:
    """The member that holds a blob; raises InvalidSpec for a digest that is none."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidSpec(f"the image names a blob {digest[:80]!r}, which is no sha256 digest")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _hex_digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _read_blob(source: _Source, digest: str) -> bytes:
    content = _read(source, _blob(digest))
    _check_digest(digest, f"sha256:{hashlib.sha256(content).hexdigest()}")
    return content


def _check_digest(named: str, found: str) -> None:
    if named != found:
        raise CorruptSnapshot(f"the blob {named} of the image is damaged", remediation="fetch the image again")


def _read(source: _Source, name: str) -> bytes:
    with _open(source, name) as file:
        content = file.read(_DOCUMENT_LIMIT + 1)
    if len(content) > _DOCUMENT_LIMIT:
        raise InvalidSpec(f"{name} of the image is larger than {_DOCUMENT_LIMIT} bytes")
    return content


def _open(source: _Source, name: str) -> AbstractContextManager[BinaryIO]:
    if not source.has(name):
        raise InvalidSpec(f"the image lacks {name}", remediation="fetch the image again, whole")
    return source.open(name)


def _decode(document: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.DecodeError as broken:  # ValidationError is one
        raise InvalidSpec(f"{path} is no image that can be read: {broken}") from broken


def _check_platform(config: bytes, path: Path) -> None:
    theirs = _decode(config, _Config, path).architecture
    ours = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if theirs and theirs != ours:
        raise Unsupported(
            f"the image {path} is for {theirs}, this machine is {ours}",
            remediation="fetch the image for this architecture",
        )


def _defaults(config: bytes) -> Defaults:
    run = msgspec.json.decode(config, type=_Config).config or _Run()
    env = dict(entry.split("=", 1) for entry in run.env or [] if "=" in entry)
    return Defaults(
        env={"PATH": DEFAULT_PATH, **env},
        entrypoint=tuple(run.entrypoint or ()),
        command=tuple(run.cmd or ()),
        workdir=run.working_dir or "/",
        user=run.user or "root",
    )
