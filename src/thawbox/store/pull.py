"""Pull: a snapshot's whole chain from backends, trusting nothing that comes.

Order: the descriptions, from the head back to the first snapshot that is sound here; then, base first, each one's
images and layers into `incoming/<id>`, every chunk checked, the result hashed as a whole like any put and committed by
the same renames. Interrupted, `incoming/<id>` stays: the next pull fetches only the chunks whose bytes are not there.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from thawbox.chain import MAX_LINKS
from thawbox.errors import BrokenChain, CorruptSnapshot, InvalidRequest, SnapshotNotFound
from thawbox.host.files import locked, names_in, private_directory, remove_tree, sync_tree
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.codec import Codec
from thawbox.store.layers import content_bytes, scan_tree
from thawbox.store.listing import MIN_PREFIX
from thawbox.store.manifest import DIGEST_PATTERN
from thawbox.store.pack import Chunk, File, Slice, Stream, read_slices, slices, write_slices
from thawbox.store.put import NewLayer, finish, seal_layer
from thawbox.store.refs import Facts
from thawbox.store.seal import check_signature, sealer_of
from thawbox.store.sources import LayerThere, SnapshotThere, Sources
from thawbox.store.staging import Staging
from thawbox.store.store import Store, checked_ref_name
from thawbox.store.transfer import THREADS, OnProgress, Tally, TransferReport, side_by_side
from thawbox.store.unpack import build_tree
from thawbox.store.verify import images_problems

_WAIT_FOR_ANOTHER_PULL = 3600.0


class _Part(NamedTuple):
    chunk: Chunk
    slices: list[Slice]
    is_fresh: bool
    """Nothing was ever written there: the file is one hole."""


@dataclass(frozen=True, slots=True)
class _Puller:
    store: Store
    sources: Sources
    tally: Tally
    threads: int

    def missing(self, head: SnapshotId) -> list[SnapshotThere]:
        """Descriptions of what has to come, base first. The head's signature is checked before more is read."""
        found: list[SnapshotThere] = []
        at: SnapshotId | None = head
        while at is not None and not self._is_sound_here(at):
            try:
                there = self.sources.snapshot(at)
            except SnapshotNotFound as error:
                if not found:
                    raise
                raise BrokenChain(f"{error.cause}, and {found[-1].id[:12]} is a delta of it") from None
            if not found:
                check_signature(at, there.signature or None, self.store.keys)
            found.append(there)
            at = there.manifest.parent
            if len(found) > MAX_LINKS:
                raise BrokenChain(f"the chain of snapshot {head[:12]} has more than {MAX_LINKS} links")
        return found[::-1]

    def _is_sound_here(self, snapshot: SnapshotId) -> bool:
        return self.store.catalog.exists(snapshot) and not self.store.verify([snapshot])

    def receive(self, there: SnapshotThere, *, names: Sequence[str], labels: Mapping[str, str], facts: Facts) -> None:
        """Bring one snapshot whose parent is here. Only one pull at a time works on the same one."""
        incoming = self.store.layout.incoming
        what = f"the pull of snapshot {there.id[:12]}"
        with locked(incoming / f".{there.id}.lock", timeout=_WAIT_FOR_ANOTHER_PULL, what=what):
            if self._is_sound_here(there.id):
                return
            root = private_directory(incoming / there.id)
            wanted = self._layers_wanted(there)
            self._check_space(root, there, wanted)
            self._images(root, there)
            layers = tuple(self._layer(root, digest, layer) for digest, layer in wanted.items())
            problems, marks = images_problems(root, there.manifest)
            if problems:
                remove_tree(root)
                raise CorruptSnapshot(f"snapshot {there.id[:12]}: {problems[0][0]} {problems[0][1]}")
            (root / "layer").mkdir(exist_ok=True)
            prepared = finish(
                Staging(root), there.content, there.manifest, layers, marks,
                sign=(lambda _: there.signature) if there.signature else None,
            )  # fmt: skip
            self.store.publish(prepared, names=names, labels=labels, facts=facts, replace_damaged=True)

    def _layers_wanted(self, there: SnapshotThere) -> dict[str, LayerThere]:
        digests = {digest: None for listed in there.manifest.layers.values() for digest in listed}
        return {one: self.sources.layer(one) for one in digests if not self.store.layer_is_sound(one)}

    def _check_space(self, root: Path, there: SnapshotThere, layers: Mapping[str, LayerThere]) -> None:
        """Refuse a snapshot that says it is bigger than the disk before writing any of it."""
        needed = there.manifest.images_bytes + sum(content_bytes(layer.index) for layer in layers.values())
        self.tally.expect(needed)
        disk = os.statvfs(root)
        here = sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
        if needed > disk.f_bavail * disk.f_frsize + here:
            raise OSError(errno.ENOSPC, f"snapshot {there.id[:12]} needs {needed} bytes", str(root))

    def _images(self, root: Path, there: SnapshotThere) -> None:
        images = private_directory(root / "images")
        for name in names_in(images):
            if name not in there.manifest.files:
                (images / name).unlink()
        self._fill(images, there.files, there.streams)
        for name, target in there.manifest.links.items():
            (images / name).symlink_to(target)
        sync_tree(images)

    def _layer(self, root: Path, digest: str, there: LayerThere) -> NewLayer:
        wrapper = root / f"layer-{digest}"
        if (wrapper / "index").exists():  # an earlier pull got this far
            layer = seal_layer(wrapper, scan_tree(wrapper / "tree"))
            if layer.digest == digest:
                return layer
            remove_tree(wrapper)
        remove_tree(wrapper / "tree")
        content = private_directory(wrapper / "content")
        self._fill(content, there.files, there.streams)
        build_tree(there.index, content, wrapper / "tree")
        remove_tree(content)
        sync_tree(wrapper / "tree")
        layer = seal_layer(wrapper, scan_tree(wrapper / "tree"))
        if layer.digest != digest:
            remove_tree(wrapper)
            raise CorruptSnapshot(f"layer {digest[:12]}: what was unpacked is not what its index describes")
        return layer

    def _fill(self, directory: Path, files: Sequence[File], streams: Sequence[Stream]) -> None:
        """Make the files and fetch every chunk whose bytes are not there from an earlier attempt."""
        fresh = {file.name for file in files if _make_file(directory, file)}

        def bring(part: _Part) -> tuple[int, int]:
            if not part.is_fresh and _holds(directory, part):
                return part.chunk.size, 0
            content, stored = self.sources.chunk(part.chunk)
            if not (part.is_fresh and content.count(0) == len(content)):  # zeros of a fresh file stay a hole
                write_slices(directory, part.slices, content)
            return part.chunk.size, stored

        for size, stored in side_by_side(bring, _parts(files, streams, fresh), threads=self.threads):
            self.tally.add(size, stored=stored)


