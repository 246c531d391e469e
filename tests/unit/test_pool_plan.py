"""What a pool does next, decided without a clock, a thread or a sandbox."""

from __future__ import annotations

import random

import pytest

from thawbox.errors import InvalidRequest
from thawbox.pool_plan import (
    DEMAND_WINDOW,
    IDLE_SECONDS,
    LONGEST_BACKOFF,
    LONGEST_RELOAD,
    MOST_BY_DEMAND,
    Counts,
    HeldTemplate,
    Orders,
    Watermarks,
    backoff,
    check_watermarks,
    has_room,
    is_demanded,
    is_worth_warming,
    parked_target,
    plan,
    refill_lull,
    reload_after,
    room_for,
    templates_to_drop,
)

MARKS = Watermarks(low=2, high=4, limit=8)


def test_an_empty_pool_restores_up_to_its_target_no_more_at_once_than_it_may() -> None:
    assert plan(Counts(), MARKS, target=3, parallel=8) == Orders(restore=3)
    assert plan(Counts(), MARKS, target=3, parallel=2) == Orders(restore=2)
    assert plan(Counts(restoring=2), MARKS, target=3, parallel=2) == Orders()


def test_every_waiter_is_restored_for_beside_the_target() -> None:
    assert plan(Counts(waiting=3), MARKS, target=2, parallel=9).restore == 5


def test_nothing_is_restored_past_the_limit_counting_what_is_on_its_way_out() -> None:
    assert plan(Counts(leased=5, ending=2, waiting=9), MARKS, target=2, parallel=9).restore == 1
    assert plan(Counts(leased=6, ending=2, waiting=9), MARKS, target=2, parallel=9).restore == 0


def test_while_backing_off_nothing_is_restored_and_surplus_still_goes() -> None:
    assert plan(Counts(), MARKS, target=2, parallel=2, may_restore=False) == Orders()
    assert plan(Counts(fresh=4), MARKS, target=2, parallel=2, may_restore=False) == Orders(destroy_fresh=2)


def test_old_clones_stay_until_their_replacements_are_parked() -> None:
    assert plan(Counts(stale=2), MARKS, target=2, parallel=1) == Orders(restore=1)
    assert plan(Counts(stale=2, fresh=1), MARKS, target=2, parallel=1) == Orders(restore=1, destroy_stale=1)
    assert plan(Counts(stale=1, fresh=2), MARKS, target=2, parallel=1) == Orders(destroy_stale=1)


def test_without_room_an_old_clone_goes_first_but_not_below_low() -> None:
    full = Watermarks(low=2, high=4, limit=4)
    assert plan(Counts(stale=4), full, target=4, parallel=2) == Orders(destroy_stale=1)
    assert plan(Counts(stale=3, ending=1), full, target=4, parallel=2) == Orders()
    assert plan(Counts(stale=2, leased=2), full, target=4, parallel=2) == Orders()


def test_a_pool_whose_low_is_its_limit_gives_up_one_clone_at_a_time() -> None:
    tight = Watermarks(low=2, high=2, limit=2)
    assert plan(Counts(stale=2), tight, target=2, parallel=2) == Orders(destroy_stale=1)
    assert plan(Counts(stale=1, ending=1), tight, target=2, parallel=2) == Orders()
    assert plan(Counts(stale=1, restoring=1), tight, target=2, parallel=2) == Orders()


def test_the_target_is_the_largest_recent_burst_between_low_and_high() -> None:
    assert parked_target([], MARKS, now=100) == 2
    assert parked_target([97, 98, 98.5], MARKS, now=100) == 3
    assert parked_target([90, 93, 96, 99], MARKS, now=100) == 2, "one at a time is no burst"
    assert parked_target([99.0 + step / 100 for step in range(50)], MARKS, now=100) == 4
    assert parked_target([10, 10.1, 10.2], MARKS, now=100) == 2, "forgotten"


@pytest.mark.parametrize("marks", [(-1, 2, 3), (3, 2, 3), (1, 4, 3), (0, 0, 0)])
def test_watermarks_that_no_pool_can_keep_are_refused(marks: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidRequest, match="cannot be kept"):
        check_watermarks(Watermarks(*marks))


