"""What becomes of the sandbox after a step of a workflow, and where a workflow goes on. No I/O, no clock.

| step | succeeded | failed |
|---|---|---|
| key | full snapshot | none; back to the last good step if wanted |
| routine | delta, skipped when nothing changed | the same |
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from thawbox.errors import InvalidRequest
from thawbox.model import checked_name


class StepKind(enum.Enum):
    """How much a step's result is worth: a key step gets a snapshot of its own, that needs no other."""

    KEY = "key"
    ROUTINE = "routine"


class Take(enum.Enum):
    """What snapshot to take."""

    FULL = "full"
    DELTA_IF_CHANGED = "delta"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Decision:
    take: Take
    roll_back: bool = False


def after_step(kind: StepKind, *, succeeded: bool, roll_back: bool) -> Decision:
    """What to do after a step; `roll_back` is what the step wishes for the case that it fails."""
    if not succeeded:
        return Decision(Take.NONE, roll_back)
    return Decision(Take.FULL if kind is StepKind.KEY else Take.DELTA_IF_CHANGED)


def check_names(steps: Sequence[str]) -> None:
    """Raise InvalidRequest or InvalidSpec unless every step has a legal name of its own."""
    seen: set[str] = set()
    for name in steps:
        checked_name(name, "step name")
        if name in seen:
            raise InvalidRequest(f"two steps are called {name!r}", remediation="give each step a name of its own")
        seen.add(name)


def remaining(planned: Sequence[str], completed: Sequence[str]) -> tuple[str, ...]:
    """The steps still to be done, in order.

    Raises InvalidRequest when `completed` is not how the plan begins: the workflow was changed, and what its completed
    steps did cannot be told.
    """
    for number, name in enumerate(completed):
        if number >= len(planned) or planned[number] != name:
            raise InvalidRequest(
                f"step {number + 1} was completed as {name!r}, but the workflow now has "
                + (f"{planned[number]!r} there" if number < len(planned) else "no such step"),
                remediation="start the workflow anew, or give it back the steps that it had",
            )
    return tuple(planned[len(completed) :])


def may_retry(tries: int, *, retries: int) -> bool:
    """Whether a step that has failed `tries` times is tried again: `retries` times at most."""
    return tries <= retries
