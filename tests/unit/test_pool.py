"""The pool with its threads, on clones that cost nothing: order, time-outs, leases, rolling, draining, failing."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from fake_parking import FakeParking
from thawbox.errors import NotFound, PoolExhausted, RestoreFailed, Unavailable
from thawbox.model import SandboxId, SnapshotId
from thawbox.pool import Lease, Pool
from thawbox.pool_plan import Watermarks

SOON = 30.0
"""Seconds within which anything that is going to happen has happened."""
OpenPool = Callable[..., Pool]


@pytest.fixture
def parking() -> FakeParking:
    return FakeParking()


@pytest.fixture
def open_pool(parking: FakeParking) -> Iterator[OpenPool]:
    with ExitStack() as stack:

        def open_one(low: int, high: int, limit: int, **options: object) -> Pool:
            pool = Pool("fake", parking, Watermarks(low, high, limit), rng=random.Random(1), **options)  # type: ignore[arg-type]
            stack.callback(pool.close)
            return pool.start()

        yield open_one


def warm(pool: Pool) -> Pool:
    pool.wait_warm(timeout=SOON)
    return pool


def wait_for(pool: Pool, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds: the tender tells after every change."""
    with pool._lock:
        assert pool._lock.wait_for(condition, SOON), pool.statistics()


def raise_no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_warm_pool_gives_what_is_parked_and_refills(open_pool: OpenPool) -> None:
    pool = warm(open_pool(2, 2, 8))
    with pool.acquire(timeout=0) as first, pool.acquire(timeout=0) as second:
        assert first.id != second.id
        warm(pool)
        assert pool.statistics().leased == 2
    wait_for(pool, lambda: pool.statistics().leased + pool.statistics().ending == 0)
    assert pool.statistics().totals.released == 2


def test_with_nothing_parked_an_acquire_gets_the_next_clone_that_is_ready(open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 2)
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id


def test_past_the_limit_an_acquire_is_told_why_there_is_nothing(open_pool: OpenPool) -> None:
    pool = open_pool(0, 1, 1)
    with pool.acquire(timeout=SOON), pytest.raises(PoolExhausted, match="1 of 1 are leased"):
        pool.acquire(timeout=0)
    assert pool.statistics().totals.exhausted == 1


def test_waiters_are_served_in_the_order_in_which_they_came(open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 1)
    served: list[int] = []

    def use(number: int) -> None:
        with pool.acquire(timeout=SOON):
            served.append(number)

    held = pool.acquire(timeout=SOON)
    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=use, args=(number,)))
        threads[-1].start()
        wait_for(pool, lambda waiting=number + 1: pool.statistics().waiting == waiting)
    held.release()
    for thread in threads:
        thread.join()
    assert served == [0, 1, 2, 3, 4, 5]


def test_a_waiter_that_gave_up_swallows_no_clone(open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 1)
    with pool.acquire(timeout=SOON):
        for _ in range(5):
            with pytest.raises(PoolExhausted):
                pool.acquire(timeout=0.001)
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id


def test_a_lease_that_nobody_gives_back_ends_by_itself(open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 1, lease_ttl=0.01)
    forgotten = pool.acquire(timeout=SOON)
    with pool.acquire(timeout=SOON, ttl=60) as sandbox:
        assert sandbox.id != forgotten.sandbox.id
        with pytest.raises(NotFound, match="was released or has expired"):
            forgotten.release()
    assert pool.statistics().totals.expired == 1


def test_a_renewed_lease_does_not_end(open_pool: OpenPool, parking: FakeParking) -> None:
    pool = open_pool(0, 0, 1, lease_ttl=60)
    lease = pool.acquire(timeout=SOON)
    lease.renew(ttl=3600)
    assert parking.records[lease.sandbox.id].lease_until == lease.until
    lease.renew(ttl=0)
    wait_for(pool, lambda: pool.statistics().totals.expired == 1)


