"""What SQLite says of our own disk is told as what it means, and a failed change leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from thawbox.errors import LockTimeout
from thawbox.host.sqlite import disk_errors, transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


@pytest.fixture
def sql(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
        opened.execute("CREATE TABLE t (x)")
        yield opened


def test_a_full_disk_is_told_as_one_and_the_next_change_is_made(path: Path, sql: sqlite3.Connection) -> None:
    sql.execute("PRAGMA max_page_count = 3")
    with pytest.raises(OSError, match="No space") as full, disk_errors(path), transaction(sql):
        sql.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    sql.execute("PRAGMA max_page_count = 1000")
    with disk_errors(path), transaction(sql):
        sql.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert sql.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_a_commit_that_fails_leaves_no_transaction_open(path: Path, sql: sqlite3.Connection) -> None:
    sql.execute("PRAGMA foreign_keys=ON")
    sql.execute("CREATE TABLE of (t REFERENCES u (id) DEFERRABLE INITIALLY DEFERRED)")
    sql.execute("CREATE TABLE u (id INTEGER PRIMARY KEY)")
    with pytest.raises(sqlite3.IntegrityError), disk_errors(path), transaction(sql):
        sql.execute("INSERT INTO of VALUES (7)")
    assert not sql.in_transaction


def test_what_another_holds_too_long_is_a_lock_timeout(path: Path, sql: sqlite3.Connection) -> None:
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other, transaction(other),
        pytest.raises(LockTimeout), disk_errors(path), transaction(sql),
    ):  # fmt: skip
        pass


def test_other_errors_go_on(path: Path, sql: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"), disk_errors(path):
        sql.execute("SELECT * FROM elsewhere")
