"""What a pool should do next, as a pure function of what it has: how many to restore, how many to destroy, when.

Rule 1: what is being made and what is being destroyed counts as owned, and owned never exceeds `limit`.
Rule 2: parked never falls below `low` by our own doing, except where `low` equals `limit` and an old clone must go.
Rule 3: destroying comes before its replacement only when there is no room for both.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from thawbox.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Parked clones are kept between `low` and `high`; parked, leased, coming and going never exceed `limit`."""

    low: int
    high: int
    limit: int


def check_watermarks(marks: Watermarks) -> Watermarks:
    """Return `marks` unchanged, or raise InvalidRequest if no pool can keep them."""
    if not (0 <= marks.low <= marks.high <= marks.limit and marks.limit >= 1):
        raise InvalidRequest(
            f"low={marks.low}, high={marks.high}, limit={marks.limit} cannot be kept",
            remediation="choose 0 <= low <= high <= limit, and a limit of at least 1",
        )
    return marks


@dataclass(frozen=True, slots=True)
class Counts:
    """What a pool has now. `fresh` and `stale` are parked clones, made from the present template and from an older.

    `restoring` and `ending` are on their way in and out; `waiting` callers found nothing parked.
    """

    fresh: int = 0
    stale: int = 0
    restoring: int = 0
    leased: int = 0
    ending: int = 0
    waiting: int = 0

    @property
    def parked(self) -> int:
        return self.fresh + self.stale

    @property
    def owned(self) -> int:
        return self.parked + self.restoring + self.leased + self.ending


@dataclass(frozen=True, slots=True)
class Orders:
    """How many clones to restore now, and how many parked ones of each kind to destroy."""

    restore: int = 0
    destroy_fresh: int = 0
    destroy_stale: int = 0


def plan(
    counts: Counts, marks: Watermarks, *, target: int, parallel: int, may_restore: bool = True,
    room: int | None = None,
) -> Orders:  # fmt: skip
    """What brings the pool nearer to `target` parked clones of the present template, one for each waiter besides.

    `parallel` is how many restores run at once; with `may_restore` false (backing off) none is ordered. `room` is for
    how many more clones there is memory; an empty pool tries one all the same.
    """
    short = max(0, target + counts.waiting - counts.fresh - counts.restoring)
    destroy_stale = _superseded(counts, marks, target=target, short=short)
    surplus = counts.parked - destroy_stale - target if not counts.waiting else 0
    destroy_fresh = min(counts.fresh, max(0, surplus))
    restore = min(short, marks.limit - counts.owned, parallel - counts.restoring)
    if room is not None and counts.owned:
        restore = min(restore, room - counts.restoring)
    return Orders(max(0, restore) if may_restore else 0, destroy_fresh, destroy_stale)


def _superseded(counts: Counts, marks: Watermarks, *, target: int, short: int) -> int:
    """How many clones of an older template can go now: those that were replaced, or one that stands in the way."""
    destroy = min(counts.stale, max(0, counts.parked - target))
    if destroy or not counts.stale or not short or counts.owned < marks.limit or counts.restoring or counts.ending:
        return destroy
    floor = min(marks.low, marks.limit - 1)
    return 1 if counts.parked > floor else 0


DEMAND_WINDOW = 60.0
"""Seconds that a peak of demand is remembered: shorter, and every lull costs restores; longer, and memory lies idle."""
DEMAND_SPAN = 2.0
"""Seconds within which requests count as one burst: about what refilling a handful of clones takes."""


def parked_target(
    requests: Sequence[float], marks: Watermarks, *, now: float,
    window: float = DEMAND_WINDOW, span: float = DEMAND_SPAN,
) -> int:  # fmt: skip
    """How many clones to keep parked: the largest burst of the recent past, within `low` and `high`.

    `requests` are the times of recent acquires, ascending, in the seconds of `now`.
    """
    recent = requests[bisect_left(requests, now - window) :]
    burst = first = 0
    for last, at in enumerate(recent):
        while recent[first] < at - span:
            first += 1
        burst = max(burst, last - first + 1)
    return min(max(burst, marks.low), marks.high)


