"""What may change about a snapshot: names, labels, pins, times, and who holds it. One small SQLite file.

Rule 1: nothing here decides what a snapshot contains; losing this file loses names, never snapshots.
Rule 2: rows are written before the snapshot they speak of is renamed into place, so both appear at once; rows that
speak of no snapshot are invisible and swept when the store is next opened.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.errors import LockTimeout
from thawbox.host.sqlite import disk_errors, transaction
from thawbox.model import SnapshotId

_SCHEMA = """
CREATE TABLE IF NOT EXISTS names (seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, id TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS names_by_name ON names (name);
CREATE TABLE IF NOT EXISTS labels (id TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (id, key));
CREATE TABLE IF NOT EXISTS facts (id TEXT PRIMARY KEY, pinned INTEGER NOT NULL DEFAULT 0, expires_at REAL,
                                  used_at REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS holds (holder TEXT, kind TEXT, target TEXT, PRIMARY KEY (holder, kind, target));
CREATE TABLE IF NOT EXISTS outcomes (token TEXT PRIMARY KEY, id TEXT NOT NULL, error TEXT NOT NULL, at REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """The changeable side of one snapshot. Times are seconds since the epoch; `used_at` 0 means never."""

    names: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])
    pinned: bool = False
    expires_at: float | None = None
    used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a put that somebody may be waiting for ended: a snapshot, or an error in words."""

    id: SnapshotId | None
    error: str = ""


class Refs:
    """The open file. Safe to use from several threads and processes; not across a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._sql = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
        try:
            with disk_errors(path):
                self._sql.execute("PRAGMA journal_mode=WAL")
                self._sql.executescript(_SCHEMA)
        except BaseException:
            self._sql.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    @contextlib.contextmanager
    def _change(self, *, durable: bool = True) -> Generator[sqlite3.Connection]:
        """One transaction. Not durable: survives the death of the process, perhaps not a power failure."""
        with self._lock, disk_errors(self._path):
            self._sql.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            with transaction(self._sql):
                yield self._sql

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock, disk_errors(self._path):
            return self._sql.execute(query, values).fetchall()

    def announce(
        self,
        snapshot: SnapshotId,
        *,
        names: Iterable[str],
        labels: Mapping[str, str],
        facts: Facts,
        token: str,
        at: float,
    ) -> None:
        """Write everything about a snapshot that is about to be renamed into place, or already is."""
        with self._change() as sql:
            sql.executemany("INSERT INTO names (name, id) VALUES (?, ?)", [(name, snapshot) for name in names])
            sql.executemany(
                "INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", [(snapshot, key, labels[key]) for key in labels]
            )
            sql.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)",
                (snapshot, facts.pinned, facts.expires_at, facts.used_at),
            )
            if token:
                sql.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, '', ?)", (token, snapshot, at))

    def record_failure(self, token: str, error: str, *, at: float) -> None:
        with self._change() as sql:
            sql.execute("INSERT OR REPLACE INTO outcomes VALUES (?, '', ?, ?)", (token, error, at))

    def record_success(self, token: str, snapshot: SnapshotId, *, at: float) -> None:
        with self._change() as sql:
            sql.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, '', ?)", (token, snapshot, at))

    def outcome(self, token: str) -> Outcome | None:
        rows = self._rows("SELECT id, error FROM outcomes WHERE token = ?", token)
        return Outcome(SnapshotId(str(rows[0][0])) if rows[0][0] else None, str(rows[0][1])) if rows else None

    def names(self) -> dict[str, list[SnapshotId]]:
        """Every name with the snapshots it was given to, newest first; the first that exists is meant."""
        found: dict[str, list[SnapshotId]] = {}
        for name, target in self._rows("SELECT name, id FROM names ORDER BY seq DESC"):
            found.setdefault(str(name), []).append(SnapshotId(str(target)))
        return found

    def named(self, name: str) -> list[SnapshotId]:
        """The snapshots that `name` was given to, newest first."""
        return [
            SnapshotId(str(row[0])) for row in self._rows("SELECT id FROM names WHERE name = ? ORDER BY seq DESC", name)
        ]

    def add_name(self, name: str, snapshot: SnapshotId) -> None:
        """Give the name to this snapshot and to no other."""
        with self._change() as sql:
            sql.execute("DELETE FROM names WHERE name = ?", (name,))
            sql.execute("INSERT INTO names (name, id) VALUES (?, ?)", (name, snapshot))

    def settle_names(self, names: Sequence[str], snapshot: SnapshotId) -> None:
        """Take the names, which `snapshot` was given just now, from whoever had them before.

        A failure is passed over: the newest giving counts anyway, and the next open sweeps the others.
        """
        if not names:
            return
        with contextlib.suppress(OSError, LockTimeout), self._change() as sql:
            sql.executemany("DELETE FROM names WHERE name = ? AND id != ?", [(name, snapshot) for name in names])

    def drop_name(self, name: str) -> None:
        with self._change() as sql:
            sql.execute("DELETE FROM names WHERE name = ?", (name,))

    def set_label(self, snapshot: SnapshotId, key: str, value: str | None) -> None:
        """Set a label, or remove it with None."""
        with self._change() as sql:
            sql.execute("DELETE FROM labels WHERE id = ? AND key = ?", (snapshot, key))
            if value is not None:
                sql.execute("INSERT INTO labels VALUES (?, ?, ?)", (snapshot, key, value))

    def set_pinned(self, snapshot: SnapshotId, pinned: bool) -> None:
        with self._change() as sql:
            sql.execute("INSERT OR IGNORE INTO facts (id) VALUES (?)", (snapshot,))
            sql.execute("UPDATE facts SET pinned = ? WHERE id = ?", (pinned, snapshot))

    def set_expiry(self, snapshot: SnapshotId, expires_at: float | None) -> None:
        with self._change() as sql:
            sql.execute("INSERT OR IGNORE INTO facts (id) VALUES (?)", (snapshot,))
            sql.execute("UPDATE facts SET expires_at = ? WHERE id = ?", (expires_at, snapshot))

    def mark_used(self, snapshots: Iterable[SnapshotId], at: float) -> None:
        with self._change(durable=False) as sql:
            sql.executemany(
                "INSERT INTO facts (id, used_at) VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at",
                [(snapshot, at) for snapshot in snapshots],
            )

    def facts(self, only: SnapshotId | None = None) -> dict[SnapshotId, Facts]:
        """The facts of every snapshot that has any, or of one; names excepted, which need to know what exists."""
        where, values = (" WHERE id = ?", (only,)) if only is not None else ("", ())
        labels: dict[str, dict[str, str]] = {}
        for target, key, value in self._rows(f"SELECT id, key, value FROM labels{where} ORDER BY key", *values):  # noqa: S608
            labels.setdefault(str(target), {})[str(key)] = str(value)
        found = {SnapshotId(target): Facts(labels=of_one) for target, of_one in labels.items()}
        query = f"SELECT id, pinned, expires_at, used_at FROM facts{where}"  # noqa: S608
        for target, pinned, expires_at, used_at in self._rows(query, *values):
            found[SnapshotId(str(target))] = Facts(
                labels=labels.get(str(target), {}),
                pinned=bool(pinned),
                expires_at=None if expires_at is None else float(str(expires_at)),
                used_at=float(str(used_at)),
            )
        return found

    def hold(self, holder: str, *, snapshots: Iterable[str], layers: Iterable[str]) -> None:
        """Add to what `holder` holds. Outlives the process; not made to outlive a power failure, nor do sandboxes."""
        rows = [(holder, "snapshot", target) for target in snapshots] + [(holder, "layer", target) for target in layers]
        with self._change(durable=False) as sql:
            sql.executemany("INSERT OR IGNORE INTO holds VALUES (?, ?, ?)", rows)

    def release(self, holder: str) -> None:
        with self._change(durable=False) as sql:
            sql.execute("DELETE FROM holds WHERE holder = ?", (holder,))

    def holds(self, kind: str) -> dict[str, tuple[str, ...]]:
        """Who holds what: target to holders, for `kind` snapshot or layer."""
        found: dict[str, tuple[str, ...]] = {}
        for target, holder in self._rows("SELECT target, holder FROM holds WHERE kind = ? ORDER BY holder", kind):
            found[str(target)] = (*found.get(str(target), ()), str(holder))
        return found

    def holders(self) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in self._rows("SELECT DISTINCT holder FROM holds ORDER BY holder"))

    def forget(self, snapshots: Iterable[str]) -> None:
        """Drop every row about these snapshots but their holds and outcomes."""
        with self._change() as sql:
            for table in ("names", "labels", "facts"):
                sql.executemany(f"DELETE FROM {table} WHERE id = ?", [(target,) for target in snapshots])  # noqa: S608

    def sweep(self, existing: set[str], *, outcomes_before: float) -> None:
        """Drop rows that speak of no existing snapshot, superseded names, and old outcomes."""
        known = {str(row[0]) for table in ("names", "labels", "facts") for row in self._rows(f"SELECT id FROM {table}")}  # noqa: S608
        self.forget(sorted(known - existing))
        with self._change() as sql:
            sql.execute("DELETE FROM names WHERE seq NOT IN (SELECT MAX(seq) FROM names GROUP BY name)")
            sql.execute("DELETE FROM outcomes WHERE at < ?", (outcomes_before,))
