"""Mirroring: new snapshots are copied to every replica in the background, as the rules say.

Rule 1: one thread for each replica: one that is away or slow holds up no other.
Rule 2: nothing is written down of what was copied. A replica itself is asked once what it has; so one that lost
something, or was empty, is filled again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from thawbox.errors import IntegrityError, InvalidRequest, SnapshotNotFound, Unavailable
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.events import log_done, log_error
from thawbox.store.mirror_rules import Described, Rule, is_mirrored
from thawbox.store.pull import remote_snapshots
from thawbox.store.replicas import Replicas
from thawbox.store.store import Store

LOOK_AGAIN = 1.0
"""Seconds between two looks for new snapshots, which other processes make."""
_LONGEST_WAIT = 60.0
"""Seconds, at most, until a replica that failed is tried again."""
_ENDING = 5.0
"""Seconds, at most, that the end of the block waits for what is being sent."""
_NAMED_LATER = 60
"""Looks after which snapshots that no rule named are looked at again: names and labels are given later, too."""


class _Ended(Exception):
    """The block has ended while something was being sent."""


class Mirror:
    """Threads that keep every replica filled while the block runs."""

    def __init__(self, store: Store, replicas: Replicas, rules: Sequence[Rule], *, period: float = LOOK_AGAIN) -> None:
        self._store = store
        self._replicas = replicas
        self._rules = rules
        self._period = period
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._there: dict[str, set[SnapshotId]] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if self._rules:
            for backend in self._replicas.backends:
                self._threads.append(
                    threading.Thread(target=self._run, args=(backend,), name="thawbox-mirror", daemon=True)
                )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        deadline = time.monotonic() + _ENDING
        for thread in self._threads:  # one that waits for a dead server ends with the process
            thread.join(max(0.0, deadline - time.monotonic()))

    def wait_for(self, snapshot: SnapshotId, *, timeout: float) -> bool:
        """Wait until every replica is known to have a snapshot; False after `timeout` seconds."""
        places = {backend.where for backend in self._replicas.backends}

        def is_everywhere() -> bool:
            return all(snapshot in self._there.get(place, ()) for place in places)

        with self._changed:
            return self._changed.wait_for(is_everywhere, timeout)

    def _run(self, backend: Backend) -> None:
        wait, looks = self._period, 0
        unnamed: set[SnapshotId] = set()
        while not self._ending.wait(wait):
            looks += 1
            if looks % _NAMED_LATER == 0:
                unnamed.clear()
            try:
                self._fill(backend, unnamed)
                wait = self._period
            except _Ended:
                return
            except (Unavailable, OSError) as error:  # our own store may be busy, and our own disk recover, as well
                cause = error.cause if isinstance(error, Unavailable) else str(error)
                wait = min(max(2 * wait, 1.0), _LONGEST_WAIT)
                log_error("mirror.failed", where=backend.where, cause=cause, again_in_s=wait)

    def _fill(self, backend: Backend, unnamed: set[SnapshotId]) -> None:
        """Copy what the rules name and the replica has not. Raises Unavailable."""
        if backend.where not in self._there:
            self._know(backend, remote_snapshots(backend))
        for snapshot in sorted(self._store.catalog.ids() - self._there[backend.where] - unnamed):
            if self._ending.is_set():
                return
            try:
                if not self._is_named(snapshot):
                    unnamed.add(snapshot)
                    continue
                copied = self._replicas.copy_to(backend, snapshot, on_progress=self._go_on)
                if copied.failure is not None:
                    raise copied.failure
                self._know(backend, self._store.chain(snapshot))
            except SnapshotNotFound:
                continue  # removed since we looked
            except (IntegrityError, InvalidRequest) as error:  # ours is damaged: no copy is made of that
                log_error("mirror.refused", where=backend.where, snapshot=snapshot, cause=error.cause)
                unnamed.add(snapshot)
                continue
            log_done("mirror.complete", where=backend.where, snapshot=snapshot)

    def _go_on(self, _: object) -> None:
        """Told of each chunk: what was sent stays sent, and the next start goes on with it."""
        if self._ending.is_set():
            raise _Ended

    def _know(self, backend: Backend, snapshots: Iterable[SnapshotId]) -> None:
        with self._changed:
            self._there.setdefault(backend.where, set()).update(snapshots)
            self._changed.notify_all()

    def _is_named(self, snapshot: SnapshotId) -> bool:
        return named_by(self._rules, self._store, snapshot)


def named_by(rules: Sequence[Rule], store: Store, snapshot: SnapshotId) -> bool:
    """Whether the rules name a snapshot of this store; raises SnapshotNotFound, CorruptSnapshot."""
    record = store.record(snapshot)
    sandbox = str(record.manifest.body.get("name", ""))
    return is_mirrored(rules, Described(record.facts.names, record.facts.labels, sandbox))
