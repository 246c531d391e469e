"""Snapshots after steps, and where a workflow goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawbox.errors import InvalidRequest
from thawbox.step_policy import Decision, StepKind, Take, after_step, check_names, may_retry, remaining

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


def test_a_key_step_that_succeeds_takes_a_full_snapshot_and_a_routine_one_a_delta() -> None:
    assert after_step(StepKind.KEY, succeeded=True, roll_back=True) == Decision(Take.FULL)
    assert after_step(StepKind.ROUTINE, succeeded=True, roll_back=True) == Decision(Take.DELTA_IF_CHANGED)


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("roll_back", [True, False])
def test_a_failed_step_takes_none_and_goes_back_only_if_wanted(kind: StepKind, roll_back: bool) -> None:
    assert after_step(kind, succeeded=False, roll_back=roll_back) == Decision(Take.NONE, roll_back)


@given(NAMES, st.integers(0, 8))
def test_what_is_completed_and_what_remains_are_the_plan(planned: list[str], count: int) -> None:
    completed = planned[:count]
    assert [*completed, *remaining(planned, completed)] == planned


@given(NAMES, NAMES)
def test_a_plan_that_no_longer_begins_with_what_was_done_is_refused(planned: list[str], completed: list[str]) -> None:
    if planned[: len(completed)] == completed:
        return
    with pytest.raises(InvalidRequest, match="was completed as"):
        remaining(planned, completed)


def test_two_steps_of_one_name_are_refused() -> None:
    check_names(["a", "b"])
    with pytest.raises(InvalidRequest, match="two steps"):
        check_names(["a", "b", "a"])
    with pytest.raises(InvalidRequest):
        check_names(["not a name"])


def test_retries_are_counted_beside_the_first_try() -> None:
    assert [may_retry(tries, retries=2) for tries in (1, 2, 3)] == [True, True, False]
