"""Recovering a sandbox that died: what its end was, one attempt to bring it back, and what the journal keeps of both.

Rule 1: `restart_plan` decides; nothing here chooses a snapshot.
Rule 2: an attempt that ends badly leaves nothing running, and its snapshot as it was.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from thawbox.errors import (
    CorruptSnapshot,
    EngineError,
    Incompatible,
    IntegrityError,
    InvalidTransition,
    NotFound,
    SnapshotNotFound,
    StartFailed,
    Unavailable,
    Unsupported,
)
from thawbox.lifecycle import ALIVE, Verb, next_phase
from thawbox.model import Phase, Restart, SandboxId, SnapshotId
from thawbox.restart_plan import Attempt, Death, Made, Outcome, Policy, candidates, policy_of
from thawbox.sandbox.body import read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.ending import STOPPED, take_down
from thawbox.sandbox.health import ask_health
from thawbox.sandbox.journal import Record
from thawbox.sandbox.observe import ending_of, is_alive, observe
from thawbox.sandbox.restoring import restore
from thawbox.sandbox.shells import open_private

AUTOMATIC = {"made-by": "supervisor"}
"""Labels of the snapshots that a supervisor makes, and may remove again."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_SUPERVISED = "supervised"


@dataclass(frozen=True, slots=True)
class Supervised:
    """What the journal keeps of a supervised sandbox; `gave_up` says why nothing is tried any more."""

    policy: Policy
    gave_up: str = ""


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt, and the record of the sandbox if it runs again."""

    attempt: Attempt
    record: Record | None


# What happened


def find_death(context: Context, sandbox: SandboxId, *, noticed_at: float) -> tuple[Record, Death] | None:
    """The end of a sandbox, its remains removed; None if it runs (again). `noticed_at` is seconds since the epoch.

    Waits for a command that works on it. Raises SandboxNotFound, LockTimeout.
    """
    with context.exclusive(sandbox):
        record = context.journal.find(sandbox)
        if record.phase in ALIVE and is_alive(context, record):
            return None
        record = observe(context, record)
    ended = ending_of(context, record)
    was_asked_for = record.phase is Phase.SUSPENDED or record.ended_why == STOPPED
    return record, Death(_time_of_death(context, record, noticed_at), record.ended_why, ended.status, was_asked_for)


def _time_of_death(context: Context, record: Record, noticed_at: float) -> float:
    """When init wrote down the end of its program, or when the death was noticed where it could not.

    The sandbox could have set that time: it never counts as later than the notice, nor as older than the record.
    """
    noticed_at = min(noticed_at, record.ended_at or noticed_at)  # another command may have seen it long ago
    try:
        fd = open_private(context, record, "exit")
    except OSError:
        return noticed_at
    try:
        return min(max(os.fstat(fd).st_mtime, record.created_at), noticed_at)
    finally:
        os.close(fd)


def end_hanging(context: Context, sandbox: SandboxId, *, keeper: int, why: str) -> bool:
    """Kill the life of a sandbox that does not answer; False if that life is over already."""
    with context.exclusive(sandbox):
        record = context.journal.find(sandbox)
        if record.phase not in ALIVE or record.keeper_pid != keeper or not is_alive(context, record):
            return False
        after = next_phase(record.phase, Verb.DIED, who=record.name)
        context.journal.update(take_down(context, record, phase=after, why=why))
        return True


# What there is to recover from


def made_of(context: Context, sandbox: SandboxId, *, automatic: Mapping[str, str] = AUTOMATIC) -> list[Made]:
    """Every readable snapshot of a sandbox, in any order. One that is somebody else's golden image is not its own.

    Those with these labels alone are whoever's asks: he made them by himself.
    """
    found: list[Made] = []
    for stored in context.store.records():
        try:
            body = read_body(stored.manifest.body, snapshot=stored.id)
        except CorruptSnapshot:
            continue
        if body.sandbox == sandbox:
            labels = dict(stored.facts.labels)
            is_automatic = labels == automatic
            is_kept = not is_automatic or stored.facts.pinned or bool(stored.facts.names)
            at = stored.manifest.created_at
            found.append(Made(stored.id, at, stored.manifest.parent, is_automatic, is_kept))
    return found


def present_snapshot(context: Context, record: Record) -> SnapshotId | None:
    """The snapshot that the sandbox last was, if it is one of its own: a clone's first one is its original's."""
    if record.parent_snapshot is None:
        return None
    try:
        manifest = context.store.manifest(record.parent_snapshot)
        owner = read_body(manifest.body, snapshot=record.parent_snapshot).sandbox
    except (NotFound, IntegrityError):
        return None
    return record.parent_snapshot if owner == record.id else None


def usable_snapshots(context: Context, record: Record) -> tuple[SnapshotId, ...]:
    """Newest first, from the one that the sandbox last was."""
    return candidates(made_of(context, record.id), record.parent_snapshot)


# Bringing it back


def attempt_restore(
    context: Context, record: Record, snapshot: SnapshotId, death: Death, policy: Policy, *, noticed_at: float
) -> Attempted:
    """Restore a dead sandbox and wait until it is healthy; what went wrong is in the attempt.

    Raises InvalidTransition when somebody else has brought it back meanwhile.
    """
    begun, made_at = time.perf_counter(), _made_at(context, snapshot)
    restore_ms = 0.0
    alive: Record | None = None
    try:
        alive, times = restore(context, snapshot)
        restore_ms = times.restore_ms
        outcome, detail = _wait_healthy(context, alive, policy)
    except InvalidTransition:
        raise
    except (IntegrityError, Incompatible, Unsupported, SnapshotNotFound) as error:
        outcome, detail = Outcome.REFUSED, error.cause
    except StartFailed as error:
        outcome, detail = Outcome.UNHEALTHY, error.cause
    except EngineError as error:
        outcome, detail = Outcome.FAILED, error.cause
    except (Unavailable, OSError, sqlite3.Error) as error:
        outcome, detail = Outcome.UNAVAILABLE, str(error)
    if outcome is not Outcome.RECOVERED:
        _end_unhealthy(context, record, detail)
        alive = None
    ended_at = context.now()
    attempt = Attempt(
        at=death.at, cause=death.cause, snapshot=snapshot, lost_s=max(death.at - made_at, 0.0),
        detect_ms=(noticed_at - death.at) * 1000,
        restore_ms=restore_ms or (time.perf_counter() - begun) * 1000,
        healthy_ms=(ended_at - death.at) * 1000, ended_at=ended_at, outcome=outcome, detail=detail,
    )  # fmt: skip
    return Attempted(attempt, alive)


def _made_at(context: Context, snapshot: SnapshotId) -> float:
    try:
        return context.store.manifest(snapshot).created_at
    except (NotFound, IntegrityError):
        return context.now()


def _wait_healthy(context: Context, record: Record, policy: Policy) -> tuple[Outcome, str]:
    if policy.health is None:
        return Outcome.RECOVERED, ""
    deadline = time.monotonic() + policy.healthy_within
    pause = _FIRST_PAUSE
    while refusal := ask_health(context, record, policy.health):
        if not is_alive(context, record):
            return Outcome.UNHEALTHY, "it ended before it was healthy"
        if time.monotonic() >= deadline:
            return Outcome.UNHEALTHY, f"it was not healthy within {policy.healthy_within:g} s: {refusal}"
        time.sleep(pause)  # nothing to wait on: a program may become healthy in any way
        pause = min(2 * pause, _LONGEST_PAUSE)
    return Outcome.RECOVERED, ""


def _end_unhealthy(context: Context, before: Record, why: str) -> None:
    """End what the attempt brought to life, if anything: not what somebody else has restored since."""
    record = context.journal.find(before.id)
    if record.generation == before.generation + 1 and record.keeper_pid:
        end_hanging(context, record.id, keeper=record.keeper_pid, why=why)


# What is remembered


def remember_supervised(context: Context, sandbox: SandboxId, supervised: Supervised) -> None:
    """Keep the policy for the supervisor's next life."""
    context.journal.write_entry(_SUPERVISED, sandbox, msgspec.json.encode(supervised))


