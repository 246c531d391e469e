"""`service.db` below THAWBOX_HOME: what the service remembers beside the node's own journal.

Tokens (hashed), events (a ring), operations, answers by idempotency key, and which token made what.

Rule: what was answered or sent is written first. A killed process loses nothing; a power cut may take the last moments.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from thawbox.host.sqlite import disk_errors, transaction

BOOK = "service.db"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (id TEXT PRIMARY KEY, content TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, is_over INTEGER NOT NULL, content TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    caller TEXT, key TEXT, request TEXT NOT NULL, at REAL NOT NULL, status INTEGER NOT NULL, headers TEXT NOT NULL,
    body BLOB, PRIMARY KEY (caller, key)
) STRICT;
CREATE TABLE IF NOT EXISTS owners (id TEXT PRIMARY KEY, kind TEXT NOT NULL, token TEXT NOT NULL) STRICT;
"""
_BUSY_SECONDS = 10.0


class Book:
    """The open file. Safe to use from several threads and processes."""

    def __init__(self, home: Path) -> None:
        path = home / BOOK
        path.touch(mode=0o600)
        self._path = path
        self._lock = threading.Lock()
        with disk_errors(path):
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def change(self) -> Generator[sqlite3.Connection]:
        """One transaction; nobody else changes or reads meanwhile. Raises OSError for what the disk refuses."""
        with self._lock, disk_errors(self._path), transaction(self._db):
            yield self._db

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock, disk_errors(self._path):
            return self._db.execute(query, values).fetchall()
