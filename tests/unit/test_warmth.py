"""The books of what is held ready: nobody waits for what another holds, and what is past is forgotten."""

from __future__ import annotations

import sys
import threading

import pytest

from thawbox.model import SnapshotId
from thawbox.pool_plan import LONGEST_RELOAD, SOONEST_RELOAD
from thawbox.sandbox.warmth import TRY_AGAIN, Warmth

ONE, OTHER = SnapshotId("1" * 64), SnapshotId("2" * 64)
MINUTE = 20.0


def waits(thread: threading.Thread) -> bool:
    """Whether a thread waits for a condition, or for another's end."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    return frame is not None and frame.f_code.co_name in {"wait", "join", "_wait_for_tstate_lock"}


def test_whoever_gives_up_the_last_does_not_wait_for_what_another_holds_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thawbox.sandbox.warmth.LOOK_AGAIN", 0.0)
    warmth, looks, goes_on = Warmth(), threading.Event(), threading.Event()

    def look() -> None:
        looks.set()
        assert goes_on.wait(MINUTE)

    warmth.want(ONE, "a", now=0.0)
    warmth.start(look)
    assert looks.wait(MINUTE)  # it looks, which may take as long as loading takes
    assert warmth.let_go(ONE, "a")
    resting = threading.Thread(target=warmth.rest, daemon=True)
    resting.start()
    while not waits(resting):
        pass
    warmth.want(OTHER, "b", now=0.0)
    warmth.start(look)
    goes_on.set()
    resting.join(MINUTE)
    assert not resting.is_alive()
    assert warmth.wanted() == (OTHER,)
    warmth.close()
    assert not [one for one in threading.enumerate() if one.name == "thawbox-warmth"]


def test_a_look_that_fails_is_told_and_the_next_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thawbox.sandbox.warmth.LOOK_AGAIN", 0.0)
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda defect: told.append(defect.exc_type))
    warmth, looks = Warmth(), threading.Semaphore(0)

    def look() -> None:
        looks.release()
        raise ZeroDivisionError

    warmth.want(ONE, "a", now=0.0)
    warmth.start(look)
    for _ in range(3):
        assert looks.acquire(timeout=MINUTE)
    warmth.close()
    assert set(told) == {ZeroDivisionError}


def test_snapshots_that_nobody_asks_for_any_more_are_forgotten() -> None:
    warmth = Warmth()
    snapshots = [SnapshotId(f"{number:064x}") for number in range(1000)]
    for now, snapshot in enumerate(snapshots):
        warmth.asked(snapshot, now=now)
        warmth.refused(snapshot, now=now)
    assert warmth.remembered <= 2 * TRY_AGAIN
    assert len(warmth.asked(snapshots[-1], now=1000)) == 2
    assert not warmth.may_try(snapshots[-1], now=1000)
    assert warmth.may_try(snapshots[-1], now=1000 + TRY_AGAIN)


def test_a_server_that_dies_again_and_again_is_loaded_anew_ever_later_and_one_that_lived_at_once() -> None:
    warmth, now, waits = Warmth(), 0.0, list[float]()
    warmth.want(ONE, "a", now=now)
    for _ in range(4):
        warmth.loaded(ONE, resident=1, now=now)
        warmth.died(ONE, now=now)
        began = now
        while not warmth.due(now=now):
            now += SOONEST_RELOAD / 2
        waits.append(now - began)
    assert waits[0] == 0 < waits[1] < waits[2] < waits[3] <= LONGEST_RELOAD
    warmth.loaded(ONE, resident=1, now=now)
    warmth.died(ONE, now=now + SOONEST_RELOAD + 1)
    assert warmth.due(now=now + SOONEST_RELOAD + 1) == (ONE,)


def test_what_is_let_go_while_it_is_loaded_is_not_held_and_what_dies_unasked_is_forgotten() -> None:
    warmth = Warmth()
    warmth.want(ONE, "a", now=0.0)
    assert warmth.let_go(ONE, "a")
    assert not warmth.loaded(ONE, resident=1, now=1.0)
    assert warmth.loaded(OTHER, resident=1, now=1.0, by_demand=True)
    warmth.died(OTHER, now=2.0)
    assert not warmth.wanted()


def test_what_two_want_is_loaded_by_one_and_memory_is_promised_once() -> None:
    warmth, order = Warmth(), list[str]()

    def load_the_same() -> None:
        with warmth.loading(ONE, resident=5) as promised:
            order.append(f"second, beside {promised}")

    second = threading.Thread(target=load_the_same, daemon=True)
    with warmth.loading(ONE, resident=5) as before:
        with warmth.loading(OTHER, resident=7) as beside:
            assert (before, beside) == (0, 5)
        second.start()
        while not waits(second):
            pass
        order.append("first")
    second.join(MINUTE)
    assert order == ["first", "second, beside 0"]
