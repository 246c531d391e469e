"""What a pool has and whom it owes a clone: everything that the pool's lock protects.

Rule 1: no I/O, no threads, no clock of its own; every method is called with the lock held, and returns at once.
Rule 2: a clone is in exactly one place: parked, leased or ending. What moves it is a method here.
Rule 3: a clone that is offered to a waiter is leased from that moment; a waiter that gave up is offered none, and one
that was offered one in the instant of giving up must take it.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from thawbox.errors import NotFound, PoolExhausted, Unavailable
from thawbox.model import SandboxId, SnapshotId
from thawbox.pool_plan import DEMAND_WINDOW, Counts, Watermarks, backoff, parked_target, plan, refill_lull
from thawbox.sandbox.parking import Parked

_ENDLESS = float("inf")
_REQUESTS_KEPT = 512
_RETHINK = 10.0
"""Seconds after which a pool at rest looks again: demand is forgotten, surplus goes."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What happened since the pool was opened. `exhausted` callers went away with nothing."""

    acquired: int = 0
    released: int = 0
    expired: int = 0
    exhausted: int = 0
    restored: int = 0
    failed: int = 0
    died: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A lease: the clone, and when it ends (seconds since the epoch; endless until the clone is handed over)."""

    clone: Parked
    until: float = _ENDLESS


@dataclass(slots=True, eq=False)
class Waiter:
    """A caller that waits; `woken` is set when it was given a clone or refused."""

    lease: str
    woken: threading.Event = field(default_factory=threading.Event)
    given: Parked | None = None
    refusal: Exception | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done outside the lock: clones to restore from `digest`, clones to destroy."""

    digest: SnapshotId | None
    restore: int
    destroy: tuple[Parked, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A pool at one moment. `target` is how many clones it wants parked; `stale` of them are of an old template."""

    name: str
    digest: SnapshotId | None
    low: int
    high: int
    limit: int
    target: int
    parked: int
    stale: int
    leased: int
    restoring: int
    ending: int
    waiting: int
    totals: Totals
    last_failure: str


class Ledger:
    """The books of one pool."""

    def __init__(self, name: str, marks: Watermarks, *, parallel: int, rng: random.Random) -> None:
        self.name = name
        self.marks = marks
        self.digest: SnapshotId | None = None
        self.totals = Totals()
        self.last_failure = ""
        self.failure: Exception | None = None
        self.may_have_remains = False
        """Whether a restore failed since the pool's clones were last looked for: nothing is restored till then."""
        self._parallel = parallel
        self._rng = rng
        self._parked: dict[SandboxId, Parked] = {}
        self._leases: dict[str, Held] = {}
        self._ending: dict[SandboxId, Parked] = {}
        self._to_end: list[tuple[float, Parked]] = []
        self._waiters: deque[Waiter] = deque()
        self._requests: deque[float] = deque(maxlen=_REQUESTS_KEPT)
        self._restoring = 0
        self._reset_level = 0
        self._reset_until = 0.0
        self._failures = 0
        self._retry_at = 0.0
        self._refill_at: float | None = None
        self._closed: Exception | None = None
        self._keeps = False

    # --- what callers do --------------------------------------------------------------------------------------

    def take(self, lease: str, *, now: float) -> Parked | None:
        """A parked clone, leased from now on, of the present template if there is one; None if the caller must wait."""
        self.check_open()
        self._requests.append(now)
        if not self._parked or self._waiters:
            return None
        chosen = next((clone for clone in self.parked() if clone.digest == self.digest), self.parked()[0])
        del self._parked[chosen.id]
        self._leases[lease] = Held(chosen)
        return chosen

    def wait(self, lease: str, *, first: bool = False) -> Waiter:
        """Stand in the queue; at its head with `first`, for a caller whose turn it was."""
        self.check_open()
        waiter = Waiter(lease)
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._serve()
        return waiter

    def give_up(self, waiter: Waiter) -> Parked | None:
        """Leave the queue; the clone, if one was given in this very instant: it is the caller's."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        return waiter.given

    def exhausted(self, waited: float) -> PoolExhausted:
        """Count and describe a caller that got nothing."""
        self.totals = replace(self.totals, exhausted=self.totals.exhausted + 1)
        counts = self.counts()
        cause = f"; the last restore failed: {self.last_failure}" if self._failures else ""
        return PoolExhausted(
            f"pool {self.name} had no clone for {waited:g} s: {counts.leased} of {self.marks.limit} are leased, "
            f"{counts.restoring} are being restored, {counts.waiting} callers wait{cause}",
            remediation="release leases, wait longer, or raise the pool's limit",
        )

    def handed_over(self, lease: str, *, until: float) -> None:
        """The caller has its clone: the lease runs."""
        self.totals = replace(self.totals, acquired=self.totals.acquired + 1)
        if lease in self._leases:
            self._leases[lease] = replace(self._leases[lease], until=until)

    def put_back(self, lease: str) -> None:
        """The caller went away before its clone was handed over: it is still as it was parked."""
        held = self._leases.pop(lease, None)
        if held is not None:
            self._parked[held.clone.id] = held.clone
            self._serve()

    def lease(self, lease: str) -> Held:
        """A lease that runs; raises NotFound."""
        try:
            return self._leases[lease]
        except KeyError:
            raise NotFound(
                f"pool {self.name} has no lease {lease[:40]!r}: it was released or has expired",
                remediation="acquire another sandbox",
            ) from None

    def extend(self, lease: str, *, until: float) -> None:
        self._leases[lease] = replace(self.lease(lease), until=until)

    def release(self, lease: str, *, now: float, reset: bool = False) -> None:
        """End a lease; with `reset` one more clone is to be parked, up to `high`. Raises NotFound."""
        clone = self.lease(lease).clone
        del self._leases[lease]
        self.totals = replace(self.totals, released=self.totals.released + 1)
        self._end(clone)
        if reset:
            there = len(self._parked) + self._restoring
            level = max(there, self._reset_level) if now < self._reset_until else there
            self._reset_level = min(self.marks.high, level + 1)
            self._reset_until = now + DEMAND_WINDOW

    # --- what comes back from outside the lock ----------------------------------------------------------------

    def arrived(self, clone: Parked) -> None:
        """A restored clone: for the first waiter, or parked, or to be destroyed if its template is no longer wanted."""
        self._restoring -= 1
        self._failures = 0
        self.totals = replace(self.totals, restored=self.totals.restored + 1)
        if clone.digest != self.digest or self._closed is not None:
            self._end(clone)
            return
        self._parked[clone.id] = clone
        self._serve()

    def restore_failed(self, why: str, *, now: float) -> None:
        """A restore failed: the next one waits, the longer the more failed in a row."""
        self._restoring -= 1
        self.totals = replace(self.totals, failed=self.totals.failed + 1)
        self.last_failure = why
        self.may_have_remains = True
        self._failures += 1
        self._retry_at = now + backoff(self._failures, self._rng)

    def recheck_failed(self, why: str) -> None:
        """An inherited clone was not ready any more, and is gone."""
        self._restoring -= 1
        self.totals = replace(self.totals, died=self.totals.died + 1)
        self.last_failure = why
        self.may_have_remains = True

    def lost(self, lease: str) -> None:
        """The clone of this lease could not be handed over."""
        held = self._leases.pop(lease, None)
        self.totals = replace(self.totals, died=self.totals.died + 1)
        if held is not None:
            self._end(held.clone)

    def died(self, clone: Parked) -> None:
        """A parked clone is not what it was; nothing happens if it is not parked any more."""
        if self._parked.pop(clone.id, None) is not None:
            self.totals = replace(self.totals, died=self.totals.died + 1)
            self._end(clone)

    def removed(self, clone: Parked) -> None:
        """A leased clone was removed by whoever had it: its lease is over."""
        for lease, held in self._leases.items():
            if held.clone.id == clone.id and held.until != _ENDLESS:
                del self._leases[lease]
                self.totals = replace(self.totals, released=self.totals.released + 1)
                self._end(held.clone)
                return

    def ended(self, clone: Parked) -> None:
        """A clone is destroyed."""
        del self._ending[clone.id]

    def end_failed(self, clone: Parked, why: str, *, now: float) -> None:
        """A clone could not be destroyed: it counts as owned, and is tried again."""
        self.last_failure = why
        self._to_end.append((now + backoff(3, self._rng), clone))

    def end_unknown(self, found: Iterable[Parked]) -> None:
        """Have destroyed which of these clones of the pool it does not know; none is being restored."""
        self.may_have_remains = False
        known = {clone.id for clone in (*self.parked(), *self.leased(), *self.ending())}
        for clone in found:
            if clone.id not in known:
                self._end(clone)

    # --- what the tender asks ---------------------------------------------------------------------------------

    def inherit(self, *, checking: int, leased: Iterable[Parked], rest: Iterable[Parked]) -> None:
        """Take over what an earlier life left: `checking` parked clones are being looked at, and arrive."""
        self._restoring += checking
        for clone in leased:
            self._leases[clone.record.lease] = Held(clone, clone.record.lease_until)
        for clone in rest:
            self._end(clone)

    def expire(self, *, wall: float) -> None:
        """End the leases whose time is over."""
        over = [lease for lease, held in self._leases.items() if held.until <= wall]
        for lease in over:
            self._end(self._leases.pop(lease).clone)
        self.totals = replace(self.totals, expired=self.totals.expired + len(over))

    def work(self, *, now: float, room: int | None = None) -> Work:
        """Decide what is to be done now. What is returned counts as under way from this moment.

        `room` is for how many more clones there is memory.
        """
        restore = self._order(now, room)
        self._restoring += restore
        due = tuple(clone for at, clone in self._to_end if at <= now)
        self._to_end = [(at, clone) for at, clone in self._to_end if at > now]
        return Work(self.digest, restore, due)

    def pause(self, *, now: float, wall: float) -> float:
        """Seconds until there may be something to do that nobody wakes the tender for."""
        times = [self._retry_at, *(at for at, _ in self._to_end)]
        times += [now + held.until - wall for held in self._leases.values()]
        times += [self._refill_at] if self._refill_at is not None else []
        return min(at - now for at in (*times, now + _RETHINK) if at > now)

    def close(self, why: str, *, keep: bool) -> None:
        """Give out nothing any more, and refuse whoever waits. With `keep` what is parked stays for who comes next."""
        self._keeps = keep and (self._closed is None or self._keeps)
        if self._closed is None:
            self._closed = Unavailable(f"pool {self.name} {why}", remediation="use another pool, or open it again")
        self._refuse_waiters(self._closed)

    def fail(self, error: Exception) -> None:
        """The same, for an error that nobody foresaw: every later call raises it."""
        self.failure = self.failure or error
        self.last_failure = f"the pool failed, and is closed: {error!r}"
        self._closed = self.failure
        self._refuse_waiters(self.failure)

    def end_leases(self) -> None:
        """End every lease, whether its time is over or not."""
        self.expire(wall=_ENDLESS)

    # --- what is known ----------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    def check_open(self) -> None:
        """Raise what callers are refused with, if they are."""
        if self._closed is not None:
            raise self._closed

    def has_stale(self) -> bool:
        """Whether a clone of an older template is parked, or about to be handed over."""
        offered = (held.clone for held in self._leases.values() if held.until == _ENDLESS)
        return any(clone.digest != self.digest for clone in (*self._parked.values(), *offered))

    def bytes_of_a_clone(self) -> int:
        """The most that a parked clone adds to the memory in use; 0 before there is one."""
        return max((clone.bytes for clone in self._parked.values()), default=0)

    def left_to_end(self) -> tuple[Parked, ...]:
        """The clones whose destruction has not begun; the caller begins it."""
        left = tuple(clone for _, clone in self._to_end)
        self._to_end = []
        return left

    def ending(self) -> tuple[Parked, ...]:
        return tuple(self._ending.values())

    def parked(self) -> tuple[Parked, ...]:
        return tuple(self._parked.values())

    def leased(self) -> tuple[Parked, ...]:
        return tuple(held.clone for held in self._leases.values())

    def counts(self) -> Counts:
        fresh = sum(clone.digest == self.digest for clone in self._parked.values())
        return Counts(
            fresh=fresh, stale=len(self._parked) - fresh, restoring=self._restoring, leased=len(self._leases),
            ending=len(self._ending), waiting=len(self._waiters),
        )  # fmt: skip

    def statistics(self, *, now: float) -> Statistics:
        counts, marks = self.counts(), self.marks
        return Statistics(
            name=self.name, digest=self.digest, low=marks.low, high=marks.high, limit=marks.limit,
            target=self.target(now=now), parked=counts.parked, stale=counts.stale, leased=counts.leased,
            restoring=counts.restoring, ending=counts.ending, waiting=counts.waiting, totals=self.totals,
            last_failure=self.last_failure,
        )  # fmt: skip

    def target(self, *, now: float) -> int:
        """How many clones the pool wants parked."""
        wanted = parked_target(tuple(self._requests), self.marks, now=now)
        return max(wanted, self._reset_level) if now < self._reset_until else wanted

    # --- the pieces -------------------------------------------------------------------------------------------

    def _refuse_waiters(self, refusal: Exception) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.refusal = refusal
            waiter.woken.set()

    def _serve(self) -> None:
        """Give parked clones to those who wait, in order."""
        while self._waiters and self._parked and self._closed is None:
            waiter, clone = self._waiters.popleft(), self._parked.pop(next(iter(self._parked)))
            self._leases[waiter.lease] = Held(clone)
            waiter.given = clone
            waiter.woken.set()

    def _end(self, clone: Parked) -> None:
        self._ending[clone.id] = clone
        self._to_end.append((0.0, clone))

    def _order(self, now: float, room: int | None) -> int:
        """Let go what is to be destroyed; how many restores begin now."""
        if self._closed is not None:
            if not self._keeps:
                self._let_go(self.parked())
            return 0
        orders = plan(
            self.counts(), self.marks, target=self.target(now=now), parallel=self._parallel,
            may_restore=self.digest is not None and now >= self._retry_at and not self.may_have_remains, room=room,
        )  # fmt: skip
        stale = [clone for clone in self.parked() if clone.digest != self.digest]
        fresh = [clone for clone in self.parked() if clone.digest == self.digest]
        self._let_go((*stale[: orders.destroy_stale], *fresh[: orders.destroy_fresh]))
        return 0 if orders.restore and self._is_lull(now) else orders.restore

    def _let_go(self, clones: Iterable[Parked]) -> None:
        for clone in clones:
            del self._parked[clone.id]
            self._end(clone)

    def _is_lull(self, now: float) -> bool:
        """Whether a refill that nobody waits for is to begin a moment later."""
        if self._waiters:
            self._refill_at = None
            return False
        if self._refill_at is None:
            self._refill_at = now + refill_lull(self._rng)
        if now < self._refill_at:
            return True
        self._refill_at = None
        return False
