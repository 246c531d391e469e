"""A pool's books against a model: whatever callers, restores, deaths and rebuilds do, in whatever order they end."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fake_parking import FakeParking
from thawbox.errors import PoolExhausted, RestoreFailed, ThawboxError
from thawbox.model import SandboxId, SnapshotId
from thawbox.pool.ledger import Ledger, Waiter
from thawbox.pool_plan import Watermarks
from thawbox.sandbox.parking import Parked


class PoolMachine(RuleBasedStateMachine):
    """Plays the tender and every caller, one step at a time; `under_way` holds the work that has not ended yet."""

    @initialize(low=st.integers(0, 3), above=st.integers(0, 2), more=st.integers(0, 3), parallel=st.integers(1, 3))
    def open(self, low: int, above: int, more: int, parallel: int) -> None:
        marks = Watermarks(low, low + above, max(1, low + above + more))
        self.parking = FakeParking()
        self.ledger = Ledger("model", marks, parallel=parallel, rng=random.Random(0))
        self.ledger.digest = self.parking.digest()
        self.now = 0.0
        self.parks: list[SnapshotId] = []
        self.destructions: list[Parked] = []
        self.waiters: list[Waiter] = []
        self.users: dict[str, SandboxId] = {}
        self.ever_used: set[SandboxId] = set()
        self.leases = 0
        self.switched = False
        self.remains: set[SandboxId] = set()

    def teardown(self) -> None:
        for clone in (*self.ledger.parked(), *self.ledger.leased(), *self.destructions):
            self.parking.forget(clone)
        for _, clone in self.ledger._to_end:
            self.parking.forget(clone)

    def new_lease(self) -> str:
        self.leases += 1
        return f"lease-{self.leases}"

    def hand_over(self, lease: str, clone: Parked) -> None:
        try:
            sandbox = self.parking.hand_over(clone, lease=lease, until=self.now + 60)
        except ThawboxError:
            self.ledger.lost(lease)
            return
        self.ledger.handed_over(lease, until=self.now + 60)
        assert sandbox.id not in self.ever_used, "a clone was given to two callers"
        assert not self.switched or clone.digest == self.parking.golden, "an old clone was handed out after the switch"
        self.ever_used.add(sandbox.id)
        self.users[lease] = sandbox.id

    @rule()
    def tend(self) -> None:
        if self.ledger.may_have_remains and not self.parks:
            found = self.parking.inherited()
            self.ledger.end_unknown((*found.parked, *found.leased, *found.rest))
            self.remains.clear()
        self.ledger.digest = self.parking.digest()
        self.ledger.expire(wall=self.now)
        self.users = {lease: used for lease, used in self.users.items() if lease in self.ledger._leases}
        work = self.ledger.work(now=self.now)
        self.switched = not self.ledger.has_stale()
        assert work.digest is not None or not work.restore
        self.parks += [self.parking.digest()] * work.restore
        self.destructions += work.destroy

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 40.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def acquire(self) -> None:
        lease = self.new_lease()
        clone = self.ledger.take(lease, now=self.now)
        if clone is not None:
            self.hand_over(lease, clone)
        else:
            self.waiters.append(self.ledger.wait(lease))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def wake_or_give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters))
        self.waiters.remove(waiter)
        given = self.ledger.give_up(waiter)
        if given is None:
            assert isinstance(self.ledger.exhausted(1.0), PoolExhausted)
        elif data.draw(st.booleans()):
            self.hand_over(waiter.lease, given)
        else:
            self.ledger.put_back(waiter.lease)  # interrupted

    @precondition(lambda self: self.users)
    @rule(data=st.data(), reset=st.booleans())
    def release(self, data: st.DataObject, reset: bool) -> None:
        lease = data.draw(st.sampled_from(sorted(self.users)))
        del self.users[lease]
        self.ledger.release(lease, now=self.now, reset=reset)

    @precondition(lambda self: self.parks)
    @rule(fails=st.booleans(), leaves=st.booleans())
    def a_restore_ends(self, fails: bool, leaves: bool) -> None:
        digest = self.parks.pop(0)
        if fails and leaves:  # the disk was full: what was made could not be removed either
            self.parking.refuse = lambda: None
            clone = self.parking.park(digest) if digest == self.parking.golden else None
            if clone is not None:
                self.parking.forget(clone)
                self.remains.add(clone.id)
        self.parking.refuse = (lambda: RestoreFailed("criu said no")) if fails else (lambda: None)
        try:
            clone = self.parking.park(digest)
        except RestoreFailed as error:
            self.ledger.restore_failed(str(error), now=self.now)
        else:
            self.ledger.arrived(clone)

    @precondition(lambda self: self.destructions)
    @rule(fails=st.booleans())
    def a_destruction_ends(self, fails: bool) -> None:
        clone = self.destructions.pop(0)
        if fails:
            self.ledger.end_failed(clone, "somebody holds its lock", now=self.now)
        else:
            self.parking.destroy(clone)
            self.ledger.ended(clone)

    @precondition(lambda self: self.ledger.parked())
    @rule(data=st.data(), noticed=st.booleans())
    def a_parked_clone_dies(self, data: st.DataObject, noticed: bool) -> None:
        clone = data.draw(st.sampled_from(self.ledger.parked()))
        self.parking.kill(clone.id)
        if noticed:
            self.ledger.died(clone)

    @rule(digest=st.sampled_from("abc"))
    def the_template_is_rebuilt(self, digest: str) -> None:
        if self.parking.golden != digest * 64:
            self.switched = False
        self.parking.golden = SnapshotId(digest * 64)

    @invariant()
    def the_limit_holds_and_nothing_is_lost(self) -> None:
        counts = self.ledger.counts()
        assert counts.owned + len(self.remains) <= self.ledger.marks.limit
        assert counts.restoring == len(self.parks)
        known = {clone.id for clone in (*self.ledger.parked(), *self.ledger.leased())} | set(self.ledger._ending)
        assert set(self.parking.records) == known | self.remains, "a clone is in nobody's books"
        assert len(known) == counts.parked + counts.leased + counts.ending, "a clone is in two places"

    @invariant()
    def nobody_waits_beside_a_parked_clone(self) -> None:
        counts = self.ledger.counts()
        assert not (counts.parked and counts.waiting)

    @invariant()
    def the_tender_sleeps_but_not_for_ever(self) -> None:
        assert 0 < self.ledger.pause(now=self.now, wall=self.now) < 10.1


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestPoolModel = PoolMachine.TestCase
