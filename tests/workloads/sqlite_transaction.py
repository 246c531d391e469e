"""sqlite in the middle of a transaction: rows that only this connection sees, and a lock that keeps others out."""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import sys
import time

from answering import serve

DATABASE = "/var/lib/rows.db"
OTHER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
print(db.execute("SELECT count(*), coalesce(sum(length(word)), 0) FROM rows").fetchone(), end=" ")
try:
    db.execute("BEGIN IMMEDIATE")
    print("free")
except sqlite3.OperationalError as error:
    print(error)
"""

nonce = secrets.token_hex(16)
db = sqlite3.connect(DATABASE, isolation_level=None)
db.execute(f"PRAGMA journal_mode={sys.argv[1]}")
db.execute("CREATE TABLE rows (word TEXT)")
db.execute("BEGIN IMMEDIATE")
grown = 0


def grow() -> None:
    """More rows in the open transaction; each third time it is committed and the next one begun."""
    global grown
    grown += 1
    db.executemany("INSERT INTO rows VALUES (?)", [(secrets.token_hex(200),) for _ in range(20)])
    if grown % 3 == 0:
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")


def kept() -> dict[str, object]:
    other = subprocess.run([sys.executable, "-c", OTHER, DATABASE], capture_output=True, text=True, check=True)
    return {
        "nonce": nonce,
        "in_transaction": db.in_transaction,
        "rows": db.execute("SELECT count(*), max(rowid) FROM rows").fetchone(),
        "words": hash(tuple(db.execute("SELECT word FROM rows ORDER BY rowid"))),
        "seen_by_others": other.stdout.strip(),
        "whole": db.execute("PRAGMA integrity_check").fetchone(),
        "files": sorted(os.listdir("/var/lib")),
    }


grow()
serve(kept, lambda: {"monotonic": time.monotonic_ns()}, grow)
