"""The journal's log: it does not grow for ever, and only a removal waits for the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from thawbox.model import Phase, SandboxId, Spec
from thawbox.sandbox import Journal, Record

RECORD = Record(
    id=SandboxId("sb-000000000000"), name="one", spec=Spec(("true",)), phase=Phase.RUNNING, created_at=0.0,
    hostname="one", machine_id="0" * 32,
)  # fmt: skip


def test_the_log_of_a_journal_that_stays_open_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    log = tmp_path / "journal.db-wal"
    sizes = []
    for _ in range(6):
        for number in range(200):
            record = replace(RECORD, id=SandboxId(f"sb-{number:012x}"), name=f"n{number}")
            journal.add(record)
            journal.update(replace(record, lease="given"))
            journal.remove(record.id)
        sizes.append(log.stat().st_size)
    assert sizes[-1] <= 2 * sizes[0]
    journal.close()


def test_what_is_written_while_the_log_is_moved_is_there_for_every_reader(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "journal.db"), Journal(tmp_path / "journal.db")
    journal.add(RECORD)
    for number in range(400):
        journal.update(replace(RECORD, lease=str(number)))
        if number % 40 == 0:
            journal._shorten_log()
        assert other.find("one").lease == str(number)
    journal.close()
    other.close()
