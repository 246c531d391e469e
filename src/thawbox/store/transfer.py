"""What push and pull have in common: work side by side, progress, and the report of what was moved."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from thawbox.model import SnapshotId

THREADS = 8
"""Transfers at once: enough to fill a link against a store that answers in tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one push or pull is. Bytes are of content, before compression; `moved` excludes what was there."""

    snapshot: SnapshotId
    done_bytes: int
    total_bytes: int
    moved_bytes: int


OnProgress = Callable[[Progress], None]


class FaultKind(enum.Enum):
    """What is wrong with a source: the first two want repair, the others patience."""

    DAMAGED = "damaged"
    MISSING = "missing"
    UNREACHABLE = "unreachable"
    SLOW = "slow"

    @property
    def wants_repair(self) -> bool:
        return self in {FaultKind.DAMAGED, FaultKind.MISSING}


@dataclass(frozen=True, slots=True)
class Fault:
    """A source that failed to serve one object, while another served it."""

    where: str
    name: str
    cause: str
    kind: FaultKind = FaultKind.DAMAGED


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What was moved. `snapshots` are the new ones there, base first; `present` were there already.

    Chunks are counted once each; `moved_bytes` are as they travelled, compressed.
    """

    snapshots: tuple[SnapshotId, ...]
    present: tuple[SnapshotId, ...]
    chunks_moved: int
    chunks_present: int
    moved_bytes: int
    faults: tuple[Fault, ...] = ()


class Tally:
    """Counts of one running transfer; belongs to the thread that started it."""

    def __init__(self, snapshot: SnapshotId, on_progress: OnProgress | None) -> None:
        self._snapshot = snapshot
        self._on_progress = on_progress
        self.total = 0
        self.done = 0
        self.moved_content = 0
        self.moved_stored = 0
        self.chunks_moved = 0
        self.chunks_present = 0

    def expect(self, content: int) -> None:
        self.total += content

    def add(self, content: int, *, stored: int) -> None:
        """One chunk is done; `stored` is what travelled for it, 0 if nothing did."""
        self.done += content
        if stored:
            self.moved_content += content
            self.moved_stored += stored
            self.chunks_moved += 1
        else:
            self.chunks_present += 1
        if self._on_progress is not None:
            self._on_progress(Progress(self._snapshot, self.done, self.total, self.moved_content))

    def report(
        self, moved: Iterable[SnapshotId], present: Iterable[SnapshotId], faults: Iterable[Fault] = ()
    ) -> TransferReport:
        return TransferReport(
            snapshots=tuple(moved),
            present=tuple(present),
            chunks_moved=self.chunks_moved,
            chunks_present=self.chunks_present,
            moved_bytes=self.moved_stored,
            faults=tuple(faults),
        )


_WorkT = TypeVar("_WorkT")
_ResultT = TypeVar("_ResultT")


def side_by_side(work: Callable[[_WorkT], _ResultT], items: Iterable[_WorkT], *, threads: int) -> Iterator[_ResultT]:
    """Results in order, with at most twice `threads` items begun and not yet taken; the first error ends it all.

    So memory stays bounded however long `items` is, and the caller's thread alone sees results and progress.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
        begun: deque[Future[_ResultT]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
