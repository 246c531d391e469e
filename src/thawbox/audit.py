"""The audit log: who did what to which of the node's things, when, and how it ended. `audit.log` below THAWBOX_HOME.

One JSON object a line: `at, who, token, via, what, subject, outcome, status, ms`. It only grows; full, it is renamed.

Rule 1: never content, code, commands, environment, secrets, tokens or paths in a sandbox: what is written here is read
by people who may not read those. What is no id or name of ours is not repeated.
Rule 2: a line is in the file before whoever asked is answered, so a killed process loses none; a thread flushes it to
the disk at once, and no answer waits for that: a power cut may take the last moments.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from thawbox.errors import LockTimeout, Unavailable
from thawbox.host.files import flush, locked, private_directory
from thawbox.model import NAME_PATTERN

AUDIT_LOG = "audit.log"
LARGEST = 16 << 20
"""Bytes after which the file is renamed to audit.log.1, that one to audit.log.2, and so on."""
KEPT = 8
"""Renamed files that stay."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `who` is the name of a token, `local` for root on this machine, empty for nobody known.

    `via` is `http` or `cli`, `what` a route or a command, `subject` what it was about by parameter; `outcome` is `ok`
    or the code of the error, `status` what the caller was answered, `ms` how long it took.
    """

    who: str
    via: str
    what: str
    outcome: str
    token: str = ""
    subject: dict[str, str] | None = None
    status: int = 0
    ms: float = 0.0


class Audit:
    """The open log of one node; several processes may write to it. Safe to use from several threads."""

    def __init__(self, home: Path, *, largest: int = LARGEST, kept: int = KEPT) -> None:
        self._path = home / AUDIT_LOG
        self._largest = largest
        self._kept = kept
        self._lock = threading.Lock()
        self._fd = self._opened()
        self._unflushed = threading.Event()
        self._is_closing = False
        self._failure: Exception | None = None
        self._flusher = threading.Thread(target=self._flush, name="thawbox-audit", daemon=True)
        self._flusher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close; everything that was written is on the disk then."""
        self._is_closing = True
        self._unflushed.set()
        self._flusher.join()
        with self._lock:
            flush(self._fd)
            os.close(self._fd)

    def write(self, entry: Entry, *, at: float) -> None:
        """Add a line; `at` is seconds since the epoch. Raises the OSError of our disk, or LockTimeout."""
        line = _encode(entry, at)
        try:
            with self._lock:
                self._append(line)
        except (OSError, LockTimeout) as error:
            self._failure = error
            raise
        self._unflushed.set()

    def check(self, *, at: float) -> None:
        """Raise Unavailable while nothing can be written: what cannot be audited is not to be done."""
        if self._failure is None:
            return
        try:
            self.write(Entry(who="", via="audit", what="resumed", outcome="ok"), at=at)
        except (OSError, LockTimeout) as error:
            raise Unavailable(
                f"the audit log cannot be written: {error}", remediation="free some disk space below THAWBOX_HOME"
            ) from error
        self._failure = None

    def _append(self, line: bytes) -> None:
        if not self._is_current() or os.fstat(self._fd).st_size + len(line) > self._largest:
            self._renew(len(line))
        if os.write(self._fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _is_current(self) -> bool:
        """Whether the open file still has the name: another process may have renamed it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return found.st_ino == os.fstat(self._fd).st_ino

    def _renew(self, more: int) -> None:
        """Open the file that has the name now, after renaming it if it is full."""
        with locked(private_directory(self._path.parent / "locks") / "audit", timeout=10, what="the audit log"):
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size + more > self._largest:
                    self._rotate()
            fresh = self._opened()
            before, self._fd = self._fd, fresh
            try:
                flush(before)
            finally:
                os.close(before)

    def _rotate(self) -> None:
        numbered = [self._path, *(self._path.with_name(f"{AUDIT_LOG}.{number}") for number in range(1, self._kept + 1))]
        for newer, older in reversed(list(itertools.pairwise(numbered))):
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)

    def _flush(self) -> None:
        while not self._is_closing:
            self._unflushed.wait()
            self._unflushed.clear()
            with self._lock:
                fd = os.dup(self._fd)
            try:
                flush(fd)  # without the lock: lines go on being written meanwhile
            except OSError as error:
                self._failure = error
            finally:
                os.close(fd)


def named(value: object) -> str:
    """An id or name as it is; of anything else only that it was something else."""
    text = str(value)
    return text if NAME_PATTERN.fullmatch(text) else text if _is_digest(text) else "(no name)"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _encode(entry: Entry, at: float) -> bytes:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told: dict[str, object] = {"at": moment, "who": entry.who, "token": entry.token or None, "via": entry.via}
    told |= {"what": entry.what, "subject": {key: named(one) for key, one in (entry.subject or {}).items()}}
    told |= {"outcome": entry.outcome, "status": entry.status or None, "ms": round(entry.ms, 3)}
    return msgspec.json.encode(told) + b"\n"
