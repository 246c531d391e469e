"""How many clones a pool keeps across the cluster, and when a claim is turned away. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from thawbox.cluster.facts import Reason, Refusal

WINDOW = 60.0
"""Seconds for which a peak of demand is remembered."""
BURST = 2.0
"""Seconds that count as one burst."""
MOST_AT_ONCE = 64
"""Placeholders ordered in one go for one pool: what the scheduler and the nodes take without a stall."""
SHRINK_PART = 0.25
"""The part of what is too much that goes at a time: a lull is not the end of demand."""


@dataclass(frozen=True, slots=True)
class Marks:
    """`low` to `high` clones are parked; parked, coming and leased ones together are at most `limit`."""

    low: int
    high: int
    limit: int
    most_waiting: int = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """A pool now: claims that wait; clones parked, on their way, and leased."""

    waiting: int = 0
    parked: int = 0
    coming: int = 0
    leased: int = 0

    @property
    def owned(self) -> int:
        return self.parked + self.coming + self.leased


@dataclass(frozen=True, slots=True)
class Orders:
    """Placeholders to create, and parked or empty ones to delete."""

    create: int = 0
    delete: int = 0


class Demand:
    """The largest burst of claims in the last minute, at any rate in little memory. Times must not go back."""

    __slots__ = ("_buckets", "_inside", "_peaks")
    _STEP = 0.25

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, int]] = deque()  # of the present burst: (start, claims)
        self._inside = 0
        self._peaks: deque[tuple[float, int]] = deque()  # bursts by their end, each larger than all after it

    def add(self, now: float, count: int = 1) -> None:
        """Claims have come."""
        start = now // self._STEP * self._STEP
        buckets = self._buckets
        self._inside += count
        if buckets and buckets[-1][0] == start:
            count += buckets.pop()[1]
        buckets.append((start, count))
        while buckets[0][0] <= start - BURST:
            self._inside -= buckets.popleft()[1]
        while self._peaks and self._peaks[-1][1] <= self._inside:
            self._peaks.pop()
        self._peaks.append((now, self._inside))

    def peak(self, now: float) -> int:
        """The largest burst of the window."""
        while self._peaks and self._peaks[0][0] < now - WINDOW:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0


def parked_target(marks: Marks, peak: int, *, refill: float) -> int:
    """How many clones to keep parked: what comes at the largest rate lately until one more is there.

    `refill` is seconds from ordering a placeholder until a clone is parked in it.
    """
    return max(marks.low, min(marks.high, math.ceil(peak * max(1.0, refill / BURST))))


def plan(counts: Counts, marks: Marks, *, target: int) -> Orders:
    """What brings a pool nearer to `target` parked clones, and one more for each claim that waits."""
    short = target + counts.waiting - counts.parked - counts.coming
    if short > 0:
        return Orders(create=max(0, min(short, marks.limit - counts.owned, MOST_AT_ONCE)))
    surplus = counts.parked + counts.coming - target
    if counts.waiting or surplus <= 0:
        return Orders()
    return Orders(delete=max(1, math.floor(surplus * SHRINK_PART)))


def admit(counts: Counts, marks: Marks, *, timeout: float, per_second: float) -> Refusal | None:
    """None when a claim may wait; else why not, and when to come back.

    `timeout` is the seconds that it would wait; `per_second` is how many clones the pool has lately handed out or got
    back each second while claims waited (0: not known).
    """
    if counts.parked > counts.waiting:
        return None
    if counts.leased >= marks.limit:
        again = 1.0 / per_second if per_second else 5.0
        return Refusal(Reason.POOL_EXHAUSTED, f"all {marks.limit} clones are leased", min(60.0, max(1.0, again)))
    if counts.waiting >= marks.most_waiting:
        return Refusal(Reason.TOO_MANY_WAITING, f"{counts.waiting} claims wait already", 1.0)
    wait = (counts.waiting + 1 - counts.parked) / per_second if per_second else 0.0
    if wait > timeout:
        again = min(60.0, max(1.0, wait - timeout))
        return Refusal(Reason.TOO_MANY_WAITING, f"it would wait {wait:.0f} s, longer than its {timeout:g} s", again)
    return None
