"""A chain that is pushed and pulled is the same chain, over every backend; only what is missing travels."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from thawbox.errors import (
    BackendUnavailable,
    BrokenChain,
    CorruptSnapshot,
    InvalidRequest,
    SnapshotNotFound,
    UntrustedSnapshot,
)
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Keys, Record, Store, parent_link
from thawbox.store.archive import export_archive, import_archive
from thawbox.store.backends import Backend, open_backend
from thawbox.store.pull import pull, remote_snapshots, resolve_remote
from thawbox.store.push import push

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
SEALED = Keys(sealing=b"k" * 32)
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print("listening", flush=True)
import signal; signal.pause()
"""


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.fixture(params=["directory", "memory", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "directory":
        return open_backend(f"file://{tmp_path}/objects")
    if request.param == "memory":
        return open_backend("memory:///")
    server, bucket = request.getfixturevalue("s3_server"), f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()
    options = {"endpoint": server, "region": "us-east-1", "access_key_id": "key", "secret_access_key": "secret"}
    return open_backend(f"s3://{bucket}/x", options=options)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "here") as store:
        yield store


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "there") as store:
        yield store


def put(store: Store, pages: bytes, *, parent: Record | None = None, name: str = "") -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(pages)
        (staging.images / "core-1.img").write_bytes(b"core" * 100)
        (staging.images / "empty.img").write_bytes(b"")
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent.id))
        fill_tree(staging.layer / "root")
        draft = Draft(
            SnapshotKind.DELTA if parent else SnapshotKind.FULL,
            COMPAT,
            parent=parent.id if parent else None,
            layers=parent.manifest.layers if parent else {},
        )
        return store.put(staging, draft, name=name)


def fill_tree(tree: Path) -> None:
    """A rootfs layer with one of everything."""
    (tree / "etc" / "deep").mkdir(parents=True)
    (tree / "etc" / "deep" / os.fsdecode(b"\xff\xfe")).write_bytes(os.urandom(5000))
    for number in range(50):
        (tree / f"small-{number}").write_bytes(b"%d" % number * number)
    (tree / "big").write_bytes(os.urandom(1_500_000))
    with (tree / "sparse").open("wb") as file:
        file.truncate(8_000_000)
        file.seek(5_000_000)
        file.write(b"island")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "etc" / "hard").hardlink_to(tree / "big")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o755)
    os.setxattr(tree / "etc", "trusted.overlay.opaque", b"y")
    os.setxattr(tree / "big", "user.note", b"\x00\x01")
    os.chown(tree / "etc", 1000, 2000)
    (tree / "small-3").chmod(0o4755)
    os.utime(tree / "etc", ns=(5, 1_600_000_000_123_456_789))


def same(one: Store, other: Store, snapshot: SnapshotId) -> bool:
    """Both stores hold the snapshot, sound to the last byte, mode, owner and time (their digests say so)."""
    assert one.manifest(snapshot) == other.manifest(snapshot)
    return other.verify([*other.chain(snapshot)], deep=True) == () and bool(other.fetch(snapshot).images)


def test_a_chain_comes_back_whole(here: Store, there: Store, backend: Backend) -> None:
    base = put(here, os.urandom(6_000_000))
    delta = put(here, b"d" * 5000, parent=base)
    seen: list[float] = []
    sent = push(here, backend, delta.id, on_progress=lambda at: seen.append(at.done_bytes / at.total_bytes))
    assert sent.snapshots == (base.id, delta.id)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert remote_snapshots(backend) == tuple(sorted([base.id, delta.id]))
    got = pull(there, [backend], resolve_remote(backend, delta.id[:10]), name="arrived")
    assert got.snapshots == (base.id, delta.id)
    assert same(here, there, delta.id)
    assert there.resolve("arrived") == delta.id
    sparse = there.fetch(delta.id).layers["root"][0] / "sparse"
    assert sparse.stat().st_blocks * 512 < 4_000_000
    assert list(there.layout.incoming.glob("[!.]*")) == []


def noise(size: int, *, seed: int = 1) -> bytes:
    """The same each time: where a file is cut depends on its content, and a rare one has few cuts."""
    return random.Random(seed).randbytes(size)


def test_only_what_is_missing_travels(here: Store, there: Store, backend: Backend) -> None:
    pages = noise(8_000_000)
    base = put(here, pages)
    first = push(here, backend, base.id)
    assert push(here, backend, base.id).moved_bytes == 0
    moved_by_some_pages = put(here, pages[:2_000_000] + noise(8192, seed=2) + pages[2_000_000:])
    second = push(here, backend, moved_by_some_pages.id)
    assert second.chunks_present > 0
    pull(there, [backend], base.id)
    assert pull(there, [backend], base.id).snapshots == ()
    assert first.moved_bytes > 8_000_000


