"""A pool of parked clones: `acquire` thaws one, the tender thread makes the next.

Rule 1: the lock holds decisions only; restoring, thawing, destroying and waiting happen outside it.
Rule 2: the tender alone orders restores and destructions; whoever changes the ledger wakes it.
Rule 3: an error that nobody foresaw ends the tending and is raised by every later call; it is never swallowed.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from thawbox.errors import NotFound, ThawboxError, Unavailable
from thawbox.model import SnapshotId
from thawbox.pool.ledger import Ledger, Statistics, Waiter, Work
from thawbox.pool_plan import Watermarks, check_watermarks
from thawbox.sandbox import Sandbox
from thawbox.sandbox.parking import Parked, Parking
from thawbox.telemetry import NOBODY, Telemetry

LEASE_SECONDS = 3600.0
PARALLEL_RESTORES = 2
"""A restore keeps one core busy; more at once make each of them slower for whoever waits for the first."""
INSPECT_SECONDS = 1.0
"""How often frozen clones are looked at: with version 1 cgroups a frozen process that was killed tells nobody."""


class Lease:
    """A sandbox taken from a pool. As a context manager it gives the sandbox, and releases it at the end of the block.

    `until` is when the lease ends by itself (seconds since the epoch); the sandbox is destroyed then.
    """

    def __init__(self, pool: Pool, identity: str, sandbox: Sandbox, *, until: float) -> None:
        self._pool = pool
        self.id = identity
        self.sandbox = sandbox
        self.until = until

    def __repr__(self) -> str:
        return f"<Lease {self.id} of {self.sandbox.name}>"

    def __enter__(self) -> Sandbox:
        return self.sandbox

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NotFound):  # its time was over, or the block released it
            self.release()

    def release(self, *, reset: bool = False) -> None:
        """Give the sandbox back: see `Pool.release`."""
        self._pool.release(self.id, reset=reset)

    def renew(self, *, ttl: float | None = None) -> None:
        """Let the lease end `ttl` seconds from now."""
        self.until = self._pool.renew(self.id, ttl=ttl)


def _nothing() -> None:
    pass


class Pool:
    """Parked clones of one template. `start` begins tending; the end of a `with` block closes it and drains nothing.

    Safe to use from many threads. `lease_ttl` is seconds; `on_close` is called once when the pool is closed.
    """

    def __init__(
        self, name: str, parking: Parking, marks: Watermarks, *, lease_ttl: float = LEASE_SECONDS,
        parallel: int = PARALLEL_RESTORES, inspect_every: float = INSPECT_SECONDS, rng: random.Random | None = None,
        now: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] = lambda: None, telemetry: Telemetry = NOBODY,
    ) -> None:  # fmt: skip
        self.name = name
        self._parking = parking
        self._lease_ttl = lease_ttl
        self._inspect_every = inspect_every
        self._now = now
        self._clock = clock
        self._on_close = on_close
        self._telemetry = telemetry
        self._lock = threading.Condition()
        self._ledger = Ledger(name, check_watermarks(marks), parallel=parallel, rng=rng or random.Random())  # noqa: S311
        self._closing = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._hands = ThreadPoolExecutor(2 * parallel, f"thawbox-pool-{name}")
        self._tender = threading.Thread(target=self._tend, name=f"thawbox-pool-{name}", daemon=True)

    def __repr__(self) -> str:
        return f"<Pool {self.name}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what callers do --------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Take over what an earlier life of the node left, and begin to fill the pool in the background."""
        found = self._parking.inherited()
        with self._lock:
            self._ledger.digest = self._digest()
            self._ledger.inherit(checking=len(found.parked), leased=found.leased, rest=found.rest)
        for clone in found.parked:
            self._hands.submit(self._guarded, self._recheck, clone)
        self._tender.start()
        return self

    def acquire(self, *, timeout: float | None = 30.0, ttl: float | None = None) -> Lease:
        """A running sandbox that nobody else has, from the parked ones or the next that is ready.

        Callers that wait are served in order. `timeout` is seconds, 0 takes only what is parked, None waits for ever;
        `ttl` is the seconds after which the lease ends by itself. Raises PoolExhausted at the timeout, Unavailable
        when the pool is draining or closed.
        """
        with self._telemetry.step("pool.acquire", pool=self.name) as step:
            lease = self._acquired(timeout=timeout, ttl=ttl)
            step.note(sandbox=lease.sandbox.id)
        return lease

    def _acquired(self, *, timeout: float | None, ttl: float | None) -> Lease:
        begun = self._clock()
        lease = secrets.token_hex(8)
        clone = self._taken(lease) or self._awaited(lease, begun=begun, timeout=timeout)
        while True:
            until = self._now() + (self._lease_ttl if ttl is None else ttl)
            sandbox = self._handed_over(clone, lease, until)
            if sandbox is not None:
                return Lease(self, lease, sandbox, until=until)
            clone = self._awaited(lease, begun=begun, timeout=timeout, first=True)

    def release(self, lease: str, *, reset: bool = False) -> None:
        """End a lease; its sandbox is destroyed in the background. Raises NotFound when it has ended already.

        With `reset` the pool parks one more clone in its place, up to `high`: a new one in the template's state, never
        the used one.
        """
        with self._lock:
            self._ledger.release(lease, now=self._clock(), reset=reset)
        self._wake()

    def renew(self, lease: str, *, ttl: float | None = None) -> float:
        """Let a lease end `ttl` seconds from now (default: the pool's), and return that time. Raises NotFound."""
        until = self._now() + (self._lease_ttl if ttl is None else ttl)
        with self._lock:
            clone = self._ledger.lease(lease).clone
        self._parking.extend(clone, until=until)
        with self._lock:
            self._ledger.extend(lease, until=until)
        self._wake()
        return until

    def has_lease(self, lease: str) -> bool:
        """Whether this lease of the pool runs."""
        with self._lock:
            try:
                self._ledger.lease(lease)
            except NotFound:
                return False
            return True

    def roll(self, *, timeout: float | None = None, check: Callable[[], None] = _nothing) -> None:
        """Replace the parked clones of an older template; when this returns none of them is left, nor handed out.

        Raises Unavailable after `timeout` seconds, and what `check` raises, which is asked whenever somebody calls
        `look_again`; the rolling then goes on in the background.
        """

        def is_rolled() -> bool:
            check()
            return self._is_rolled(wanted)

        with self._lock:
            self._ledger.digest = self._digest()
            wanted = self._ledger.digest
            self._wake()
            self._wait_until(is_rolled, timeout, "is still replacing clones of an older template")

    def look_again(self) -> None:
        """Have whoever waits look again."""
        with self._lock:
            self._lock.notify_all()

    def wait_warm(self, *, timeout: float | None = None) -> None:
        """Wait until `low` clones are parked; raises Unavailable after `timeout` seconds."""
        with self._lock:
            self._wait_until(lambda: self._ledger.counts().parked >= self._ledger.marks.low, timeout, "is not warm")

    def drain(self, *, timeout: float | None = None, check: Callable[[], None] = _nothing) -> None:
        """Give out nothing any more, wait until the leases have ended, destroy everything, and close.

        Leases that have not ended after `timeout` seconds (None: at the end of their time) are ended. Raises what
        `check` raises, as `roll` does: the pool gives out nothing then, and is to be closed.
        """

        def comes(condition: Callable[[], bool]) -> bool:
            check()
            return self._closing or condition()

        with self._lock:
            self._ledger.close("is draining", keep=False)
            self._wake()
            if not self._lock.wait_for(lambda: comes(self._is_without_leases), timeout):
                self._ledger.end_leases()
                self._wake()
            self._lock.wait_for(lambda: comes(self._is_empty))
            self._raise_failure()
            if not self._is_empty():
                raise Unavailable(f"pool {self.name} was closed before it was empty", remediation="drain it again")
        self.close()

    def refuse(self, why: str) -> None:
        """Give out nothing any more, and tell those who wait so. `why` goes on after the pool's name.

        Leases run on, and what is parked stays parked.
        """
        with self._lock:
            self._ledger.close(why, keep=True)
        self._wake()

    def close(self) -> None:
        """Stop tending. Parked and leased clones stay as they are, for the next `start` on this node."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._ledger.close("is closed", keep=True)
            self._lock.notify_all()
        self._wake()
        if self._tender.ident is not None:
            self._tender.join()
        with self._lock:
            self._begin(Work(None, 0, self._ledger.left_to_end()))
        self._hands.shutdown(wait=True)
        with self._lock:
            clones = (*self._ledger.parked(), *self._ledger.leased(), *self._ledger.ending())
            self._lock.notify_all()
        for clone in clones:
            self._parking.forget(clone)
        self._parking.close()
        with self._lock:
            os.close(self._bell)
            self._bell = -1
        self._on_close()

    def check(self) -> None:
        """Raise the error that ended the tending, if one did."""
        with self._lock:
            self._raise_failure()

    @property
    def has_failed(self) -> bool:
        """Whether an error that nobody foresaw has ended the tending."""
        return self._ledger.failure is not None

    def statistics(self) -> Statistics:
        """What the pool has and did, at this moment."""
        with self._lock:
            return self._ledger.statistics(now=self._clock())

    # --- acquiring --------------------------------------------------------------------------------------------

    def _taken(self, lease: str) -> Parked | None:
        with self._lock:
            return self._ledger.take(lease, now=self._clock())

    def _awaited(self, lease: str, *, begun: float, timeout: float | None, first: bool = False) -> Parked:
        with self._lock:
            waiter = self._ledger.wait(lease, first=first)
        self._wake()
        try:
            left = None if timeout is None else max(0.0, begun + timeout - self._clock())
            waiter.woken.wait(left)
        except BaseException:  # Ctrl-C: a clone given in this instant goes back to the others
            with self._lock:
                if self._ledger.give_up(waiter) is not None:
                    self._ledger.put_back(lease)
            self._wake()
            raise
        return self._accepted(waiter, waited=self._clock() - begun)

    def _accepted(self, waiter: Waiter, *, waited: float) -> Parked:
        with self._lock:
            given = self._ledger.give_up(waiter)
            if given is not None:
                return given
            raise waiter.refusal or self._ledger.exhausted(waited)

    def _handed_over(self, clone: Parked, lease: str, until: float) -> Sandbox | None:
        """The thawed sandbox; None if it did not survive being parked. The tender is woken when the caller has it."""
        try:
            sandbox = self._parking.hand_over(clone, lease=lease, until=until)
        except OSError:  # our own disk: the lease could not be written down, and the clone is as it was
            with self._lock:
                self._ledger.put_back(lease)
            self._wake()
            raise
        except BaseException as error:
            with self._lock:
                self._ledger.lost(lease)
            self._wake()
            if isinstance(error, ThawboxError):
                return None
            raise
        with self._lock:
            self._ledger.handed_over(lease, until=until)
        self._wake()
        return sandbox

    # --- tending ----------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        inspected = self._clock()
        try:
            while not self._closing and self._ledger.failure is None:
                digest = self._digest_now()
                self._look_for_remains()
                with self._lock:
                    each = self._ledger.bytes_of_a_clone()
                room = self._parking.room(each) if each else None
                with self._lock:
                    self._ledger.digest = digest
                    now, wall = self._clock(), self._now()
                    self._ledger.expire(wall=wall)
                    work = self._ledger.work(now=now, room=room)
                    pause = self._ledger.pause(now=now, wall=wall)
                    parked = self._ledger.parked()
                    is_owner = bool(parked or self._ledger.leased())
                    self._lock.notify_all()
                self._begin(work)
                inspect_in = max(0.0, inspected + self._inspect_every - self._clock()) if is_owner else pause
                self._watch(parked, min(pause, inspect_in))
                if is_owner and self._clock() >= inspected + self._inspect_every:
                    self._inspect()
                    inspected = self._clock()
        except Exception as error:  # noqa: BLE001 - raised by whoever calls the pool next
            self._fail(error)

    def _begin(self, work: Work) -> None:
        for clone in work.destroy:
            self._hands.submit(self._guarded, self._destroy, clone)
        for _ in range(work.restore):
            assert work.digest is not None  # noqa: S101 - nothing is ordered without one
            self._hands.submit(self._guarded, self._park, work.digest)

    def _watch(self, parked: tuple[Parked, ...], pause: float) -> None:
        """Wait until the bell rings, a parked clone dies, or the time is over."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        watched: dict[int, Parked] = {}
        for clone in parked:
            if clone.death is not None and not clone.death.closed:
                with contextlib.suppress(ValueError):  # acquired, used and destroyed since we looked
                    watched[clone.death.fileno()] = clone
                    poll.register(clone.death, select.POLLIN)
        for fd, event in poll.poll(pause * 1000 + 1):
            if fd == self._bell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            elif event & select.POLLIN:
                with self._lock:
                    self._ledger.died(watched[fd])

    def _inspect(self) -> None:
        with self._lock:
            parked, leased = self._ledger.parked(), self._ledger.leased()
        for clone in parked:
            if not self._parking.is_unharmed(clone):
                with self._lock:
                    self._ledger.died(clone)  # or was acquired meanwhile: then nothing happens
        for clone in leased:
            with contextlib.suppress(OSError):  # our own disk: the next look tells
                if self._parking.is_removed(clone):
                    with self._lock:
                        self._ledger.removed(clone)

    def _digest_now(self) -> SnapshotId | None:
        """The same, or what it was where our own disk does not say."""
        try:
            return self._digest()
        except OSError:
            return self._ledger.digest

    def _look_for_remains(self) -> None:
        """Have destroyed what a failed restore has left, as when a full disk let nothing be removed either."""
        with self._lock:
            if not self._ledger.may_have_remains or self._ledger.counts().restoring:
                return  # while one is under way the journal has clones that the ledger does not know yet
        try:
            found = self._parking.inherited()
        except OSError:
            return  # a later round looks
        with self._lock:
            self._ledger.end_unknown((*found.parked, *found.leased, *found.rest))

    def _digest(self) -> SnapshotId | None:
        try:
            return self._parking.digest()
        except NotFound:
            return None  # the template is gone: what is parked can still be used

    # --- the work, in threads of its own ------------------------------------------------------------------------

    def _guarded(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - raised by whoever calls the pool next
            self._fail(error)
        self._wake()

    def _park(self, digest: SnapshotId) -> None:
        try:
            with self._telemetry.step("pool.park", pool=self.name) as step:
                clone = self._parking.park(digest)
                step.note(sandbox=clone.id)
        except (ThawboxError, OSError) as error:
            with self._lock:
                self._ledger.restore_failed(str(error), now=self._clock())
            return
        with self._lock:
            self._ledger.arrived(clone)

    def _recheck(self, inherited: Parked) -> None:
        try:
            clone = self._parking.recheck(inherited)
        except (ThawboxError, OSError) as error:
            with self._lock:
                self._ledger.recheck_failed(str(error))
            return
        with self._lock:
            self._ledger.arrived(clone)

    def _destroy(self, clone: Parked) -> None:
        try:
            self._parking.destroy(clone)
        except (ThawboxError, OSError) as error:
            with self._lock:
                self._ledger.end_failed(clone, str(error), now=self._clock())
            return
        with self._lock:
            self._ledger.ended(clone)

    # --- waiting, waking, failing -----------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._ledger.fail(error)
            self._lock.notify_all()

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None, otherwise: str) -> None:
        """Wait, with the lock held, until the condition holds; the tender tells after every change."""
        self._lock.wait_for(lambda: condition() or self._ledger.is_closed, timeout)
        if condition():
            return
        self._ledger.check_open()
        why = f"; the last restore failed: {self._ledger.last_failure}" if self._ledger.last_failure else ""
        raise Unavailable(f"pool {self.name} {otherwise} after {timeout:g} s{why}")

    def _is_rolled(self, wanted: SnapshotId | None) -> bool:
        return self._ledger.digest != wanted or not self._ledger.has_stale()

    def _is_without_leases(self) -> bool:
        return not self._ledger.counts().leased or self._ledger.failure is not None

    def _is_empty(self) -> bool:
        return not self._ledger.counts().owned or self._ledger.failure is not None

    def _raise_failure(self) -> None:
        if self._ledger.failure is not None:
            raise self._ledger.failure
