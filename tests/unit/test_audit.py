"""The audit log: only appended to, whole lines, rotated without losing one, by several writers; and nothing secret."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from thawbox.audit import AUDIT_LOG, Audit, Entry
from thawbox.errors import Unavailable

MOMENT = 1_790_000_000.5
ENTRY = Entry(
    who="ci", token="0123456789ab", via="http", what="POST /v1/sandboxes/{ref}/freeze", subject={"ref": "agent"},
    outcome="ok", status=200, ms=1.25,
)  # fmt: skip


def lines(home: Path) -> list[dict[str, object]]:
    """Every line of the log and of what it was renamed to, oldest first."""
    files = sorted(home.glob(f"{AUDIT_LOG}*"), key=lambda path: -int(path.suffix[1:]) if path.suffix != ".log" else 0)
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_to_which_when_and_how_it_ended(tmp_path: Path) -> None:
    with Audit(tmp_path) as audit:
        audit.write(ENTRY, at=MOMENT)
    assert lines(tmp_path) == [{
        "at": "2026-09-21T14:13:20.500Z", "who": "ci", "token": "0123456789ab", "via": "http",
        "what": "POST /v1/sandboxes/{ref}/freeze", "subject": {"ref": "agent"}, "outcome": "ok", "status": 200,
        "ms": 1.25,
    }]  # fmt: skip
    assert stat.S_IMODE((tmp_path / AUDIT_LOG).stat().st_mode) == 0o600


def test_what_was_there_stays_and_more_is_added_behind_it(tmp_path: Path) -> None:
    for _ in range(3):
        with Audit(tmp_path) as audit:
            audit.write(ENTRY, at=MOMENT)
    assert len(lines(tmp_path)) == 3


def test_a_line_is_in_the_file_when_it_was_written_not_when_the_log_is_closed(tmp_path: Path) -> None:
    with Audit(tmp_path) as audit:
        audit.write(ENTRY, at=MOMENT)
        assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("text", ["../../etc/passwd", "hunter2 is my password", "x" * 64, "a\nb", "", "/root/.ssh/id"])
def test_what_is_no_name_or_id_is_not_repeated(tmp_path: Path, text: str) -> None:
    with Audit(tmp_path) as audit:
        audit.write(Entry(who="ci", via="http", what="GET", outcome="not_found", subject={"ref": text}), at=MOMENT)
    (line,) = lines(tmp_path)
    assert line["subject"] == {"ref": "(no name)"}


def test_ids_of_snapshots_and_sandboxes_are_repeated(tmp_path: Path) -> None:
    ids = {"ref": "0f" * 32, "sandbox": "sb-0123456789ab"}
    with Audit(tmp_path) as audit:
        audit.write(Entry(who="ci", via="http", what="GET", outcome="ok", subject=ids), at=MOMENT)
    assert lines(tmp_path)[0]["subject"] == ids


WRITER = """
import sys
from pathlib import Path
from thawbox.audit import Audit, Entry
with Audit(Path(sys.argv[1]), largest=4000, kept=100) as audit:
    for number in range(100):
        audit.write(Entry(who=sys.argv[2], via="cli", what=str(number), outcome="ok"), at=1.0)
"""


def test_several_processes_write_and_rotate_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), f"writer-{number}"]) for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = lines(tmp_path)
    for number in range(3):
        assert [line["what"] for line in found if line["who"] == f"writer-{number}"] == [str(n) for n in range(100)]
    files = list(tmp_path.glob(f"{AUDIT_LOG}*"))
    in_hand = 2 * max(len(line) for path in files for line in path.read_bytes().splitlines(keepends=True))
    assert (
        max(path.stat().st_size for path in files) <= 4000 + in_hand
    )  # the other two may have looked before it was full


def test_of_renamed_files_the_newest_stay(tmp_path: Path) -> None:
    with Audit(tmp_path, largest=400, kept=2) as audit:
        for number in range(20):
            audit.write(Entry(who="ci", via="cli", what=str(number), outcome="ok"), at=MOMENT)
    assert len(list(tmp_path.glob(f"{AUDIT_LOG}*"))) == 3
    kept = [str(line["what"]) for line in lines(tmp_path)]
    assert kept == [str(number) for number in range(20)][-len(kept) :]


def test_what_cannot_be_written_is_said_before_the_next_thing_is_done(tmp_path: Path) -> None:
    with Audit(tmp_path) as audit:
        audit.check(at=MOMENT)
        (tmp_path / AUDIT_LOG).unlink()
        (tmp_path / AUDIT_LOG).mkdir()  # stands for a disk that takes nothing
        with pytest.raises(OSError, match=os.strerror(21)):
            audit.write(ENTRY, at=MOMENT)
        with pytest.raises(Unavailable):
            audit.check(at=MOMENT)
        (tmp_path / AUDIT_LOG).rmdir()
        audit.check(at=MOMENT)
        audit.write(ENTRY, at=MOMENT)
    assert [line["what"] for line in lines(tmp_path)] == ["resumed", ENTRY.what]