def test_release_with_reset_parks_a_new_clone_and_never_the_used_one(open_pool: OpenPool) -> None:
    pool = open_pool(0, 2, 4)
    lease = pool.acquire(timeout=SOON)
    lease.release(reset=True)
    wait_for(pool, lambda: pool.statistics().parked == 1)
    with pool.acquire(timeout=0) as sandbox:
        assert sandbox.id != lease.sandbox.id


def test_a_parked_clone_that_dies_is_noticed_and_replaced(open_pool: OpenPool, parking: FakeParking) -> None:
    pool = warm(open_pool(2, 2, 4))
    killed = next(iter(parking.records))
    parking.kill(killed)
    wait_for(pool, lambda: killed not in parking.records and pool.statistics().parked == 2)
    assert pool.statistics().totals.died == 1


def test_a_dead_clone_is_never_handed_over(open_pool: OpenPool, parking: FakeParking) -> None:
    pool = warm(open_pool(2, 2, 4, inspect_every=3600))
    parking.dead |= set(parking.records)  # nobody is told
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id not in {SandboxId("sb-000000000001"), SandboxId("sb-000000000002")}


def test_a_leased_sandbox_that_its_caller_removed_ends_the_lease(open_pool: OpenPool, parking: FakeParking) -> None:
    pool = open_pool(0, 0, 1, inspect_every=0.01)
    lease = pool.acquire(timeout=SOON)
    del parking.records[lease.sandbox.id]
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id != lease.sandbox.id


def test_restores_that_fail_are_tried_again_and_the_caller_learns_why(
    open_pool: OpenPool, parking: FakeParking
) -> None:
    parking.refuse = lambda: RestoreFailed("criu said no")
    pool = open_pool(1, 1, 2)
    with pytest.raises(PoolExhausted, match="criu said no"):
        pool.acquire(timeout=0.3)
    parking.refuse = lambda: None
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id
    assert pool.statistics().totals.failed >= 1


