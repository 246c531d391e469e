"""Steps: who hears of them, in which order, what they carry; and that nobody pays for what nobody hears."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from thawbox.errors import DumpFailed
from thawbox.telemetry import Step, Telemetry, carried, code_of, current_step


class Heard:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[Step] = []

    def __call__(self, step: Step) -> Callable[[], None]:
        self.begun.append(step.name)
        return lambda: self.ended.append(step)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_step_is_told_when_it_begins_and_when_it_has_ended(heard: Heard) -> None:
    telemetry = Telemetry(heard)
    with telemetry.step("checkpoint", sandbox="sb-1") as step:
        assert heard.begun == ["checkpoint"]
        assert not heard.ended
        assert current_step() is step
        step.note(bytes=7)
    assert current_step() is None
    (told,) = heard.ended
    assert told.fields == {"sandbox": "sb-1", "bytes": 7}
    assert told.seconds > 0
    assert told.failure == ""


def test_steps_know_what_they_are_part_of_also_in_another_thread(heard: Heard) -> None:
    telemetry = Telemetry(heard)

    def work() -> None:
        with telemetry.step("clone"):
            telemetry.passed("criu.forking", seconds=0.25)

    with telemetry.step("fork"):
        thread = threading.Thread(target=carried(work))
        thread.start()
        thread.join()
    phase, clone, fork = heard.ended
    assert (phase.name, clone.name, fork.name) == ("criu.forking", "clone", "fork")
    assert phase.parent is clone
    assert clone.parent is fork
    assert fork.parent is None
    assert phase.seconds == 0.25
    assert phase.began < clone.began + clone.seconds


def test_what_a_step_raised_is_told_by_its_code_and_goes_on(heard: Heard) -> None:
    with pytest.raises(DumpFailed), Telemetry(heard).step("dump"):
        raise DumpFailed("no")
    assert heard.ended[0].failure == "engine.dump"
    assert current_step() is None


def test_errors_have_the_codes_that_the_command_line_tells() -> None:
    assert code_of(DumpFailed("x")) == "engine.dump"
    assert code_of(FileNotFoundError(2, "x")) == "host.enoent"
    assert code_of(ValueError()) == "defect"
    assert code_of(KeyboardInterrupt()) == "interrupted"


def test_facts_take_no_time(heard: Heard) -> None:
    Telemetry(heard).happened("snapshot.damaged", snapshot="0123")
    assert heard.ended[0].is_fact
    assert heard.ended[0].seconds == 0


def test_a_step_without_observers_is_one_and_the_same_and_keeps_nothing() -> None:
    telemetry = Telemetry()
    with telemetry.step("dump", sandbox="x") as first, telemetry.step("restore") as second:
        first.note(a=1)
        assert first is second
        assert current_step() is None
    assert first.fields == {}
