"""Sizes, times and tables as people read them; failures as they are told."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess

import click
import pytest

from thawbox.cli import exit_status, failures, output
from thawbox.errors import CorruptSnapshot, DumpFailed


def test_sizes_have_the_unit_that_fits() -> None:
    shown = [output.human_size(size) for size in (0, 1023, 1024, 64 << 20, 3 << 29, 5 << 50, None)]
    assert shown == ["0 B", "1023 B", "1.0 KiB", "64.0 MiB", "1.5 GiB", "5120.0 TiB", "-"]


def test_spans_have_the_unit_that_fits() -> None:
    assert [output.human_duration(seconds) for seconds in (-1, 119, 120, 7200, 864_000)] == [
        "0s",
        "119s",
        "2m",
        "2h",
        "10d",
    ]


def test_a_moment_is_told_in_utc_with_milliseconds() -> None:
    assert output.timestamp(1_700_000_000.1234) == "2023-11-14T22:13:20.123Z"
    assert output.timestamp(None) is None


def test_a_table_is_aligned_whatever_its_colours(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "B"), [(click.style("xx", fg="red"), "1"), ("y", "2")])
    assert capsys.readouterr().out == "A    B\nxx   1\ny    2\n"


def test_an_error_is_told_with_cause_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    error = DumpFailed("criu failed", remediation="look", log="its last words")
    assert failures.tell([error], as_json=False, verbose=False) == 107
    told = capsys.readouterr()
    assert told.out == ""
    assert "criu failed" in told.err
    assert "look" in told.err
    assert "its last words" not in told.err
    assert failures.tell([error], as_json=False, verbose=True) == 107
    assert "its last words" in capsys.readouterr().err


def test_with_json_an_error_is_one_object_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [CorruptSnapshot("a flipped bit"), OSError(errno.ENOSPC, "No space left on device", "/x")]
    assert failures.tell(errors, as_json=True, verbose=False) == 108
    told = capsys.readouterr()
    assert told.out == ""
    found = json.loads(told.err)
    assert set(found["error"]) == {"code", "cause", "remediation"}
    assert found["error"]["code"] == "integrity.corrupt"
    assert [one["code"] for one in found["also"]] == ["host.enospc"]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "host.enospc", exit_status.HOST),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "host.eacces", exit_status.HOST),
        (TimeoutError("nobody answered"), "host.other", exit_status.HOST),
        (subprocess.TimeoutExpired(["/usr/bin/nft"], 5), "unavailable.program", 106),
        (click.UsageError("no such option"), "invalid.usage", exit_status.USAGE),
        (sqlite3.DatabaseError("malformed"), "host.records", exit_status.HOST),
        (RuntimeError("oops"), "defect", exit_status.DEFECT),
    ],
)
def test_what_is_not_ours_has_a_code_a_cause_and_a_remedy_too(error: Exception, code: str, status: int) -> None:
    failure = failures.failure_of(error)
    assert (failure.code, failure.status) == (code, status)
    assert failure.cause
    assert failure.remediation