def forget_supervised(context: Context, sandbox: SandboxId) -> None:
    """Forget the policy, and what was remembered of recoveries."""
    context.journal.remove_entry(_SUPERVISED, sandbox)
    for number in context.journal.entries(_recoveries(sandbox)):
        context.journal.remove_entry(_recoveries(sandbox), number)


def stop_supervising(context: Context, record: Record) -> None:
    """Have nobody watch over a sandbox from now on, also where its spec asks for it."""
    forget_supervised(context, record.id)
    if policy_of(record.spec) is not None:
        remember_supervised(context, record.id, Supervised(Policy(restart=Restart.NO)))


def all_supervised(context: Context) -> dict[SandboxId, Supervised]:
    """Every supervised sandbox of the node, there or removed since."""
    return {
        SandboxId(name): msgspec.json.decode(content, type=Supervised)
        for name, content in context.journal.entries(_SUPERVISED).items()
    }


_REMEMBERED = 100
"""Attempts kept for each sandbox: far more than a crash loop can have."""


def remember_attempt(context: Context, sandbox: SandboxId, attempt: Attempt) -> None:
    kind = _recoveries(sandbox)
    numbers = sorted(context.journal.entries(kind))
    number = int(numbers[-1]) + 1 if numbers else 0
    context.journal.write_entry(kind, f"{number:09}", msgspec.json.encode(attempt))
    for old in numbers[: -_REMEMBERED + 1]:
        context.journal.remove_entry(kind, old)


def attempts_of(context: Context, sandbox: SandboxId) -> list[Attempt]:
    """Every remembered attempt to recover a sandbox, oldest first."""
    entries = context.journal.entries(_recoveries(sandbox))
    return [msgspec.json.decode(entries[number], type=Attempt) for number in sorted(entries)]


def recoveries_of(context: Context, sandbox: SandboxId) -> list[dict[str, object]]:
    """The recoveries of a sandbox as `inspect` shows them: those that brought it back."""
    shown = ("at", "cause", "snapshot", "lost_s", "detect_ms", "restore_ms", "healthy_ms")
    return [
        {name: getattr(attempt, name) for name in shown}
        for attempt in attempts_of(context, sandbox)
        if attempt.outcome is Outcome.RECOVERED
    ]


def _recoveries(sandbox: SandboxId) -> str:
    return f"recovery:{sandbox}"