def _parts(files: Sequence[File], streams: Sequence[Stream], fresh: set[bytes]) -> Iterator[_Part]:
    sizes = {file.name: file.size for file in files}
    for stream in streams:
        members = [File(name, sizes[name]) for name in stream.files]
        ranges = slices(members, [chunk.size for chunk in stream.chunks])
        for chunk, parts in zip(stream.chunks, ranges, strict=True):
            yield _Part(chunk, parts, all(part.file in fresh for part in parts))


def _holds(directory: Path, part: _Part) -> bool:
    return hashlib.sha256(read_slices(directory, part.slices)).digest() == part.chunk.digest


def _make_file(directory: Path, file: File) -> bool:
    """Make a file of the right size unless there is one; says whether it is fresh."""
    path = os.fsencode(directory) + b"/" + file.name
    try:
        if os.lstat(path).st_size == file.size:
            return False
        os.unlink(path)  # noqa: PTH108 — names are bytes
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, file.size)
    finally:
        os.close(fd)
    return True


def pull(
    store: Store,
    backends: Sequence[Backend],
    snapshot: SnapshotId,
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    ttl: float | None = None,
    pinned: bool = False,
    on_progress: OnProgress | None = None,
    threads: int = THREADS,
    patience: float | None = None,
) -> TransferReport:
    """Bring a snapshot and whatever of its chain is not here, or is damaged here. Each becomes visible when whole.

    The backends are asked in order, object by object; those that failed while another served are in the report. After
    `patience` seconds without an answer the next is asked too, and the tardy one last from then on.
    Raises SnapshotNotFound, UntrustedSnapshot, CorruptSnapshot, BrokenChain, BackendUnavailable; call again to go on.
    """
    names = (checked_ref_name(name),) if name else ()
    tally = Tally(snapshot, on_progress)
    sources = Sources(backends, Codec(sealer_of(store.keys)), patience)
    puller = _Puller(store, sources, tally, threads)
    missing = puller.missing(snapshot)
    for there in missing:
        now = store.now()
        is_head = there.id == snapshot
        facts = Facts(
            pinned=pinned and is_head, expires_at=now + ttl if ttl is not None and is_head else None, used_at=now
        )
        puller.receive(there, names=names if is_head else (), labels=labels or {} if is_head else {}, facts=facts)
    if not missing and name:
        store.name(snapshot, name)
    present = [link for link in store.chain(snapshot) if link not in {there.id for there in missing}]
    return tally.report((there.id for there in missing), present, sources.faults)


def remote_snapshots(backend: Backend) -> tuple[SnapshotId, ...]:
    """Ids of all snapshots described in a backend, sorted."""
    found = (name.rpartition("/")[2] for name in backend.names("snapshots/"))
    return tuple(sorted(SnapshotId(name) for name in found if DIGEST_PATTERN.fullmatch(name)))


def resolve_remote(backend: Backend, ref: str) -> SnapshotId:
    """The id in a backend meant by a full id or a unique prefix; SnapshotNotFound or InvalidRequest otherwise."""
    if DIGEST_PATTERN.fullmatch(ref):
        return SnapshotId(ref)
    found = [one for one in remote_snapshots(backend) if len(ref) >= MIN_PREFIX and one.startswith(ref)]
    if len(found) > 1:
        raise InvalidRequest(f"{ref!r} is ambiguous in {backend.where}", remediation="give more digits of the id")
    if not found:
        raise SnapshotNotFound(
            f"{backend.where} has no snapshot {ref[:80]!r}", remediation="give at least 6 digits of its id"
        )
    return found[0]