def test_back_off_doubles_up_to_its_cap_and_is_never_the_same_for_all() -> None:
    rng = random.Random(5)
    waits = [backoff(failures, rng) for failures in range(1, 2000)]
    assert 0.125 <= waits[0] <= 0.25
    assert waits[0] < waits[3] < waits[6]
    assert max(waits) <= LONGEST_BACKOFF
    assert len(set(waits[20:])) > 1000


def test_refills_of_several_pools_do_not_begin_in_step() -> None:
    assert len({refill_lull(random.Random(seed)) for seed in range(50)}) == 50


GIB = 1 << 30


def test_memory_is_held_for_a_few_clones_and_not_where_it_would_push_out_what_clones_are_for() -> None:
    assert is_worth_warming(3, resident=GIB, available=8 * GIB)
    assert not is_worth_warming(2, resident=GIB, available=8 * GIB)
    assert not is_worth_warming(100, resident=5 * GIB, available=8 * GIB)


def test_only_clones_of_late_make_a_demand() -> None:
    assert is_demanded([0, 30, 59], now=59)
    assert not is_demanded([30, 59], now=59)
    assert not is_demanded([0, 30, 59], now=DEMAND_WINDOW + 1)


def test_a_template_that_idles_goes_unless_somebody_asked_for_it() -> None:
    held = [
        HeldTemplate("idle", GIB, 0.0),
        HeldTemplate("kept", GIB, 0.0, is_kept=True),
        HeldTemplate("used", GIB, 90.0),
    ]
    assert templates_to_drop(held, now=IDLE_SECONDS + 1, available=8 * GIB, total=16 * GIB) == {"idle"}


def test_scarce_memory_takes_the_templates_used_longest_ago_and_those_asked_for_last() -> None:
    held = [
        HeldTemplate("kept", GIB, 1.0, is_kept=True), HeldTemplate("older", GIB, 2.0), HeldTemplate("newer", GIB, 3.0)
    ]  # fmt: skip
    assert templates_to_drop(held, now=4, available=GIB // 2, total=16 * GIB) == {"older"}
    assert templates_to_drop(held, now=4, available=0, total=16 * GIB) == {"older", "newer"}
    assert templates_to_drop(held, now=4, available=0, total=32 * GIB) == {"kept", "older", "newer"}
    assert not templates_to_drop(held, now=4, available=2 * GIB, total=16 * GIB)


def test_of_templates_held_for_demand_alone_those_used_last_stay_and_all_that_are_asked_for() -> None:
    kept = [HeldTemplate(f"kept {number}", GIB, 0.0, is_kept=True) for number in range(9)]
    asked = [HeldTemplate(str(number), 1, float(number)) for number in range(MOST_BY_DEMAND + 2)]
    assert templates_to_drop([*asked, *kept], now=9, available=8 * GIB, total=16 * GIB) == {"0", "1"}
    assert not templates_to_drop([*asked[2:], *kept], now=9, available=8 * GIB, total=16 * GIB)


def test_what_is_loaded_is_not_dropped_at_the_next_look() -> None:
    total, available = 16 * GIB, 4 * GIB
    largest = next(size for size in range(available, 0, -(1 << 20)) if has_room(size, available=available, total=total))
    held = [HeldTemplate("it", largest, 0.0, is_kept=True)]
    assert 2 * GIB < largest < 3 * GIB
    assert not templates_to_drop(held, now=1, available=available - largest, total=total)


def test_what_fails_is_loaded_anew_ever_later_but_not_never() -> None:
    waits = [reload_after(failures) for failures in range(1, 2000)]
    assert waits[0] < waits[1] < waits[2]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_RELOAD


def test_a_hundred_clones_that_share_a_template_have_room_where_ten_of_their_full_size_have_not() -> None:
    total, available = 16 * GIB, 3 * GIB
    assert room_for(2 << 20, available=available, total=total) > 800
    assert room_for(GIB // 4, available=available, total=total) < 10
    assert room_for(GIB // 4, available=0, total=total) == 0


def test_no_more_are_restored_than_there_is_memory_for_but_an_empty_pool_tries_one_all_the_same() -> None:
    assert plan(Counts(fresh=1), MARKS, target=4, parallel=8, room=1) == Orders(restore=1)
    assert plan(Counts(fresh=1, restoring=1), MARKS, target=4, parallel=8, room=1) == Orders()
    assert plan(Counts(), MARKS, target=2, parallel=8, room=0).restore == 2
