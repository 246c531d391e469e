"""Errors of SQLite that are our own disk's, or another command's: told as what they are."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path

from thawbox.errors import LockTimeout

_MEANT = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO, sqlite3.SQLITE_READONLY: errno.EROFS}
"""By primary result code (https://sqlite.org/rescode.html)."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """A block that uses the database at `path`: what the disk refuses is an OSError, as of any other file of ours.

    Raises LockTimeout where others kept it locked for too long. What else SQLite raises goes on.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        primary = error.sqlite_errorcode & 0xFF
        code = _MEANT.get(primary)
        if error.sqlite_errorcode == sqlite3.SQLITE_IOERR_SHMSIZE:  # the index beside the log could not grow
            code = errno.ENOSPC
        if code is not None:
            raise OSError(code, os.strerror(code), str(path)) from error
        if primary == sqlite3.SQLITE_BUSY:
            raise LockTimeout(f"{path.name} is in use by another command", remediation="retry") from error
        raise


@contextlib.contextmanager
def transaction(sql: sqlite3.Connection) -> Generator[None]:
    """A block whose changes are made when it ends, or not at all: also when the disk fills up in the commit."""
    try:
        sql.execute("BEGIN IMMEDIATE")
        yield
        sql.execute("COMMIT")
    except BaseException:
        if sql.in_transaction:  # some failures have ended it already
            sql.execute("ROLLBACK")
        raise