def test_pages_that_moved_are_found_again(here: Store) -> None:
    backend = open_backend("memory:///")
    pages = noise(24 << 20)
    tree_free = Draft(SnapshotKind.FULL, COMPAT)
    reports = []
    for content in (pages, pages[: 4 << 20] + noise(3 * 4096, seed=2) + pages[4 << 20 :]):
        with here.stage() as staging:
            (staging.images / "pages-1.img").write_bytes(content)
            record = here.put(staging, tree_free)
        reports.append(push(here, backend, record.id))
    assert reports[1].moved_bytes < reports[0].moved_bytes / 3


def test_an_interrupted_push_goes_on_where_it_was(here: Store, backend: Backend) -> None:
    record = put(here, os.urandom(12_000_000))

    class Enough(Exception):
        pass

    def stop_in_the_middle(at: object) -> None:
        if at.done_bytes > at.total_bytes / 2:  # type: ignore[attr-defined]
            raise Enough

    with pytest.raises(Enough):
        push(here, backend, record.id, on_progress=stop_in_the_middle, threads=2)
    assert remote_snapshots(backend) == ()
    assert push(here, backend, record.id).chunks_present > 0
    assert remote_snapshots(backend) == (record.id,)


def test_an_interrupted_pull_goes_on_where_it_was(here: Store, there: Store, backend: Backend) -> None:
    record = put(here, os.urandom(12_000_000))
    whole = push(here, backend, record.id)

    class Enough(Exception):
        pass

    def stop_in_the_middle(at: object) -> None:
        if at.done_bytes > at.total_bytes * 0.7:  # type: ignore[attr-defined]
            raise Enough

    with pytest.raises(Enough):
        pull(there, [backend], record.id, on_progress=stop_in_the_middle, threads=2)
    assert there.records() == ()
    with Store(there.layout.root) as again:
        rest = pull(again, [backend], record.id)
        assert rest.chunks_present > 0
        assert rest.moved_bytes < whole.moved_bytes
        assert same(here, again, record.id)


def test_a_damaged_snapshot_is_repaired_by_pulling_it_again(here: Store, backend: Backend) -> None:
    base = put(here, os.urandom(50_000))
    delta = put(here, b"delta" * 1000, parent=base)
    push(here, backend, delta.id)
    with (here.layout.images(base.id) / "pages-1.img").open("r+b") as file:
        file.write(b"damage")
    with (here.layout.tree(base.manifest.layers["root"][0]) / "big").open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(CorruptSnapshot):
        push(here, open_backend("memory:///"), delta.id)
    pull(here, [backend], delta.id)
    assert here.verify(deep=True) == ()
    here.fetch(delta.id)


def test_the_next_source_serves_what_the_first_has_damaged_or_lost(here: Store, there: Store, tmp_path: Path) -> None:
    record = put(here, os.urandom(50_000))
    bad, good = open_backend(f"file://{tmp_path}/bad"), open_backend(f"file://{tmp_path}/good")
    for backend in (bad, good):
        push(here, backend, record.id)
    chunks = sorted(path for path in (tmp_path / "bad" / "chunks").rglob("*") if path.is_file())
    chunks[0].write_bytes(chunks[0].read_bytes()[:-1] + b"x")
    chunks[1].unlink()
    report = pull(there, [bad, good], record.id)
    assert same(here, there, record.id)
    assert {fault.where for fault in report.faults} == {bad.where}
    push(here, bad, record.id, repair=True)
    with Store(tmp_path / "third") as third:
        assert pull(third, [bad], record.id).faults == ()


def test_without_another_source_damage_is_an_error_and_nothing_is_visible(here: Store, tmp_path: Path) -> None:
    record = put(here, os.urandom(50_000))
    backend = open_backend(f"file://{tmp_path}/objects")
    push(here, backend, record.id)
    for path in [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]:
        sound = path.read_bytes()
        path.write_bytes(sound[:20] + bytes([sound[20] ^ 1]) + sound[21:])
        with Store(tmp_path / "there" / path.name) as there:
            with pytest.raises(CorruptSnapshot):
                pull(there, [backend], record.id)
            assert there.records() == ()
            path.write_bytes(sound)
            pull(there, [backend], record.id)
            assert same(here, there, record.id)


def test_what_is_nowhere_is_not_found(here: Store, there: Store, backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound):
        pull(there, [backend], SnapshotId("0" * 64))
    with pytest.raises(SnapshotNotFound):
        resolve_remote(backend, "abcdef")


