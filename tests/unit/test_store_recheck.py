"""Damage of stored bytes is found in the background; one damaged snapshot does not hide the others."""

from __future__ import annotations

import os
from pathlib import Path

from thawbox.model import SnapshotKind
from thawbox.store import Compat, Draft, Record, Store
from thawbox.store.recheck import Recheck

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")


def put(store: Store, content: bytes) -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(content * 4096)
        return store.put(staging, Draft(SnapshotKind.FULL, COMPAT))


def flip_a_bit(path: Path) -> None:
    """Change one byte and put size and modification time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_bit_is_found_and_the_others_are_still_looked_at(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        damaged, sound, last = (put(store, content).id for content in (b"a", b"b", b"c"))
        flip_a_bit(store.layout.images(damaged) / "pages-1.img")
        recheck = Recheck(store, period=0)
        for _ in range(3):
            recheck.check_next()
        assert {problem.snapshot for problem in recheck.problems} == {damaged}
        flip_a_bit(store.layout.images(last) / "pages-1.img")
        for _ in range(3):
            recheck.check_next()
        assert {problem.snapshot for problem in recheck.problems} == {damaged, last}
        assert not store.verify([sound], deep=True)


def test_the_thread_ends_with_its_block(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        put(store, b"a")
        with Recheck(store, period=0.001) as recheck:
            pass
        assert recheck.problems == ()