def test_a_disk_that_is_full_for_a_while_ends_nothing(
    open_pool: OpenPool, parking: FakeParking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what a restore left then, nor what could not be destroyed, is left for good."""
    is_full = True

    def refuse_if_full(*_: object) -> None:
        if is_full:
            raise_no_space()

    def whole(name: str) -> None:
        act = getattr(parking, name)
        monkeypatch.setattr(parking, name, lambda *given: (refuse_if_full(), act(*given))[1])

    pool = warm(open_pool(2, 2, 4, inspect_every=0.01))
    lease = pool.acquire(timeout=SOON)
    for name in ("digest", "destroy", "is_removed", "inherited"):
        whole(name)
    half_made = replace(parking.records[lease.sandbox.id], id=SandboxId("sb-half"), lease="")
    parking.records[half_made.id] = half_made
    parking.refuse = refuse_if_full  # type: ignore[assignment]
    parking.kill(next(clone.id for clone in pool._ledger.parked()))
    wait_for(pool, lambda: pool.statistics().totals.failed > 1)
    is_full = False
    lease.release()
    wait_for(pool, lambda: len(parking.records) == pool.statistics().parked == 2)
    assert half_made.id not in parking.records
    pool.check()


def test_a_lease_that_could_not_be_written_down_costs_no_clone(
    open_pool: OpenPool, parking: FakeParking, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = warm(open_pool(1, 1, 1))
    with monkeypatch.context() as full:
        full.setattr(parking, "hand_over", raise_no_space)
        with pytest.raises(OSError, match="No space"):
            pool.acquire(timeout=0)
    (parked,) = parking.records
    with pool.acquire(timeout=0) as sandbox:
        assert sandbox.id == parked


def test_a_new_template_replaces_parked_clones_and_no_old_one_is_handed_out_after(
    open_pool: OpenPool, parking: FakeParking
) -> None:
    pool = warm(open_pool(2, 2, 6))
    old = set(parking.records)
    parking.golden = SnapshotId("b" * 64)
    pool.roll(timeout=SOON)
    warm(pool)
    for _ in range(4):
        with pool.acquire(timeout=SOON) as sandbox:
            assert sandbox.id not in old
            assert sandbox._record.parent_snapshot == "b" * 64


def test_drain_lets_leases_finish_gives_nothing_out_and_destroys_everything(
    open_pool: OpenPool, parking: FakeParking
) -> None:
    pool = warm(open_pool(2, 2, 4))
    lease = pool.acquire(timeout=SOON)
    draining = threading.Thread(target=pool.drain)
    draining.start()
    wait_for(pool, lambda: pool.statistics().parked == 0)
    with pytest.raises(Unavailable, match="draining"):
        pool.acquire(timeout=SOON)
    assert lease.sandbox.id in parking.records
    lease.release()
    draining.join()
    assert not parking.records


def test_drain_ends_leases_at_its_timeout(open_pool: OpenPool, parking: FakeParking) -> None:
    pool = open_pool(0, 1, 4)
    pool.acquire(timeout=SOON)
    pool.drain(timeout=0.01)
    assert not parking.records


def test_whoever_waits_is_told_when_the_pool_closes(open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 1)
    pool.acquire(timeout=SOON)
    refused: list[BaseException] = []

    def wait() -> None:
        try:
            pool.acquire(timeout=None)
        except Unavailable as error:
            refused.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(pool, lambda: pool.statistics().waiting == 1)
    pool.close()
    waiting.join()
    assert "is closed" in str(refused[0])


def test_the_next_life_adopts_parked_clones_honours_leases_and_destroys_the_rest(
    open_pool: OpenPool, parking: FakeParking
) -> None:
    pool = warm(open_pool(2, 2, 4, lease_ttl=3600))
    lease = pool.acquire(timeout=SOON)
    warm(pool)
    pool.close()
    kept = {record.id for record in parking.records.values() if not record.lease}
    half_made = replace(parking.records[lease.sandbox.id], id=SandboxId("sb-half"), lease="")
    parking.records[half_made.id] = half_made
    again = warm(open_pool(2, 2, 4))
    wait_for(again, lambda: half_made.id not in parking.records)
    assert {clone.id for clone in again._ledger.parked()} == kept
    again.release(lease.id)
    wait_for(again, lambda: lease.sandbox.id not in parking.records)


def test_an_error_that_nobody_foresaw_reaches_every_caller(open_pool: OpenPool, parking: FakeParking) -> None:
    def break_down() -> None:
        raise ZeroDivisionError("a defect")

    parking.refuse = break_down
    pool = open_pool(1, 1, 2)
    with pytest.raises(ZeroDivisionError):
        pool.acquire(timeout=SOON)
    with pytest.raises(ZeroDivisionError):
        pool.acquire(timeout=SOON)
    assert pool.has_failed
    assert "a defect" in pool.statistics().last_failure


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hundreds_of_callers_never_share_a_clone_and_never_exceed_the_limit(
    open_pool: OpenPool, parking: FakeParking, seed: int
) -> None:
    rng = random.Random(seed)
    choices = {number: (rng.random(), rng.random()) for number in range(600)}
    parking.refuse = lambda: RestoreFailed("now and then") if rng.random() < 0.02 else None
    pool = open_pool(3, 8, 12, parallel=4, inspect_every=0.01)
    seen: set[SandboxId] = set()
    lock = threading.Lock()

    def use(number: int) -> bool:
        patience, fate = choices[number]
        try:
            lease = pool.acquire(timeout=SOON if patience < 0.8 else patience / 1000)
        except PoolExhausted:
            return False
        with lock:
            assert lease.sandbox.id not in seen
            seen.add(lease.sandbox.id)
        if fate < 0.1:
            parking.kill(lease.sandbox.id)
        give_back(lease, fate)
        return True

    def give_back(lease: Lease, fate: float) -> None:
        if fate < 0.15:
            lease.renew(ttl=0)  # gone without a word
        else:
            lease.release(reset=fate > 0.9)

    with ThreadPoolExecutor(100) as callers:
        served = list(callers.map(use, range(600)))
    assert all(served[number] for number, (patience, _) in choices.items() if patience < 0.8)
    assert parking.most <= 12
    pool.drain(timeout=SOON)
    assert not parking.records
    assert pool.statistics().totals.acquired == sum(served)
