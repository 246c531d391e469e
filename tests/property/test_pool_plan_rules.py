"""The rules of `pool_plan`, for every pool there could be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thawbox.pool_plan import Counts, Orders, Watermarks, parked_target, plan


@st.composite
def watermarks(draw: st.DrawFn) -> Watermarks:
    limit = draw(st.integers(1, 12))
    high = draw(st.integers(0, limit))
    return Watermarks(draw(st.integers(0, high)), high, limit)


@st.composite
def pools(draw: st.DrawFn) -> tuple[Counts, Watermarks, int]:
    """A pool within its limit; nobody waits while a clone is parked."""
    marks = draw(watermarks())
    left = marks.limit
    amounts = []
    for _ in range(5):
        amounts.append(draw(st.integers(0, left)))
        left -= amounts[-1]
    waiting = draw(st.integers(0, 20)) if amounts[0] + amounts[1] == 0 else 0
    return Counts(*amounts, waiting), marks, draw(st.integers(marks.low, marks.high))


@given(pools(), st.integers(1, 4), st.booleans())
def test_no_plan_breaks_the_limit_destroys_what_is_not_there_or_goes_below_low(
    pool: tuple[Counts, Watermarks, int], parallel: int, may_restore: bool
) -> None:
    counts, marks, target = pool
    orders = plan(counts, marks, target=target, parallel=parallel, may_restore=may_restore)
    assert orders.restore >= 0
    assert orders.restore == 0 or counts.owned + orders.restore <= marks.limit
    assert orders.restore == 0 or counts.restoring + orders.restore <= parallel
    assert 0 <= orders.destroy_fresh <= counts.fresh
    assert 0 <= orders.destroy_stale <= counts.stale
    destroyed = orders.destroy_fresh + orders.destroy_stale
    assert not destroyed or counts.parked - destroyed >= min(marks.low, marks.limit - 1)
    assert not (orders.restore and orders.destroy_fresh), "nothing is made and thrown away at once"


@given(pools(), st.integers(1, 4))
def test_a_pool_left_alone_comes_to_rest_at_its_target_with_no_old_clone(
    pool: tuple[Counts, Watermarks, int], parallel: int
) -> None:
    counts, marks, target = pool
    for _ in range(200):
        orders = plan(counts, marks, target=target, parallel=parallel)
        if orders == Orders() and not counts.restoring and not counts.ending:
            break
        counts = _carried_out(counts, orders)
    else:
        raise AssertionError(f"it never comes to rest: {counts}")
    room = marks.limit - counts.leased
    assert counts.fresh + counts.stale == min(target, room)
    assert counts.stale == 0 or counts.leased, "only leases can keep an old clone where it is"
    assert counts.waiting == 0 or counts.owned == marks.limit


def _carried_out(counts: Counts, orders: Orders) -> Counts:
    """The pool after its orders, and whatever was under way, were carried out; who waited has got a clone."""
    arrived = orders.restore + counts.restoring
    given_away = min(arrived, counts.waiting)
    return Counts(
        fresh=counts.fresh - orders.destroy_fresh + arrived - given_away,
        stale=counts.stale - orders.destroy_stale,
        leased=counts.leased + given_away,
        waiting=counts.waiting - given_away,
    )


@given(st.lists(st.floats(0, 1000)), watermarks(), st.floats(0, 1000))
def test_the_target_is_always_between_low_and_high(requests: list[float], marks: Watermarks, now: float) -> None:
    assert marks.low <= parked_target(sorted(requests), marks, now=now) <= marks.high
