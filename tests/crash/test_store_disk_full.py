"""The disk fills up: a put either succeeds whole or fails with the disk's own error and leaves nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import traceback
from pathlib import Path

from thawbox.model import SnapshotKind
from thawbox.store import Compat, Draft, Record, Store

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
CLONE_NEWNS = 0x00020000
MS_PRIVATE_RECURSIVE = 1 << 18 | 1 << 14


def in_own_mounts(directory: Path, size: int) -> None:
    """Leave the host's mount namespace and put a small tmpfs on `directory`; it goes with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_PRIVATE_RECURSIVE, None) == 0
    assert libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, f"size={size}".encode()) == 0


def put(store: Store, mark: bytes) -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(mark * 60_000)
        (staging.layer / "root").mkdir()
        (staging.layer / "root" / "file").write_bytes(mark * 30_000)
        return store.put(staging, Draft(SnapshotKind.FULL, COMPAT), name="tip")


def fill(directory: Path, *, leaving: int) -> Path:
    filler = directory / "filler"
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_bsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - leaving, 1))
    return filler


def every_fill_level(mounted: Path) -> None:
    outcomes: set[bool] = set()
    with Store(mounted / "store") as store:
        acknowledged = [put(store, b"first").id]
    for leaving in range(0, 800_000, 24_576):
        filler = fill(mounted, leaving=leaving)
        try:
            with Store(mounted / "store") as store:
                acknowledged.append(put(store, b"%05d" % leaving).id)
            outcomes.add(True)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            outcomes.add(False)
        filler.unlink()
        with Store(mounted / "store") as store:
            assert store.verify(deep=True) == ()
            assert {record.id for record in store.records()} == set(acknowledged)
            assert store.resolve("tip") == acknowledged[-1]
            assert not [path for path in store.layout.snapshots.iterdir() if path.name.startswith(".")]
            while len(acknowledged) > 1:
                store.remove(acknowledged.pop(0))
    assert outcomes == {True, False}


def test_a_full_disk_fails_the_put_and_nothing_else(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            in_own_mounts(tmp_path, 2_000_000)
            every_fill_level(tmp_path)
        except BaseException:  # noqa: BLE001 — the child must never return into pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
