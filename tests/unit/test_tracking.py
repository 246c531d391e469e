"""The belief about tracked writes: given up by every dump, taken up by the snapshot of the latest one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from thawbox.model import SnapshotId
from thawbox.sandbox.tracking import begin_dump, note_snapshot

ONE, TWO = SnapshotId("1" * 64), SnapshotId("2" * 64)


def test_the_first_dump_is_tracked_since_nothing(tmp_path: Path) -> None:
    assert begin_dump(tmp_path) == (1, None)


def test_a_dump_after_a_snapshot_is_tracked_since_that_snapshot(tmp_path: Path) -> None:
    note_snapshot(tmp_path, begin_dump(tmp_path)[0], ONE)
    number, since = begin_dump(tmp_path)
    assert since == ONE
    note_snapshot(tmp_path, number, TWO)
    assert begin_dump(tmp_path)[1] == TWO


def test_a_dump_of_which_no_snapshot_came_ends_the_belief(tmp_path: Path) -> None:
    note_snapshot(tmp_path, begin_dump(tmp_path)[0], ONE)
    begin_dump(tmp_path)
    assert begin_dump(tmp_path)[1] is None


def test_a_snapshot_finished_after_a_later_dump_began_is_not_believed(tmp_path: Path) -> None:
    first, _ = begin_dump(tmp_path)
    second, _ = begin_dump(tmp_path)
    note_snapshot(tmp_path, first, ONE)
    assert begin_dump(tmp_path)[1] is None
    note_snapshot(tmp_path, second, TWO)
    assert begin_dump(tmp_path)[1] is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"dump": "x"}', b"\xff\xfe"])
def test_a_damaged_note_is_no_belief(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tracked").write_bytes(content)
    assert begin_dump(tmp_path) == (1, None)
