"""Which token made what, and whether it may make more.

Rule: a limit is checked and what it admits is reserved in one step; a reservation ends when what was made is counted.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from thawbox.api.book import Book
from thawbox.api.tokens import NO_LIMITS, Caller, Scope
from thawbox.errors import Forbidden, InvalidSpec, LimitReached, LockTimeout, SnapshotNotFound
from thawbox.lifecycle import ALIVE
from thawbox.model import SandboxId, SnapshotId
from thawbox.sandbox import Context

_GONE = frozenset({"sandbox.removed", "snapshot.removed"})


@dataclass(frozen=True, slots=True)
class Usage:
    """What a token's sandboxes and snapshots take. Sandboxes without a memory limit count with none."""

    sandboxes: int = 0
    memory: int = 0
    snapshot_bytes: int = 0


class Owners:
    """Who made what on one node."""

    def __init__(self, book: Book, context: Context) -> None:
        self._book = book
        self._context = context
        self._lock = threading.Lock()
        self._reserved: dict[str, list[tuple[int, int]]] = {}

    def add(self, kind: str, identity: str, caller: Caller) -> None:
        """Remember that the caller made a `sandbox` or `snapshot`. What root made on this machine is nobody's."""
        if caller.token_id:
            with self._book.change() as sql:
                sql.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", (identity, kind, caller.token_id))

    def inherit(self, snapshot: SnapshotId, sandbox: SandboxId) -> None:
        """A snapshot that nobody asked for belongs to whoever made its sandbox."""
        with self._book.change() as sql:
            sql.execute(
                "INSERT OR REPLACE INTO owners SELECT ?, 'snapshot', token FROM owners WHERE id = ?",
                (snapshot, sandbox),
            )

    def hear(self, kind: str, told: Mapping[str, Any]) -> None:
        """What is gone is nobody's: one of the node's events."""
        gone = told["subject"] if kind in _GONE else told["sandbox"] if kind == "pool.released" else None
        if gone is not None:
            with contextlib.suppress(OSError, LockTimeout, sqlite3.Error):  # the next start forgets it
                self._forget(gone["id"])

    def forget_gone(self) -> None:
        """Forget whatever went while nobody looked."""
        there = {str(record.id) for record in self._context.journal.all()} | set(self._context.store.catalog.ids())
        for identity in {*self.all("sandbox"), *self.all("snapshot")} - there:
            self._forget(identity)

    def _forget(self, identity: str) -> None:
        with self._book.change() as sql:
            sql.execute("DELETE FROM owners WHERE id = ?", (identity,))

    def of(self, identity: str) -> str | None:
        """The id of the token that made it; None: nobody's."""
        rows = self._book.rows("SELECT token FROM owners WHERE id = ?", identity)
        return str(rows[0][0]) if rows else None

    def all(self, kind: str) -> dict[str, str]:
        """Everything of this kind that a token made: id to token."""
        return {str(one): str(token) for one, token in self._book.rows(
            "SELECT id, token FROM owners WHERE kind = ?", kind
        )}  # fmt: skip

    def check_own(self, identity: str, caller: Caller, *, what: str) -> None:
        """Raise Forbidden for what another made, unless the caller is an admin."""
        if caller.scope < Scope.ADMIN and self.of(identity) != caller.token_id:
            raise Forbidden(f"{what} was not made with the token {caller.name}", remediation="use an admin's token")

    def check_names(self, names: Iterable[str], caller: Caller) -> None:
        """Raise Forbidden for a name that another's snapshot has: it would be taken away by being given."""
        store = self._context.store
        for name in names:
            for snapshot in filter(store.catalog.exists, store.refs.named(name)):
                self.check_own(snapshot, caller, what=f"the snapshot that is named {name}")

    # --- limits ----------------------------------------------------------------------------------------------------

    @contextmanager
    def room_for(self, caller: Caller, memory: Iterable[int | None]) -> Generator[None]:
        """Room for sandboxes with these memory limits, kept for the block, which makes and counts them.

        Raises LimitReached, and InvalidSpec for one without a limit where the token's memory is limited.
        """
        wanted = list(memory)
        if caller.limits == NO_LIMITS:
            yield
            return
        if caller.limits.memory is not None and None in wanted:
            raise InvalidSpec(
                f"the token {caller.name} has a memory limit, so its sandboxes need one", remediation="give `memory`"
            )
        asked = (len(wanted), sum(one or 0 for one in wanted))
        with self._lock:
            self._check_room(caller, asked)
            self._reserved.setdefault(caller.key, []).append(asked)
        try:
            yield
        finally:
            with self._lock:
                self._reserved[caller.key].remove(asked)

    def _check_room(self, caller: Caller, asked: tuple[int, int]) -> None:
        limits, used = caller.limits, self.usage(caller)
        reserved = self._reserved.get(caller.key, [])
        sandboxes = used.sandboxes + sum(one for one, _ in reserved) + asked[0]
        memory = used.memory + sum(one for _, one in reserved) + asked[1]
        if limits.sandboxes is not None and sandboxes > limits.sandboxes:
            raise LimitReached(f"the token {caller.name} may have {limits.sandboxes} sandboxes at a time")
        if limits.memory is not None and memory > limits.memory:
            raise LimitReached(f"the token {caller.name} may have {limits.memory} bytes of memory at a time")

    def check_snapshots(self, caller: Caller) -> None:
        """Raise LimitReached when the caller's snapshots take all that they may; a size is known only afterwards."""
        limit = caller.limits.snapshot_bytes
        if limit is not None and self.usage(caller).snapshot_bytes >= limit:
            raise LimitReached(f"the token {caller.name} may have {limit} bytes of snapshots")

    def usage(self, caller: Caller) -> Usage:
        """What the caller's living sandboxes and snapshots take now."""
        own = [(str(one), str(kind)) for one, kind in self._book.rows(
            "SELECT id, kind FROM owners WHERE token = ?", caller.token_id
        )]  # fmt: skip
        sandboxes = {one for one, kind in own if kind == "sandbox"}
        alive = [one for one in self._context.journal.all() if one.id in sandboxes and one.phase in ALIVE]
        stored = 0
        for snapshot in (one for one, kind in own if kind == "snapshot"):
            with contextlib.suppress(SnapshotNotFound):
                stored += self._context.store.record(SnapshotId(snapshot)).bytes
        return Usage(len(alive), sum(record.spec.memory or 0 for record in alive), stored)
