"""Which snapshot next, how soon, and when to give up."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawbox.errors import InvalidRequest, InvalidSpec
from thawbox.model import Health, Restart, SnapshotId, Spec
from thawbox.restart_plan import (
    Attempt,
    Death,
    GiveUp,
    Leave,
    Made,
    Outcome,
    Policy,
    Restore,
    candidates,
    check_policy,
    crash_loop,
    next_order,
    outdated,
    policy_of,
)

NEW, OLD, OLDEST = (SnapshotId(letter * 64) for letter in "cba")
ALL = (NEW, OLD, OLDEST)
POLICY = Policy()
KILLED = Death(1000.0, "killed", 137)


def attempt(
    snapshot: SnapshotId = NEW, outcome: Outcome = Outcome.RECOVERED, *, at: float = 999.0, ended_at: float = 999.5
) -> Attempt:
    return Attempt(at, "killed", snapshot, 1.0, 1.0, 50.0, 60.0, ended_at, outcome)


def test_the_first_death_is_answered_at_once_with_the_newest_snapshot() -> None:
    assert next_order(POLICY, KILLED, ALL, ()) == Restore(NEW, 0)


def test_an_end_that_was_asked_for_is_left_under_every_policy() -> None:
    asked = dataclasses.replace(KILLED, was_asked_for=True)
    for restart in Restart:
        assert isinstance(next_order(Policy(restart), asked, ALL, ()), Leave)


def test_a_good_end_is_answered_only_by_always() -> None:
    good = Death(1000.0, "its program exited with 0", 0)
    answered = {restart for restart in Restart if isinstance(next_order(Policy(restart), good, ALL, ()), Restore)}
    assert answered == {Restart.ALWAYS}


def test_an_end_of_unknown_status_is_a_failure() -> None:
    lost = Death(1000.0, "killed from outside", None)
    assert isinstance(next_order(Policy(Restart.ON_FAILURE), lost, ALL, ()), Restore)
    assert isinstance(next_order(Policy(Restart.NO), lost, ALL, ()), Leave)


def test_without_a_snapshot_there_is_nothing_to_recover_from() -> None:
    assert next_order(POLICY, KILLED, (), ()) == GiveUp("there is no snapshot of it")


@pytest.mark.parametrize("outcome", [Outcome.UNHEALTHY, Outcome.REFUSED])
def test_a_snapshot_that_is_no_good_gives_way_to_the_one_before_it_at_once(outcome: Outcome) -> None:
    assert next_order(POLICY, KILLED, ALL, [attempt(NEW, outcome, at=1000.0)]) == Restore(OLD, 0)


def test_after_a_failure_of_the_engine_the_same_snapshot_is_tried_once_more() -> None:
    once = [attempt(NEW, Outcome.FAILED, at=1000.0)]
    assert next_order(POLICY, KILLED, ALL, once) == Restore(NEW, 0)
    assert next_order(POLICY, KILLED, ALL, once * 2) == Restore(OLD, 0)


def test_what_is_not_the_snapshots_fault_is_waited_for_with_the_same_snapshot() -> None:
    past = [attempt(NEW, Outcome.UNAVAILABLE, at=1000.0)] * 3
    assert next_order(POLICY, KILLED, ALL, past) == Restore(NEW, 4 * POLICY.backoff)


def test_a_snapshot_that_dies_again_and_again_gives_way_to_the_one_before_it() -> None:
    assert next_order(POLICY, KILLED, ALL, [attempt()]) == Restore(NEW, POLICY.backoff)
    twice = [attempt(at=998.0, ended_at=998.5), attempt()]
    assert next_order(POLICY, KILLED, ALL, twice) == Restore(OLD, 2 * POLICY.backoff)


def test_a_recovery_that_lasted_ends_the_loop() -> None:
    long_ago = attempt(ended_at=1000.0 - POLICY.settled_after)
    assert crash_loop(POLICY, KILLED, [long_ago]) == []
    assert next_order(POLICY, KILLED, ALL, [long_ago] * 20) == Restore(NEW, 0)


def test_when_every_snapshot_failed_it_says_so() -> None:
    past = [attempt(one, Outcome.UNHEALTHY, at=1000.0) for one in ALL]
    order = next_order(POLICY, KILLED, ALL, past)
    assert isinstance(order, GiveUp)
    assert "none of its 3 snapshots" in order.why


OUTCOMES = st.sampled_from(list(Outcome))
POLICIES = st.builds(
    Policy, st.just(Restart.ALWAYS), attempts=st.integers(1, 6), tries_per_snapshot=st.integers(1, 3),
    backoff=st.floats(0, 10), backoff_most=st.floats(10, 20), settled_after=st.floats(0, 60),
)  # fmt: skip


@given(POLICIES, st.lists(OUTCOMES, min_size=10, max_size=10), st.integers(0, 4))
def test_a_loop_of_any_shape_ends_and_waits_ever_longer(policy: Policy, outcomes: list[Outcome], count: int) -> None:
    available = tuple(SnapshotId(str(number) * 64) for number in range(count))
    past: list[Attempt] = []
    delays: list[float] = []
    for outcome in outcomes:
        order = next_order(policy, KILLED, available, past)
        if isinstance(order, GiveUp):
            break
        assert isinstance(order, Restore)
        assert order.snapshot in available
        assert not [one for one in past if one.snapshot == order.snapshot and one.outcome is Outcome.REFUSED]
        # A newer snapshot is passed over only for its own failures.
        for newer in available[: available.index(order.snapshot)]:
            assert [one for one in past if one.snapshot == newer and one.outcome is not Outcome.UNAVAILABLE]
        assert 0 <= order.delay <= policy.backoff_most
        delays.append(order.delay)
        past.append(attempt(order.snapshot, outcome, at=KILLED.at, ended_at=KILLED.at + 0.1))
    else:
        pytest.fail("it never gave up")
    assert len(past) <= policy.attempts
    assert delays == sorted(delays)


@given(POLICIES, st.lists(OUTCOMES, max_size=8))
def test_the_same_question_has_the_same_answer(policy: Policy, outcomes: list[Outcome]) -> None:
    past = [attempt(outcome=outcome) for outcome in outcomes]
    assert next_order(policy, KILLED, ALL, past) == next_order(policy, KILLED, ALL, past)


def test_what_was_made_after_the_snapshot_that_was_gone_back_to_is_not_tried() -> None:
    made = [Made(OLDEST, 1.0), Made(NEW, 3.0), Made(OLD, 2.0)]
    assert candidates(made, None) == ALL
    assert candidates(made, NEW) == ALL
    assert candidates(made, OLD) == (OLD, OLDEST)
    assert candidates(made, SnapshotId("f" * 64)) == ALL


def test_only_the_supervisors_own_snapshots_go_and_never_what_another_needs() -> None:
    ids = [SnapshotId(f"{number:064x}") for number in range(6)]
    chained = [
        Made(one, float(number), parent=ids[number - 1] if number else None, is_automatic=True)
        for number, one in enumerate(ids)
    ]
    assert outdated(chained, Policy(keep=2), ids[5]) == ()
    fresh_chain = [dataclasses.replace(one, parent=None) if one.id == ids[4] else one for one in chained]
    assert outdated(fresh_chain, Policy(keep=2), ids[5]) == (ids[3], ids[2], ids[1], ids[0])
    named = [dataclasses.replace(one, is_kept=one.id == ids[2]) for one in fresh_chain]
    assert outdated(named, Policy(keep=2), ids[5]) == (ids[3],)
    by_hand = [dataclasses.replace(one, is_automatic=one.id != ids[2]) for one in fresh_chain]
    assert outdated(by_hand, Policy(keep=2), ids[5]) == (ids[3],)


@given(st.lists(st.tuples(st.integers(-1, 7), st.booleans(), st.booleans()), min_size=1, max_size=8), st.integers(1, 4))
def test_what_goes_is_never_needed_by_what_stays(rows: list[tuple[int, bool, bool]], keep: int) -> None:
    ids = [SnapshotId(f"{number:064x}") for number in range(len(rows))]
    made = [
        Made(ids[number], float(number), ids[parent] if 0 <= parent < number else None, automatic, kept)
        for number, (parent, automatic, kept) in enumerate(rows)
    ]
    going = outdated(made, Policy(keep=keep), ids[-1])
    stay = [one for one in made if one.id not in going]
    assert not {one.parent for one in stay} & set(going)
    assert all(one.is_automatic and not one.is_kept for one in made if one.id in going)
    assert len([one for one in stay if one.is_automatic]) >= min(keep, len([one for one in made if one.is_automatic]))
    positions = {one: number for number, one in enumerate(going)}
    assert all(positions[one.id] < positions[one.parent] for one in made if one.id in going and one.parent in positions)


def test_a_spec_that_asks_for_nothing_has_no_policy() -> None:
    assert policy_of(Spec(("true",))) is None
    health = Health("tcp:80")
    assert policy_of(Spec(("true",), restart=Restart.ALWAYS, health=health)) == Policy(Restart.ALWAYS, health)
    assert policy_of(Spec(("true",), checkpoint_every=5)) == Policy(Restart.NO, checkpoint_every=5)
    assert policy_of(Spec(("true",), checkpoint_on_drain=True)) == Policy(Restart.NO, checkpoint_on_drain=True)
    whole = Spec(("true",), restart=Restart.ALWAYS, checkpoint_on_pressure=True, keep=5, spare=True)
    assert policy_of(whole) == Policy(Restart.ALWAYS, checkpoint_on_pressure=True, keep=5, spare=True)


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 0}, {"attempts": 0}, {"backoff": -1}, {"backoff": 2, "backoff_most": 1}, {"checkpoint_every": -1},
     {"checkpoint_every": float("nan")}, {"healthy_within": float("inf")}],
)  # fmt: skip
def test_a_policy_that_cannot_be_followed_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        check_policy(Policy(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "health", [Health("log:x"), Health("tcp:0"), Health("tcp:80", interval=0), Health("tcp:80", threshold=0)]
)
def test_a_probe_that_cannot_be_asked_is_refused(health: Health) -> None:
    with pytest.raises(InvalidSpec):
        check_policy(Policy(health=health))