FIRST_BACKOFF = 0.25
LONGEST_BACKOFF = 30.0


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after `failures` restores failed in a row: doubling, capped, and half of it jitter."""
    full = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 20))
    return full * rng.uniform(0.5, 1.0)


SHORTEST_LULL = 0.005
LONGEST_LULL = 0.05


def refill_lull(rng: random.Random) -> float:
    """Seconds between an acquire and the refill that nobody waits for.

    Who has just acquired wants the CPU now; and pools of one machine that were emptied together do not refill in step.
    """
    return rng.uniform(SHORTEST_LULL, LONGEST_LULL)


# Templates: snapshots whose memory is held for their clones to share

WORTH_WARMING = 3
"""Clones from which on loading a snapshot's memory once (about one restore) pays for itself."""
LARGEST_SHARE = 0.5
"""Of the machine's available memory: a template that takes more would push out what clones are for."""
IDLE_SECONDS = 300.0
"""After which memory that is held for demand alone goes."""
MOST_BY_DEMAND = 4
"""Templates held for demand alone: each fork makes a snapshot, and most are never cloned again. What somebody asked to
keep is as much as there is memory for."""
SCARCE = 0.08
"""Of the machine's memory: where less is available, templates go, those first that nobody asked to keep."""
SOONEST_RELOAD = 60.0
LONGEST_RELOAD = 3600.0


@dataclass(frozen=True, slots=True)
class HeldTemplate:
    """A snapshot's memory that is held: `bytes` of it, last used at `used_at`; `is_kept` when somebody asked for it."""

    snapshot: str
    bytes: int
    used_at: float
    is_kept: bool = False


def room_for(each: int, *, available: int, total: int) -> int:
    """How many more clones the machine's memory has room for, if each adds `each` bytes to what is in use.

    That is what a clone's cgroup is charged: a clone that shares a template's memory adds a few MiB, not its size.
    """
    return max(0, int(available - SCARCE * total)) // max(each, SMALLEST_CLONE)


SMALLEST_CLONE = 1 << 20
"""Bytes that any clone adds: namespaces, mounts, page tables, a process or two."""


def has_room(resident: int, *, available: int, total: int) -> bool:
    """Whether memory is not scarce yet with `resident` bytes more in use: what is loaded is there to stay."""
    return resident <= available - SCARCE * total


def reload_after(failures: int) -> float:
    """Seconds until a template is loaded anew that could not be, or whose server died, so many times in a row."""
    return min(LONGEST_RELOAD, SOONEST_RELOAD * 2.0 ** min(failures - 1, 20))


def is_worth_warming(clones: int, *, resident: int, available: int) -> bool:
    """Whether to hold `resident` bytes for that many clones with `available` bytes of memory left."""
    return clones >= WORTH_WARMING and resident < LARGEST_SHARE * available


def is_demanded(requests: Sequence[float], *, now: float, window: float = DEMAND_WINDOW) -> bool:
    """Whether clones are asked for often enough to hold their snapshot; `requests` are times, ascending."""
    return len(requests) - bisect_left(requests, now - window) >= WORTH_WARMING


def templates_to_drop(held: Sequence[HeldTemplate], *, now: float, available: int, total: int) -> frozenset[str]:
    """The snapshots whose memory is to be given up: of those that nobody asked to keep what idles and what is one too
    many, and, where memory is scarce, what was used longest ago until there is enough."""
    unasked = sorted((one for one in held if not one.is_kept), key=lambda one: one.used_at)
    dropped = {one.snapshot for one in unasked if one.used_at < now - IDLE_SECONDS}
    dropped |= {one.snapshot for one in unasked[: max(0, len(unasked) - MOST_BY_DEMAND)]}
    short = SCARCE * total - available - sum(one.bytes for one in held if one.snapshot in dropped)
    for one in sorted(held, key=lambda one: (one.is_kept, one.used_at)):
        if short <= 0:
            break
        if one.snapshot not in dropped:
            dropped.add(one.snapshot)
            short -= one.bytes
    return frozenset(dropped)
