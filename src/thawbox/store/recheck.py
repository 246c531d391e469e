"""Stored bytes are read again, one snapshot at a time, while a node is served: damage is found before it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from thawbox.errors import SnapshotNotFound
from thawbox.model import SnapshotId
from thawbox.store.store import Store
from thawbox.store.verify import Problem
from thawbox.telemetry import NOBODY, Telemetry


def verify_each(
    store: Store, snapshots: Sequence[SnapshotId], *, deep: bool, tell: Callable[[int, int], None]
) -> list[Problem]:
    """What is wrong with these snapshots and what they depend on, each problem once; `tell` hears after each."""
    problems: list[Problem] = []
    for number, snapshot in enumerate(snapshots, 1):
        problems += [one for one in store.verify([snapshot], deep=deep) if one not in problems]
        tell(number, len(snapshots))
    return problems


class Recheck:
    """A thread that every `period` seconds verifies the snapshot whose last verification is oldest; 0: never.

    What it finds damaged stands in `problems` and is told to observers; the next restore of it refuses by itself.
    """

    def __init__(self, store: Store, *, period: float, telemetry: Telemetry = NOBODY) -> None:
        self._store = store
        self._period = period
        self._telemetry = telemetry
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thawbox-recheck", daemon=True)
        self.problems: tuple[Problem, ...] = ()

    def __enter__(self) -> Self:
        if self._period > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._period > 0:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._period):
            self.check_next()

    def check_next(self) -> None:
        """Verify one snapshot now, none that is known to be damaged."""
        snapshot = self._store.least_recently_verified(but={problem.snapshot for problem in self.problems})
        if snapshot is None:
            return
        try:
            found = self._store.verify([snapshot], deep=True)
        except SnapshotNotFound:
            return  # removed since it was chosen
        for problem in found:
            self._telemetry.happened("snapshot.damaged", snapshot=problem.snapshot, file=problem.file)
        self.problems = (*self.problems, *found)
