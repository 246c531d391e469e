"""Killed before every write: afterwards every listed snapshot is whole, and nothing acknowledged is lost.

A child process does the work and dies by SIGKILL just before its n-th call that changes something on the disk, for
n = 1, 2, … until it gets through. The calls are counted by the interpreter's own profiling hook, so no code of ours
knows that it is being tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Record, Store, parent_link
from thawbox.store.archive import export_archive, import_archive

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
WRITES = {
    "write",
    "fsync",
    "rename",
    "mkdir",
    "rmdir",
    "unlink",
    "symlink",
    "link",
    "truncate",
    "ftruncate",
    "utime",
    "setxattr",
    "mknod",
    "chmod",
    "chown",
    "execute",
    "executemany",
    "executescript",
}

Scenario = Callable[[Store, Callable[[str], None]], None]


def put(store: Store, *, parent: SnapshotId | None = None, layer: bytes = b"", name: str = "") -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(b"p" * 9000)
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent))
        if layer:
            (staging.layer / "root").mkdir()
            (staging.layer / "root" / "file").write_bytes(layer)
        kind = SnapshotKind.DELTA if parent else SnapshotKind.FULL
        return store.put(staging, Draft(kind, COMPAT, parent=parent), name=name, labels={"a": "b"})


def run_until_killed(work: Callable[[Callable[[str], None]], None], at: int) -> tuple[list[str], bool]:
    """Fork, do the work, die before write number `at`; returns what was acknowledged, and whether it got through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def count(_frame: types.FrameType, event: str, function: object) -> None:
            nonlocal seen
            if event == "c_call" and getattr(function, "__name__", "") in WRITES:
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        def acknowledge(text: str) -> None:
            sys.setprofile(None)
            os.write(writing, text.encode() + b"\n")
            sys.setprofile(count)

        sys.setprofile(count)
        threading.setprofile(count)
        try:
            work(acknowledge)
        except BaseException:  # noqa: BLE001 — the child must never return into pytest
            os._exit(3)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = pipe.read().decode().split()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}
    return acknowledged, status == 0


def putting(store: Store, acknowledge: Callable[[str], None]) -> None:
    base = put(store, layer=b"layer", name="tip")
    acknowledge(f"+{base.id}")
    acknowledge(f"+{put(store, parent=base.id, layer=b'other', name='tip').id}")


def removing(store: Store, acknowledge: Callable[[str], None]) -> None:
    for snapshot in store.remove(store.resolve("old"), cascade=True):
        acknowledge(f"-{snapshot}")


def collecting(store: Store, acknowledge: Callable[[str], None]) -> None:
    for verdict in store.gc(budget=1).removed:
        acknowledge(f"-{verdict.id}")


def importing(store: Store, acknowledge: Callable[[str], None]) -> None:
    for record in import_archive(store, store.layout.root.parent / "archive"):
        acknowledge(f"+{record.id}")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A killed process loses nothing that it had written, wherever it was: a disk would only make this wait."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="thawbox-test-") as path:
        yield Path(path)


@pytest.mark.parametrize("scenario", [putting, removing, collecting, importing])
def test_killed_before_any_write_the_store_is_whole(in_memory: Path, scenario: Scenario) -> None:
    seed = in_memory / "seed"
    with Store(seed) as store:
        kept = put(store, layer=b"kept", name="kept")
        store.pin(kept.id)
        old = put(store, layer=b"old", name="old")
        put(store, parent=old.id, layer=b"older", name="older")
    write_archive(in_memory / "archive")
    got_through, at = False, 0
    while not got_through:
        at += 1
        root = in_memory / f"at-{at}"
        shutil.copytree(seed, root, symlinks=True)

        def work(acknowledge: Callable[[str], None], root: Path = root) -> None:
            with Store(root) as store:
                scenario(store, acknowledge)

        acknowledged, got_through = run_until_killed(work, at)
        check(root, acknowledged, kept.id)
        shutil.rmtree(root)
    assert at > 20


def write_archive(path: Path) -> None:
    with Store(path.with_name("exporting")) as store:
        base = put(store, layer=b"far")
        export_archive(store, put(store, parent=base.id, layer=b"farther").id, path)


def check(root: Path, acknowledged: list[str], kept: SnapshotId) -> None:
    with Store(root) as store:
        assert [path.name for path in store.layout.snapshots.iterdir() if path.name.startswith(".")] == []
        assert store.verify(deep=True) == ()
        listed = {record.id for record in store.records()}
        assert {line[1:] for line in acknowledged if line[0] == "+"} <= listed
        assert not {line[1:] for line in acknowledged if line[0] == "-"} & listed
        assert store.resolve("kept") == kept
        for snapshot in listed:
            store.fetch(snapshot)
        if len([line for line in acknowledged if line[0] == "+"]) == 2:
            assert store.resolve("tip") == acknowledged[1][1:]
        if (root / "incoming").is_dir() and any((root / "incoming").iterdir()):
            import_archive(store, root.parent / "archive")  # what an interrupted one left is gone on from
        store.gc()
        assert [path for path in store.layout.incoming.iterdir() if path.is_dir()] == []
        assert store.verify(deep=True) == ()
        needed = {digest for one in store.links() for digest in one.layers}
        assert store.catalog.layers_on_disk() == needed
