"""Several processes at one store: whatever they do to each other, every snapshot that is listed is whole."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable
from pathlib import Path

from thawbox.errors import BrokenChain, CorruptSnapshot, InvalidRequest, LockTimeout, SnapshotNotFound
from thawbox.model import SnapshotKind
from thawbox.store import Compat, Draft, Store, parent_link

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
ROUNDS = 40


def putting(store: Store, rng: random.Random) -> None:
    """Fulls, and deltas of whatever is there; a parent may vanish before the put."""
    parents = [None, *(record.id for record in store.records())]
    parent = rng.choice(parents)
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(rng.randbytes(rng.randrange(20_000)))
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent))
        (staging.layer / "root").mkdir()
        (staging.layer / "root" / "file").write_bytes(rng.choice([b"a", b"b"]))
        os.utime(staging.layer / "root" / "file", ns=(1, 1))
        os.utime(staging.layer / "root", ns=(1, 1))
        kind = SnapshotKind.DELTA if parent else SnapshotKind.FULL
        store.put(staging, Draft(kind, COMPAT, parent=parent), name=rng.choice(["", "tip"]))


def removing(store: Store, rng: random.Random) -> None:
    records = store.records()
    if len(records) > 4:
        store.remove(rng.choice(records).id, cascade=rng.random() < 0.5)


def collecting(store: Store, rng: random.Random) -> None:
    store.gc(budget=rng.randrange(20_000, 100_000))


def reading(store: Store, rng: random.Random) -> None:
    records = store.records()
    for record in rng.sample(records, k=min(2, len(records))):
        with store.reading(record.id) as fetched:
            for images, link in zip(fetched.images, store.chain(record.id), strict=True):
                expected = store.manifest(link).files["pages-1.img"].size
                assert (images / "pages-1.img").stat().st_size == expected
            for tree in fetched.layers["root"]:
                assert (tree / "file").read_bytes() in {b"a", b"b"}


def reopening(store: Store, _rng: random.Random) -> None:
    with Store(store.layout.root) as again:
        again.records()


def run(root: Path, work: Callable[[Store, random.Random], None], seed: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        rng = random.Random(seed)
        with Store(root) as store:
            for _ in range(ROUNDS):
                try:
                    work(store, rng)
                except (BrokenChain, SnapshotNotFound, InvalidRequest, LockTimeout):
                    continue  # somebody else was quicker: a clean refusal
                except CorruptSnapshot as error:
                    if "is not in this store" not in error.cause:
                        raise
    except BaseException:  # noqa: BLE001 — the child must never return into pytest
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def test_processes_that_put_remove_collect_read_and_sweep_at_once_leave_a_whole_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store(root).close()
    works = (putting, putting, removing, collecting, reading, reopening)
    children = [run(root, work, seed) for seed, work in enumerate(works)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(works)
    with Store(root) as store:
        assert store.verify(deep=True) == ()
        assert [path.name for path in store.layout.snapshots.iterdir() if path.name.startswith(".")] == []
        for record in store.records():
            store.fetch(record.id)
        store.gc()
        needed = {digest for link in store.links() for digest in link.layers}
        assert store.catalog.layers_on_disk() == needed
