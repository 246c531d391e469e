"""Shells kept ready for clones of snapshots that are cloned often: namespaces, mounts, cgroups, names; all but a tree.

Rule 1: a shell in the reserve has an id of its own and holds that id's lock: no other command takes it for remains.
Rule 2: nothing of it is in the journal. When its process dies, pid 1 of the shell ends by itself, the lock is free, and
the next node removes the rest (adoption.py).
Rule 3: the lock here guards counts and lists; shells are made and destroyed outside it, by one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thawbox.errors import ThawboxError
from thawbox.model import SnapshotId
from thawbox.sandbox.identity import Identity
from thawbox.sandbox.threads import tell_defect

if TYPE_CHECKING:
    from thawbox.sandbox.shells import ReadyShell

PER_SNAPSHOT = 4
"""Enough for the clones that a few threads ask for at once; one is made anew in some five milliseconds."""
IN_ALL = 16
"""Each costs a process, seven namespaces, some thirty mounts and half a megabyte of the kernel's memory."""
LULL = 0.03
"""Seconds after a clone took a shell before the next is made: whoever waits for that clone wants the CPU now."""


@dataclass(slots=True, eq=False)
class Reserved:
    """A shell of the reserve. Who took it owns it: `undo` ends it and removes what it has, `lock` is that of its id."""

    identity: Identity
    ready: ReadyShell
    lock: int
    undo: ExitStack

    def destroy(self) -> None:
        """Leave nothing of it."""
        try:
            self.undo.close()
        finally:
            os.close(self.lock)


Prepare = Callable[[], Reserved]
"""Makes one shell; raises a ThawboxError or OSError, nothing being left then."""


class Reserve:
    """The ready shells of one process, by snapshot. Safe to use from several threads; `close` leaves none."""

    def __init__(self, *, in_all: int = IN_ALL, lull: float = LULL) -> None:
        self._in_all = in_all
        self._lull = lull
        self._lock = threading.Condition()
        self._wanted: dict[SnapshotId, tuple[int, Prepare]] = {}
        self._shells: dict[SnapshotId, list[Reserved]] = {}
        self._thread: threading.Thread | None = None
        self._closing = False

    def keep(self, snapshot: SnapshotId, prepare: Prepare, *, count: int = PER_SNAPSHOT) -> None:
        """Keep `count` shells ready for clones of this snapshot, from now on until `drop`; they are made later."""
        with self._lock:
            if self._closing:
                return
            self._wanted[snapshot] = (count, prepare)
            if self._thread is None:
                self._thread = threading.Thread(target=self._tend, name="thawbox-reserve", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def take(self, snapshot: SnapshotId) -> Reserved | None:
        """A living shell for a clone of this snapshot, if one is ready."""
        while True:
            with self._lock:
                shells = self._shells.get(snapshot)
                if not shells:
                    return None
                reserved = shells.pop(0)
                self._lock.notify_all()
            if reserved.ready.is_alive():
                return reserved
            reserved.destroy()

    def drop(self, snapshot: SnapshotId) -> None:
        """Keep none for this snapshot any more."""
        with self._lock:
            self._wanted.pop(snapshot, None)
            dropped = self._shells.pop(snapshot, [])
        for reserved in dropped:
            reserved.destroy()

    def counts(self) -> dict[SnapshotId, int]:
        """How many shells are ready, by snapshot."""
        with self._lock:
            return {snapshot: len(shells) for snapshot, shells in self._shells.items()}

    def wait_full(self, snapshot: SnapshotId, *, timeout: float) -> bool:
        """Wait until as many are ready as are wanted; False after `timeout` seconds, or when none are wanted."""
        with self._lock:
            return snapshot in self._wanted and self._lock.wait_for(lambda: not self._missing(snapshot), timeout)

    def close(self) -> None:
        """Destroy every shell."""
        with self._lock:
            self._closing = True
            self._wanted.clear()
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()
        for snapshot in list(self._shells):
            self.drop(snapshot)

    def _missing(self, snapshot: SnapshotId) -> int:
        wanted, _ = self._wanted.get(snapshot, (0, None))
        room = self._in_all - sum(map(len, self._shells.values()))
        return min(wanted - len(self._shells.get(snapshot, ())), room)

    def _next(self) -> tuple[SnapshotId, Prepare] | None:
        return next(((one, make) for one, (_, make) in self._wanted.items() if self._missing(one) > 0), None)

    def _tend(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._next() is not None)
                while not self._closing and self._lock.wait(self._lull):
                    pass  # somebody took one, or asked for more, within the lull
                order = self._next()
                if self._closing:
                    return
            if order is not None:
                self._fill(*order)

    def _fill(self, snapshot: SnapshotId, prepare: Prepare) -> None:
        try:
            made = prepare()
        except Exception as error:  # noqa: BLE001 - the other snapshots' shells are made by this thread too
            if not isinstance(error, (ThawboxError, OSError)):
                tell_defect()
            with self._lock:  # a clone that needs one makes its own, and tells why that fails
                self._wanted.pop(snapshot, None)
                self._lock.notify_all()
            return
        with self._lock:
            if self._missing(snapshot) > 0:
                self._shells.setdefault(snapshot, []).append(made)
                self._lock.notify_all()
                return
        made.destroy()
