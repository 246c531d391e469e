"""What `put` makes, `fetch` gives back; what was not put whole is not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from thawbox.errors import (
    BrokenChain,
    CorruptSnapshot,
    DumpFailed,
    InvalidRequest,
    LockTimeout,
    SnapshotNotFound,
    Unavailable,
    Unsupported,
)
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Record, Store, parent_link

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as opened:
        yield opened


def put(
    store: Store,
    *,
    pages: bytes = b"p" * 5000,
    parent: SnapshotId | None = None,
    tree: dict[str, bytes] | None = None,
    beneath: tuple[str, ...] = (),
    **options: object,
) -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(pages)
        (staging.images / "inventory.img").write_bytes(b"inventory")
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent))
        if tree is not None:
            (staging.layer / "root").mkdir()
            for name, content in tree.items():
                (staging.layer / "root" / name).write_bytes(content)
        kind = SnapshotKind.DELTA if parent else SnapshotKind.FULL
        draft = Draft(
            kind, COMPAT, parent=parent, layers={"root": beneath} if beneath else {}, body={"spec": {"a": [1]}}
        )
        return store.put(staging, draft, **options)  # type: ignore[arg-type]


def everything_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_snapshot_comes_back_byte_for_byte(store: Store) -> None:
    record = put(store, tree={"etc": b"rootfs"}, name="first", labels={"k": "v"}, ttl=60.0, pinned=True)
    fetched = store.fetch(record.id)
    assert (fetched.images[0] / "pages-1.img").read_bytes() == b"p" * 5000
    assert (fetched.layers["root"][0] / "etc").read_bytes() == b"rootfs"
    assert fetched.manifest.body == {"spec": {"a": [1]}}
    assert record.facts.names == ("first",)
    assert record.facts.labels == {"k": "v"}
    assert record.facts.pinned
    assert record.bytes == 5000 + len(b"inventory") + len(b"rootfs")
    assert store.records() == (store.record(record.id),)


def test_a_reopened_store_knows_what_was_put(store: Store) -> None:
    record = put(store, name="kept")
    with Store(store.layout.root) as again:
        assert again.resolve("kept") == record.id
        assert again.fetch(record.id).manifest == record.manifest


def test_nothing_is_left_of_a_staging_that_was_not_put(store: Store) -> None:
    before = everything_below(store.layout.root)
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(b"x")
    assert everything_below(store.layout.root) == before


def test_a_put_leaves_only_the_snapshot_and_its_layer(store: Store) -> None:
    record = put(store, tree={"f": b"1"})
    assert [path.name for path in store.layout.snapshots.iterdir()] == [record.id]
    assert sorted(path.name for path in store.layout.snapshot(record.id).iterdir()) == ["images", "manifest.json"]
    assert [path.name for path in store.layout.layers.iterdir()] == [record.manifest.layers["root"][0]]


def test_a_deltas_link_leads_to_its_parents_images_before_and_after_the_commit(store: Store) -> None:
    base = put(store)
    with store.stage() as staging:
        (staging.images / "parent").symlink_to(parent_link(base.id))
        assert (staging.images / "parent" / "inventory.img").read_bytes() == b"inventory"
    delta = put(store, pages=b"d", parent=base.id)
    assert (store.layout.images(delta.id) / "parent" / "inventory.img").exists()
    assert store.chain(delta.id) == (base.id, delta.id)
    assert store.fetch(delta.id).images == (store.layout.images(base.id), store.layout.images(delta.id))


@pytest.mark.parametrize("target", ["/etc", "../../x/images", "../images"])
def test_a_link_anywhere_else_is_refused(store: Store, target: str) -> None:
    base = put(store)
    with store.stage() as staging, pytest.raises(InvalidRequest, match="link"):
        (staging.images / "parent").symlink_to(target)
        store.put(staging, Draft(SnapshotKind.DELTA, COMPAT, parent=base.id))


def test_a_delta_of_a_missing_parent_is_refused(store: Store) -> None:
    with pytest.raises(BrokenChain):
        put(store, parent=SnapshotId("0" * 64))
    assert store.records() == ()


def test_a_draft_that_contradicts_itself_is_refused(store: Store) -> None:
    with store.stage() as staging, pytest.raises(InvalidRequest):
        store.put(staging, Draft(SnapshotKind.DELTA, COMPAT))


def test_a_layer_that_is_not_stored_is_refused(store: Store) -> None:
    with pytest.raises(CorruptSnapshot, match="is not in this store"):
        put(store, beneath=("1" * 64,), tree={"a": b"b"})


def test_equal_trees_are_one_layer(store: Store, tmp_path: Path) -> None:
    def staged() -> Record:
        with store.stage() as staging:
            tree = staging.layer / "root"
            tree.mkdir()
            (tree / "file").write_bytes(b"same")
            for path in (tree / "file", tree):
                os.utime(path, ns=(1, 1))
            return store.put(staging, Draft(SnapshotKind.FULL, COMPAT))

    assert staged().manifest.layers == staged().manifest.layers
    assert len(store.catalog.layers_on_disk()) == 1


def test_an_unchanged_upper_adds_no_layer(store: Store) -> None:
    first = put(store, tree={"a": b"1"})
    second = put(store, tree={}, beneath=first.manifest.layers["root"])
    assert second.manifest.layers == first.manifest.layers


def test_a_layer_keeps_all_that_a_rootfs_cares_for(store: Store) -> None:
    with store.stage() as staging:
        tree = staging.layer / "root"
        tree.mkdir(mode=0o755)
        (tree / "dir").mkdir()
        os.setxattr(tree / "dir", "trusted.overlay.opaque", b"y")
        (tree / "dir" / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"content")
        os.chown(tree / "dir", 1000, 1001)
        os.mkfifo(tree / "fifo")
        os.mknod(tree / "whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
        (tree / "link").symlink_to("/etc/passwd")
        (tree / "one").write_bytes(b"linked")
        (tree / "two").hardlink_to(tree / "one")
        os.mknod(tree / "socket", stat.S_IFSOCK | 0o755)
        record = store.put(staging, Draft(SnapshotKind.FULL, COMPAT))
    entries = {entry.path: entry for entry in store.catalog.index(record.manifest.layers["root"][0]).entries}
    assert {path: entry.kind for path, entry in entries.items()} == {
        b"": "d", b"dir": "d", b"dir/not-utf8-\xff": "f", b"fifo": "p", b"whiteout": "c", b"link": "l", b"one": "f",
        b"two": "h", b"socket": "s",
    }  # fmt: skip
    assert entries[b"dir"].xattrs == ((b"trusted.overlay.opaque", b"y"),)
    assert (entries[b"dir"].uid, entries[b"dir"].gid) == (1000, 1001)
    assert entries[b"two"].target == b"one"
    store.fetch(record.id)


def test_a_tree_too_deep_for_the_kernel_is_refused_and_leaves_nothing(store: Store) -> None:
    with store.stage() as staging, pytest.raises(Unsupported, match="too long"):
        (staging.layer / "root").mkdir()
        at = os.open(staging.layer / "root", os.O_PATH)
        for _ in range(2500):
            os.mkdir("dd", dir_fd=at)
            inner = os.open("dd", os.O_PATH, dir_fd=at)
            os.close(at)
            at = inner
        os.close(at)
        store.put(staging, Draft(SnapshotKind.FULL, COMPAT))
    assert list(store.layout.snapshots.iterdir()) == []


def test_the_size_of_a_snapshot_is_what_it_added(store: Store) -> None:
    first = put(store, pages=b"p" * 100, tree={"a": b"1" * 10})
    second = put(store, pages=b"p" * 200, parent=first.id, beneath=first.manifest.layers["root"])
    third = put(store, pages=b"", parent=second.id, tree={"b": b"22"}, beneath=first.manifest.layers["root"])
    assert [record.bytes - len(b"inventory") for record in (first, second, third)] == [110, 200, 2]


def test_a_name_moves_to_the_newest_snapshot_and_does_not_fall_back(store: Store) -> None:
    put(store, name="tip")
    newer = put(store, name="tip")
    assert store.resolve("tip") == newer.id
    store.remove(newer.id)
    with pytest.raises(SnapshotNotFound):
        store.resolve("tip")


def test_resolve_takes_ids_names_and_unique_prefixes(store: Store) -> None:
    record = put(store, name="named")
    assert {store.resolve(ref) for ref in (record.id, "named", record.id[:6], record.id[:20])} == {record.id}
    for ref in (record.id[:5], "other", "f" * 64, ""):
        with pytest.raises(SnapshotNotFound):
            store.resolve(ref)


def test_an_ambiguous_prefix_lists_the_candidates(store: Store) -> None:
    for last in "ab":
        (store.layout.snapshots / ("c" * 63 + last)).mkdir()
    with pytest.raises(InvalidRequest, match="ambiguous"):
        store.resolve("cccccc")


def test_a_name_that_looks_like_an_id_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        put(store, name="a" * 64)
    assert store.records() == ()


def test_a_parent_is_not_removed_from_under_its_child(store: Store) -> None:
    base = put(store)
    delta = put(store, parent=base.id)
    with pytest.raises(InvalidRequest, match=delta.id[:12]):
        store.remove(base.id)
    assert store.remove(base.id, cascade=True) == (delta.id, base.id)
    assert store.records() == ()


def test_a_shared_layer_goes_with_its_last_snapshot(store: Store) -> None:
    first = put(store, tree={"a": b"1"})
    layer = first.manifest.layers["root"][0]
    second = put(store, beneath=(layer,), tree={"b": b"2"})
    store.remove(first.id)
    assert store.catalog.has_layer(layer)
    store.remove(second.id)
    assert store.catalog.layers_on_disk() == set()


def test_what_is_held_stays_until_released(store: Store) -> None:
    record = put(store, tree={"a": b"1"})
    layers = record.manifest.layers["root"]
    store.hold("sandbox:sb-1", snapshots=[record.id])
    with pytest.raises(InvalidRequest, match="sandbox:sb-1"):
        store.remove(record.id)
    store.release("sandbox:sb-1")
    store.hold("sandbox:sb-2", layers=layers)
    store.remove(record.id)
    assert store.catalog.has_layer(layers[0])
    assert store.holders() == ("sandbox:sb-2",)
    store.release("sandbox:sb-2")
    assert store.gc().layers == layers
    assert not store.catalog.has_layer(layers[0])


def test_what_is_being_read_stays(store: Store) -> None:
    base = put(store)
    delta = put(store, parent=base.id)
    with store.reading(delta.id) as fetched:
        with pytest.raises(LockTimeout):
            store.remove(delta.id)
        assert store.gc(budget=1).removed == ()
        assert fetched.images[1].is_dir()
    store.remove(delta.id)


def test_a_pinned_snapshot_is_not_removed(store: Store) -> None:
    record = put(store, pinned=True)
    with pytest.raises(InvalidRequest, match="pinned"):
        store.remove(record.id)
    store.pin(record.id, pinned=False)
    store.remove(record.id)


def test_the_outcome_of_a_put_can_be_asked_for_by_its_token(store: Store) -> None:
    with store.stage() as staging:
        assert store.outcome(staging.token) is None
        record = store.put(staging, Draft(SnapshotKind.FULL, COMPAT))
    outcome = store.outcome(staging.token)
    assert outcome is not None
    assert outcome.id == record.id
    store.record_failure("0123456789abcdef", "disk full")
    failed = store.outcome("0123456789abcdef")
    assert failed is not None
    assert (failed.id, failed.error) == (None, "disk full")


def test_waiting_for_a_put_ends_with_its_snapshot_its_error_or_its_death(store: Store) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with Store(store.layout.root) as mine:
            staging = mine.begin()
            os.write(writing, staging.token.encode())
            os.write(writing, mine.put(staging, Draft(SnapshotKind.FULL, COMPAT)).id.encode())
        os._exit(0)
    token = os.read(reading, 16).decode()
    snapshot = store.wait(token, timeout=60.0)
    assert snapshot == os.read(reading, 64).decode()
    assert os.waitpid(child, 0)[1] == 0
    os.close(reading)
    os.close(writing)
    with store.stage() as staging:
        assert store.pending() == {staging.token}
        with pytest.raises(Unavailable):
            store.wait(staging.token, timeout=0.0)
        store.record_failure(staging.token, "the disk is full")
        with pytest.raises(DumpFailed, match="the disk is full"):
            store.wait(staging.token, timeout=60.0)
    with pytest.raises(SnapshotNotFound):
        store.wait("0" * 16, timeout=60.0)


def test_another_process_can_take_over_a_staging(store: Store) -> None:
    child = os.fork()
    if child == 0:
        (store.begin().images / "pages-1.img").write_bytes(b"1")
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = store.layout.snapshots.iterdir()
    mine = store.take_over(left)
    with Store(store.layout.root):
        assert mine.images.is_dir()
    assert store.put(mine, Draft(SnapshotKind.FULL, COMPAT)).manifest.files.keys() == {"pages-1.img"}


def test_a_staging_of_the_living_is_left_alone_and_one_of_the_dead_is_swept(store: Store) -> None:
    mine = store.begin()
    child = os.fork()
    if child == 0:
        store.begin()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(store.layout.snapshots.iterdir())) == 2
    with Store(store.layout.root):
        assert list(store.layout.snapshots.iterdir()) == [mine.path]
    store.discard(mine)


def test_gc_says_what_would_go_and_why_and_does_only_that(store: Store) -> None:
    base = put(store, pages=b"b" * 100_000)
    old = put(store, pages=b"o" * 100_000, parent=base.id)
    kept = put(store, pages=b"k" * 100_000, pinned=True)
    expired = put(store, pages=b"e" * 100_000, ttl=-1.0)
    plan = store.gc(budget=150_000, dry_run=True)
    assert [verdict.id for verdict in plan.removed] == [expired.id, old.id, base.id]
    assert "time to live" in plan.removed[0].reason
    assert "budget" in plan.removed[1].reason
    assert len(store.records()) == 4
    assert store.gc(budget=150_000).removed == plan.removed
    assert [record.id for record in store.records()] == [kept.id]
