"""Archives made by an enemy: nothing outside the store is touched, and nothing false becomes visible."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thawbox.errors import CorruptSnapshot, IntegrityError, InvalidRequest, ThawboxError
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, FileEntry, Manifest, Store
from thawbox.store.archive import export_archive, import_archive
from thawbox.store.codec import PARCEL_FORMAT, Codec, LayerParcel, SnapshotParcel
from thawbox.store.layers import Entry, Index, encode_index, layer_digest
from thawbox.store.manifest import encode_manifest, snapshot_id
from thawbox.store.pack import Chunk, Stream
from thawbox.store.unpack import check_index

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
ROOT = Entry(b"", "d", 0o755, 0, 0, 0)
DIGEST = hashlib.sha256(b"content").digest()
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def surroundings() -> Iterator[tuple[Path, Store]]:
    """A store inside a directory with a file that no import may touch; checked at the end."""
    with tempfile.TemporaryDirectory(prefix="thawbox-hostile-") as name:
        outside = Path(name) / "outside"
        outside.write_bytes(b"precious")
        with Store(Path(name) / "store") as store:
            yield Path(name), store
            for record in store.records():
                assert store.verify([record.id], deep=True) == ()
        assert outside.read_bytes() == b"precious"
        assert sorted(path.name for path in Path(name).iterdir() if path.name != "archive") == ["outside", "store"]


@functools.cache
def honest_archive() -> bytes:
    with tempfile.TemporaryDirectory(prefix="thawbox-hostile-") as name, Store(Path(name) / "store") as store:
        with store.stage() as staging:
            (staging.images / "pages-1.img").write_bytes(b"p" * 5000)
            (staging.layer / "root").mkdir()
            (staging.layer / "root" / "file").write_bytes(b"content")
            (staging.layer / "root" / "link").symlink_to("../../../outside")
            record = store.put(staging, Draft(SnapshotKind.FULL, COMPAT))
        export_archive(store, record.id, Path(name) / "archive")
        return (Path(name) / "archive").read_bytes()


def import_bytes(content: bytes) -> ThawboxError | None:
    with surroundings() as (directory, store):
        (directory / "archive").write_bytes(content)
        try:
            import_archive(store, directory / "archive")
        except ThawboxError as error:
            assert isinstance(error, IntegrityError | InvalidRequest)
            assert store.records() == ()
            return error
        return None


def test_the_honest_archive_is_imported() -> None:
    assert import_bytes(honest_archive()) is None


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_an_archive(content: bytes) -> None:
    assert import_bytes(content) is not None


@QUICK
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_changed_bytes_never_become_a_false_snapshot(changes: list[tuple[float, int]]) -> None:
    content = bytearray(honest_archive())
    for where, flip in changes:
        content[int(where * len(content))] ^= flip
    import_bytes(bytes(content))  # refused, or harmless: what is visible is verified by `surroundings`


@QUICK
@given(st.floats(0, 1))
def test_a_truncated_archive_is_refused(part: float) -> None:
    content = honest_archive()
    shorter = content[: int(part * (len(content) - 1))]
    assert import_bytes(shorter) is not None


def archive(objects: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in objects.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def snapshot_with_layer(index: Index, streams: tuple[Stream, ...], *, chunk: bytes = b"content") -> bytes:
    """A well-formed archive of one snapshot over a layer with any index at all."""
    codec = Codec()
    index_bytes = encode_index(index)
    digest = layer_digest(index_bytes)
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {}, {"root": (digest,)}, COMPAT)
    content = encode_manifest(manifest)
    objects = {
        codec.snapshot_name(snapshot_id(content)): SnapshotParcel(PARCEL_FORMAT, content, b"", ()),
        codec.layer_name(digest): LayerParcel(PARCEL_FORMAT, index_bytes, streams),
    }
    encoded = {name: codec.encode(name, msgspec.msgpack.encode(parcel)) for name, parcel in objects.items()}
    name = codec.chunk_name(hashlib.sha256(chunk).digest())
    return archive({**encoded, name: codec.encode(name, chunk)})


def file(path: bytes, **changes: object) -> Entry:
    entry = Entry(path, "f", 0o644, 0, 0, 0, size=7, digest=DIGEST)
    return msgspec.structs.replace(entry, **changes)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, "l", 0o777, 0, 0, 0, target=target)


def plain(path: bytes, kind: str, **changes: object) -> Entry:
    return msgspec.structs.replace(Entry(path, kind, 0o755, 0, 0, 0), **changes)


HOSTILE = {
    "a path that climbs out": [file(b"../outside")],
    "an absolute path": [file(b"/etc/thawbox-was-here")],
    "a path through a link": [link(b"a", b"../.."), file(b"a/outside")],
    "a path through a file": [file(b"a"), file(b"a/b")],
    "a path with an empty part": [plain(b"a", "d"), file(b"a//b")],
    "a path with a dot": [plain(b"a", "d"), file(b"a/./b")],
    "a path with a NUL": [file(b"a\0b")],
    "a path without its directory": [file(b"a/b")],
    "the same path twice": [file(b"a"), file(b"a")],
    "paths out of order": [file(b"b"), file(b"a")],
    "a name too long for any filesystem": [file(b"a" * 300)],
    "a hard link out": [Entry(b"a", "h", 0o644, 0, 0, 0, target=b"../outside")],
    "a hard link to an absolute path": [Entry(b"a", "h", 0o644, 0, 0, 0, target=b"/etc/passwd")],
    "a hard link to a directory": [plain(b"a", "d"), Entry(b"b", "h", 0o644, 0, 0, 0, target=b"a")],
    "a hard link to itself": [Entry(b"a", "h", 0o644, 0, 0, 0, target=b"a")],
    "a disk": [plain(b"a", "b", rdev=os.makedev(8, 0))],
    "the host's memory": [plain(b"a", "c", rdev=os.makedev(1, 1))],
    "an unknown kind": [plain(b"a", "x")],
    "a second root": [plain(b"", "d")],
    "an overlay attribute of ours": [plain(b"a", "d", xattrs=((b"trusted.overlay.metacopy", b""),))],
    "a security attribute": [plain(b"a", "d", xattrs=((b"security.selinux", b"x"),))],
    "an impossible mode": [file(b"a", mode=0o100644)],
    "an impossible owner": [file(b"a", uid=2**32)],
    "an impossible time": [file(b"a", mtime_ns=2**63 - 1)],
    "a negative size": [file(b"a", size=-1)],
    "a file bigger than any disk": [file(b"a", size=1 << 60)],
    "a directory with content": [plain(b"a", "d", size=7)],
    "a link to nowhere": [plain(b"a", "l")],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_layer_is_refused(what: str) -> None:
    entries = HOSTILE[what]
    at = [number for number, entry in enumerate(entries, 1) if entry.kind == "f"]
    streams = (Stream(tuple(b"%d" % number for number in at), tuple(Chunk(DIGEST, 7) for _ in at)),) if at else ()
    content = snapshot_with_layer(Index(1, (ROOT, *entries)), streams)
    assert isinstance(import_bytes(content), CorruptSnapshot)


def test_a_harmless_layer_made_the_same_way_is_imported() -> None:
    index = Index(1, (ROOT, file(b"a"), Entry(b"b", "h", 0o644, 0, 0, 0, target=b"a"), link(b"c", b"/etc/passwd")))
    content = snapshot_with_layer(index, (Stream((b"1",), (Chunk(DIGEST, 7),)),))
    error = import_bytes(content)
    assert error is None


names = st.binary(min_size=0, max_size=4) | st.sampled_from([b"..", b".", b"", b"a", b"b", b"/"])
entries = st.builds(
    Entry,
    path=st.lists(names, max_size=3).map(b"/".join),
    kind=st.sampled_from(["d", "f", "l", "h", "c", "b", "p", "s", "q"]),
    mode=st.integers(-1, 0o10000),
    uid=st.integers(-1, 2**33),
    gid=st.integers(-1, 2**33),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    size=st.sampled_from([0, 7, -1, 2**62]),
    digest=st.sampled_from([b"", DIGEST, b"short"]),
    target=st.sampled_from([b"", b"a", b"../outside", b"/etc/passwd"]),
    rdev=st.sampled_from([0, os.makedev(1, 3), os.makedev(8, 0)]),
    xattrs=st.lists(
        st.tuples(st.sampled_from([b"user.a", b"trusted.x", b"\xff"]), st.binary(max_size=3)), max_size=1
    ).map(tuple),
)


@QUICK
@given(st.lists(entries, max_size=6))
def test_whatever_passes_the_check_stays_inside(found: list[Entry]) -> None:
    index = Index(1, (ROOT, *sorted(found, key=lambda entry: entry.path)))
    try:
        check_index(index, what="layer")
    except CorruptSnapshot:
        return
    at = [number for number, entry in enumerate(index.entries) if entry.size]
    streams = (Stream(tuple(b"%d" % number for number in at), tuple(Chunk(DIGEST, 7) for _ in at)),) if at else ()
    import_bytes(snapshot_with_layer(index, streams))


def manifest_archive(manifest: Manifest, streams: tuple[Stream, ...] = (), *, name: str = "") -> bytes:
    codec, content = Codec(), encode_manifest(manifest)
    name = name or codec.snapshot_name(snapshot_id(content))
    parcel = msgspec.msgpack.encode(SnapshotParcel(PARCEL_FORMAT, content, b"", streams))
    chunk = codec.chunk_name(DIGEST)
    return archive({name: codec.encode(name, parcel), chunk: codec.encode(chunk, b"content")})


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/thawbox-was-here", "a/b", ".hidden", "", "parent", "a\0b", "x" * 300]
)
def test_an_image_with_a_hostile_name_is_refused(name: str) -> None:
    entry = FileEntry(7, DIGEST.hex())
    links = {"parent": "/etc"} if name == "parent" else {}
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {name: entry}, {}, COMPAT, links=links)
    stream = Stream((name.encode(),), (Chunk(DIGEST, 7),))
    assert isinstance(import_bytes(manifest_archive(manifest, (stream,))), CorruptSnapshot)


@pytest.mark.parametrize(
    "streams",
    [
        (),
        (Stream((b"a",), ()),),
        (Stream((b"a", b"a"), (Chunk(DIGEST, 7), Chunk(DIGEST, 7))),),
        (Stream((b"a",), (Chunk(DIGEST, 7),)), Stream((b"a",), (Chunk(DIGEST, 7),))),
        (Stream((b"b",), (Chunk(DIGEST, 7),)),),
        (Stream((b"a",), (Chunk(DIGEST, 8),)),),
        (Stream((b"a",), (Chunk(b"", 7),)),),
        (Stream((b"a",), (Chunk(DIGEST, 0), Chunk(DIGEST, 7))),),
        (Stream((b"a",), (Chunk(hashlib.sha256(b"absent").digest(), 7),)),),
    ],
)
def test_chunks_that_do_not_make_the_files_are_refused(streams: tuple[Stream, ...]) -> None:
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {"a": FileEntry(7, DIGEST.hex())}, {}, COMPAT)
    assert isinstance(import_bytes(manifest_archive(manifest, streams)), CorruptSnapshot)


def test_a_manifest_under_another_id_is_refused() -> None:
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {}, {}, COMPAT)
    assert isinstance(import_bytes(manifest_archive(manifest, name=f"snapshots/{'a' * 64}")), CorruptSnapshot)


def test_files_of_the_right_chunks_in_the_wrong_order_are_refused() -> None:
    other = hashlib.sha256(b"another").digest()
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {"a": FileEntry(7, other.hex())}, {}, COMPAT)
    content = manifest_archive(manifest, (Stream((b"a",), (Chunk(DIGEST, 7),)),))
    error = import_bytes(content)
    assert isinstance(error, CorruptSnapshot)
    assert "does not match its digest" in error.cause


@pytest.mark.parametrize(
    "frame",
    [
        zstandard.ZstdCompressor().compress(bytes(64 << 20)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20)),
        b"\x28\xb5\x2f\xfd" + b"\xff" * 40,
        b"",
    ],
    ids=["a bomb", "a bomb that hides its size", "no frame", "nothing"],
)
def test_an_object_that_unpacks_to_more_than_it_may_is_refused(frame: bytes) -> None:
    codec = Codec()
    manifest = Manifest(1, SnapshotKind.FULL, None, 0.0, {"a": FileEntry(7, DIGEST.hex())}, {}, COMPAT)
    content = encode_manifest(manifest)
    name = codec.snapshot_name(snapshot_id(content))
    parcel = SnapshotParcel(PARCEL_FORMAT, content, b"", (Stream((b"a",), (Chunk(DIGEST, 7),)),))
    objects = {name: codec.encode(name, msgspec.msgpack.encode(parcel)), codec.chunk_name(DIGEST): b"TBX1\0" + frame}
    assert isinstance(import_bytes(archive(objects)), CorruptSnapshot)


def test_a_chain_that_never_ends_is_refused_by_its_ids(tmp_path: Path) -> None:
    """An id is a digest, so a loop cannot be made; naming oneself as parent is another id."""
    manifest = Manifest(1, SnapshotKind.DELTA, SnapshotId("a" * 64), 0.0, {}, {}, COMPAT)
    assert isinstance(import_bytes(manifest_archive(manifest)), IntegrityError)