def test_a_chain_without_its_base_is_broken(here: Store, there: Store, tmp_path: Path) -> None:
    base = put(here, b"base")
    delta = put(here, b"delta", parent=base)
    push(here, open_backend(f"file://{tmp_path}/objects"), delta.id)
    (tmp_path / "objects" / "snapshots" / base.id).unlink()
    with pytest.raises(BrokenChain, match=base.id[:12]):
        pull(there, [open_backend(f"file://{tmp_path}/objects")], delta.id)


def test_sealed_objects_tell_a_stranger_nothing_and_open_only_with_the_key(tmp_path: Path) -> None:
    secret = b"the secret of this snapshot " * 1000
    backend = open_backend(f"file://{tmp_path}/objects")
    with Store(tmp_path / "here", keys=SEALED) as here:
        record = put(here, secret)
        push(here, backend, record.id)
        objects = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
        layer = record.manifest.layers["root"][0]
        assert not any(layer in str(path) for path in objects)
        for path in objects:
            assert b"secret of this" not in path.read_bytes()
            assert b"pages-1" not in path.read_bytes()
        assert push(here, backend, record.id).moved_bytes == 0
        with Store(tmp_path / "there", keys=SEALED) as there:
            pull(there, [backend], record.id)
            assert same(here, there, record.id)
    with Store(tmp_path / "other", keys=Keys(sealing=b"o" * 32)) as other, pytest.raises(UntrustedSnapshot):
        pull(other, [backend], record.id)
    with Store(tmp_path / "none") as none, pytest.raises(InvalidRequest, match="sealed"):
        pull(none, [backend], record.id)


def test_a_sealed_object_under_another_name_is_refused(tmp_path: Path) -> None:
    backend = open_backend(f"file://{tmp_path}/objects")
    with Store(tmp_path / "here", keys=SEALED) as here, Store(tmp_path / "there", keys=SEALED) as there:
        one, two = put(here, b"1" * 5000), put(here, b"2" * 5000)
        for record in (one, two):
            push(here, backend, record.id)
        snapshots = tmp_path / "objects" / "snapshots"
        (snapshots / one.id).write_bytes((snapshots / two.id).read_bytes())
        with pytest.raises(UntrustedSnapshot):
            pull(there, [backend], one.id)


def test_only_signed_snapshots_come_in_where_signatures_are_required(tmp_path: Path, backend: Backend) -> None:
    mine = Keys(signing=b"s" * 32)
    with Store(tmp_path / "unsigned") as store:
        unsigned = put(store, b"1")
        push(store, backend, unsigned.id)
    with Store(tmp_path / "signed", keys=mine) as store:
        base = put(store, b"2")
        signed = put(store, b"3", parent=base)
        push(store, backend, signed.id)
    strict = Keys(trusted=(mine.public,), require_signed=True)
    with Store(tmp_path / "strict", keys=strict) as store:
        with pytest.raises(UntrustedSnapshot):
            pull(store, [backend], unsigned.id)
        assert store.records() == ()
        pull(store, [backend], signed.id)
        store.fetch(signed.id)
        store.fetch(base.id)


def test_an_unreachable_backend_leaves_both_sides_as_they_were(here: Store, there: Store) -> None:
    record = put(here, b"1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        options = {"endpoint": f"http://127.0.0.1:{taken.getsockname()[1]}", "region": "r", "access_key_id": "k"}
        backend = open_backend("s3://b/x", options={**options, "secret_access_key": "s"}, patience=0.0)
        with pytest.raises(BackendUnavailable):
            push(here, backend, record.id)
        with pytest.raises(BackendUnavailable):
            pull(there, [backend], record.id)
    assert there.records() == ()


@pytest.mark.parametrize("keys", [Keys(), SEALED, Keys(signing=b"s" * 32, require_signed=True)], ids=repr)
def test_an_archive_carries_a_whole_chain(tmp_path: Path, keys: Keys) -> None:
    with Store(tmp_path / "here", keys=keys) as here, Store(tmp_path / "there", keys=keys) as there:
        base = put(here, os.urandom(100_000))
        delta = put(here, b"delta", parent=base)
        export_archive(here, delta.id, tmp_path / "archive")
        (record,) = import_archive(there, tmp_path / "archive", name="imported")
        assert record.id == delta.id
        assert record.facts.names == ("imported",)
        assert same(here, there, delta.id)
        with pytest.raises(InvalidRequest, match="exists"):
            export_archive(here, delta.id, tmp_path / "archive")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "here", "there"]


def test_a_failed_export_leaves_no_file(here: Store, tmp_path: Path) -> None:
    record = put(here, b"1" * 100)
    (here.layout.images(record.id) / "pages-1.img").write_bytes(b"damaged")
    with pytest.raises(CorruptSnapshot):
        export_archive(here, record.id, tmp_path / "archive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
