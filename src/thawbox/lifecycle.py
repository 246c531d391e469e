"""The phases of a sandbox and the only table of moves between them.

Rule 1: nothing but this module decides whether a move is allowed.
Rule 2: a verb that may be asked for in a phase stands in the table; one that stands nowhere is refused by name.
Rule 3: `LOST` is never asked for; it is what observation finds.
"""

from __future__ import annotations

import enum

from thawbox.errors import InvalidTransition
from thawbox.model import Phase


class Verb(enum.Enum):
    """What can happen to a sandbox."""

    STARTED = "started"
    FREEZE = "freeze"
    THAW = "thaw"
    CHECKPOINT = "checkpoint"
    SUSPEND = "checkpoint --stop"
    RESTORE = "restore"
    EXEC = "exec"
    STOP = "stop"
    EXIT = "exit"
    DIED = "died"


_MOVES: dict[tuple[Phase, Verb], Phase] = {
    (Phase.CREATING, Verb.STARTED): Phase.RUNNING,
    (Phase.CREATING, Verb.DIED): Phase.LOST,
    (Phase.CREATING, Verb.EXIT): Phase.EXITED,
    (Phase.RUNNING, Verb.FREEZE): Phase.FROZEN,
    (Phase.RUNNING, Verb.THAW): Phase.RUNNING,
    (Phase.RUNNING, Verb.CHECKPOINT): Phase.RUNNING,
    (Phase.RUNNING, Verb.SUSPEND): Phase.SUSPENDED,
    (Phase.RUNNING, Verb.EXEC): Phase.RUNNING,
    (Phase.RUNNING, Verb.STOP): Phase.EXITED,
    (Phase.RUNNING, Verb.EXIT): Phase.EXITED,
    (Phase.RUNNING, Verb.DIED): Phase.LOST,
    (Phase.FROZEN, Verb.FREEZE): Phase.FROZEN,
    (Phase.FROZEN, Verb.THAW): Phase.RUNNING,
    (Phase.FROZEN, Verb.CHECKPOINT): Phase.FROZEN,
    (Phase.FROZEN, Verb.SUSPEND): Phase.SUSPENDED,
    (Phase.FROZEN, Verb.STOP): Phase.EXITED,
    (Phase.FROZEN, Verb.EXIT): Phase.EXITED,
    (Phase.FROZEN, Verb.DIED): Phase.LOST,
    (Phase.SUSPENDED, Verb.RESTORE): Phase.CREATING,
    (Phase.SUSPENDED, Verb.STOP): Phase.SUSPENDED,
    (Phase.EXITED, Verb.RESTORE): Phase.CREATING,
    (Phase.EXITED, Verb.STOP): Phase.EXITED,
    (Phase.LOST, Verb.RESTORE): Phase.CREATING,
    (Phase.LOST, Verb.STOP): Phase.LOST,
}

ALIVE = frozenset({Phase.CREATING, Phase.RUNNING, Phase.FROZEN})
"""The phases in which the sandbox owns processes."""

_REMEDIES = {
    (Phase.FROZEN, Verb.EXEC): "thaw it first",
    (Phase.RUNNING, Verb.RESTORE): "stop it first, or make a clone of the snapshot",
    (Phase.FROZEN, Verb.RESTORE): "stop it first, or make a clone of the snapshot",
    (Phase.SUSPENDED, Verb.EXEC): "restore it first",
    (Phase.EXITED, Verb.EXEC): "restore it from a snapshot, or run it anew",
    (Phase.LOST, Verb.EXEC): "restore it from a snapshot, or run it anew",
}


def next_phase(phase: Phase, verb: Verb, *, who: str) -> Phase:
    """The phase that `who` is in after `verb`; raises InvalidTransition, with a remedy, where the table has none."""
    try:
        return _MOVES[phase, verb]
    except KeyError:
        raise InvalidTransition(
            f"{who} is {phase.value}: {verb.value} is not possible", remediation=_REMEDIES.get((phase, verb), "")
        ) from None


def allowed(phase: Phase) -> frozenset[Verb]:
    """The verbs that `phase` admits."""
    return frozenset(verb for (at, verb) in _MOVES if at is phase)
