"""The first good answer counts, and nobody waits for the others."""

from __future__ import annotations

import threading

import pytest

from thawbox.store.hedging import answered_within, first_good


def good(answer: str) -> bool:
    return answer.startswith("good")


@pytest.mark.parametrize("patience", [None, 600.0])
def test_the_next_is_asked_as_soon_as_one_fails_and_what_failed_is_told(patience: float | None) -> None:
    asked: list[int] = []

    def ask(number: int, answer: str) -> str:
        asked.append(number)
        return answer

    asks = [lambda: ask(0, "bad 0"), lambda: ask(1, "good 1"), lambda: ask(2, "good 2")]
    assert first_good(asks, is_good=good, patience=patience, is_late=pytest.fail) == ("good 1", ["bad 0"])
    assert asked == [0, 1]
    none = [lambda: "bad 0", lambda: "bad 1"]
    assert first_good(none, is_good=good, patience=patience, is_late=pytest.fail) == (None, ["bad 0", "bad 1"])


def test_one_that_hangs_is_told_of_and_the_next_serves() -> None:
    never, late = threading.Event(), list[int]()

    def hang() -> str:
        never.wait(60)
        return "good, too late"

    found, bad = first_good([hang, lambda: "good"], is_good=good, patience=0.01, is_late=late.append)
    assert (found, bad, late) == ("good", [], [0])
    never.set()


def test_a_slow_answer_still_counts_when_the_others_fail() -> None:
    other_failed = threading.Event()

    def slow() -> str:
        other_failed.wait(60)
        return "good, slowly"

    def fail() -> str:
        other_failed.set()
        return "bad"

    assert first_good([slow, fail], is_good=good, patience=0.01, is_late=lambda _: None) == ("good, slowly", ["bad"])


def test_what_is_raised_is_raised() -> None:
    def broken() -> str:
        raise ZeroDivisionError

    for patience in (None, 600.0):
        with pytest.raises(ZeroDivisionError):
            first_good([broken, lambda: "good"], is_good=good, patience=patience, is_late=lambda _: None)


def test_what_does_not_answer_in_time_has_a_substitute() -> None:
    never = threading.Event()
    assert answered_within(lambda: "yes", seconds=60, otherwise="none") == "yes"
    assert answered_within(lambda: str(never.wait(60)), seconds=0.01, otherwise="none") == "none"
    never.set()
