"""What a supervisor's threads do for one sandbox: recover it, ask how it is, take its checkpoint. They own no state.

Every job ends with a value that says what is true now; only what nobody foresaw is raised.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from thawbox.errors import InvalidTransition, LockTimeout, SandboxNotFound, ThawboxError
from thawbox.lifecycle import ALIVE
from thawbox.model import Health, Phase, SandboxId, SnapshotId
from thawbox.restart_plan import Attempt, Death, GiveUp, Leave, Policy, crash_loop, next_order, outdated
from thawbox.sandbox import Context, Record, Sandbox
from thawbox.sandbox.health import ask_health
from thawbox.sandbox.observe import is_alive
from thawbox.sandbox.recovering import (
    AUTOMATIC,
    attempt_restore,
    attempts_of,
    end_hanging,
    find_death,
    forget_supervised,
    made_of,
    present_snapshot,
    remember_attempt,
    usable_snapshots,
)
from thawbox.sandbox.warming import hold, release

_BUSY_SECONDS = 1.0
"""Until a recovery is tried again that found the sandbox locked by a long command."""
DISK_SECONDS = 10.0
"""The same, when the disk or the journal failed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a supervisor saw or did, for logs: `what` is dotted, `details` are its fields.

    `at` is seconds since the epoch.
    """

    at: float
    sandbox: SandboxId
    name: str
    what: str
    details: Mapping[str, object] = field(default_factory=dict[str, object])


Tell = Callable[[Event], None]
"""Hears of every event, in whatever thread it happens; must return soon and not raise."""


Allow = Callable[[SandboxId], None]
"""Raises a ThawboxError where no further snapshot of the sandbox may be made."""


def anything(_: SandboxId) -> None:
    """Nobody's snapshots are counted."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is to be recovered. `noticed_at` is seconds since the epoch.

    `hanging` is the keeper's pid and why that life is to be ended first. `has_waited`: the plan's delay is over.
    """

    sandbox: SandboxId
    policy: Policy
    noticed_at: float
    hanging: tuple[int, str] | None = None
    has_waited: bool = False


@dataclass(frozen=True, slots=True)
class Alive:
    """The sandbox runs: brought back by us, or by somebody else."""

    record: Record


@dataclass(frozen=True, slots=True)
class Ended:
    """The sandbox has ended as it may."""

    why: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    why: str


@dataclass(frozen=True, slots=True)
class Later:
    """To be gone on with in `seconds`; `is_planned` when the plan wished to wait."""

    seconds: float
    is_planned: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The sandbox was removed."""


Recovered = Alive | Ended | GaveUp | Later | Gone


def recover(context: Context, wanted: Recovery, tell: Tell) -> Recovered:
    """Bring a dead or hanging sandbox back, as the plan says."""
    try:
        if wanted.hanging is not None:
            keeper, why = wanted.hanging
            end_hanging(context, wanted.sandbox, keeper=keeper, why=why)
        found = find_death(context, wanted.sandbox, noticed_at=wanted.noticed_at)
        if found is None:
            return Alive(context.journal.find(wanted.sandbox))
        return _carry_out(context, wanted, *found, tell)
    except SandboxNotFound:
        return Gone()
    except (InvalidTransition, LockTimeout):
        return Later(_BUSY_SECONDS, is_planned=False)  # somebody else works on it: what he leaves is looked at then
    except (OSError, sqlite3.Error) as error:  # our own disk: nothing can be decided without the journal
        tell(Event(context.now(), wanted.sandbox, "", "recover.failed", {"why": str(error)}))
        return Later(DISK_SECONDS, is_planned=False)


def _carry_out(context: Context, wanted: Recovery, record: Record, death: Death, tell: Tell) -> Recovered:
    past = attempts_of(context, record.id)
    has_waited = wanted.has_waited
    while True:
        order = next_order(wanted.policy, death, _snapshots(context, wanted.policy, record, death), past)
        if isinstance(order, Leave):
            return Ended(order.why)
        if isinstance(order, GiveUp):
            return GaveUp(f"{death.cause}; {order.why}")
        if order.delay and not has_waited:
            return Later(order.delay, is_planned=True)
        has_waited = False
        tell(_event(context, record, "recover.started", cause=death.cause, snapshot=order.snapshot))
        with context.telemetry.step("recovery", sandbox=record.id, snapshot=order.snapshot) as step:
            done = attempt_restore(context, record, order.snapshot, death, wanted.policy, noticed_at=wanted.noticed_at)
            step.note(outcome=done.attempt.outcome.value, **_times(done.attempt))
        remember_attempt(context, record.id, done.attempt)
        past.append(done.attempt)
        if done.record is not None:
            tell(_event(context, record, "recover.complete", **_figures(done.attempt)))
            return Alive(done.record)
        tell(_event(
            context, record, "recover.failed", snapshot=order.snapshot, outcome=done.attempt.outcome.value,
            why=done.attempt.detail,
        ))  # fmt: skip
        record = context.journal.find(record.id)


def _snapshots(context: Context, policy: Policy, record: Record, death: Death) -> tuple[SnapshotId, ...]:
    """What the plan may choose from; listing the store is left out where the newest one will do."""
    present = present_snapshot(context, record)
    if present is not None and not crash_loop(policy, death, attempts_of(context, record.id)):
        return (present,)
    return usable_snapshots(context, record)


def _figures(attempt: Attempt) -> dict[str, object]:
    return {"cause": attempt.cause, "snapshot": attempt.snapshot, **_times(attempt)}


def _times(attempt: Attempt) -> dict[str, object]:
    return {name: getattr(attempt, name) for name in ("lost_s", "detect_ms", "restore_ms", "healthy_ms")}


def _event(context: Context, record: Record, what: str, **details: object) -> Event:
    return Event(context.now(), record.id, record.name, what, details)


@dataclass(frozen=True, slots=True)
class Asked:
    """How a sandbox is: `refusal` is empty if it is well; None where it could not be asked (frozen, or over)."""

    refusal: str | None


def ask(context: Context, sandbox: SandboxId, health: Health) -> Asked:
    """Ask the health probe once."""
    record = _able_to_answer(context, sandbox)
    if record is None:
        return Asked(None)
    refusal = ask_health(context, record, health)
    if refusal and _able_to_answer(context, sandbox) is None:
        return Asked(None)  # it was frozen, or ended, while it was asked
    return Asked(refusal)


def _able_to_answer(context: Context, sandbox: SandboxId) -> Record | None:
    try:
        record = context.journal.find(sandbox)
    except (SandboxNotFound, OSError):
        return None
    return record if record.phase is Phase.RUNNING and is_alive(context, record) else None


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What became of a checkpoint: the snapshot that there is now, or why there is none."""

    snapshot: SnapshotId | None
    failure: str = ""


def checkpoint(
    context: Context, sandbox: SandboxId, policy: Policy, tell: Tell, *, why: str, allow: Allow = anything
) -> Checkpointed:  # fmt: skip
    """Take a snapshot if anything changed, and remove those of ours that are out of date."""
    try:
        record = context.journal.find(sandbox)
    except (SandboxNotFound, OSError) as error:
        return Checkpointed(None, str(error))
    if record.phase not in ALIVE:
        return Checkpointed(None, f"{record.name} is {record.phase.value}")
    try:
        allow(sandbox)
        made = Sandbox(context, record).checkpoint(skip_if_clean=True)
        was_skipped = made.report is not None and made.report.skipped
        for key, value in () if was_skipped else AUTOMATIC.items():  # not with the wish: one that is there is not ours
            context.store.label(made.id, key, value)
    except (ThawboxError, OSError, sqlite3.Error) as error:
        tell(_event(context, record, "checkpoint.failed", why=why, error=str(error)))
        return Checkpointed(None, str(error))
    tell(_event(context, record, "checkpoint.complete", why=why, snapshot=made.id, skipped=was_skipped))
    if not was_skipped:
        _remove_outdated(context, sandbox, policy)
    return Checkpointed(made.id)


def first_checkpoint(
    context: Context, sandbox: SandboxId, policy: Policy, tell: Tell, *, allow: Allow = anything
) -> Checkpointed:  # fmt: skip
    """Make sure that there is something to recover from."""
    try:
        there = usable_snapshots(context, context.journal.find(sandbox))
    except (SandboxNotFound, OSError) as error:
        return Checkpointed(None, str(error))
    return Checkpointed(there[0]) if there else checkpoint(
        context, sandbox, policy, tell, why="first", allow=allow
    )  # fmt: skip


def _remove_outdated(context: Context, sandbox: SandboxId, policy: Policy) -> None:
    with contextlib.suppress(ThawboxError, OSError):
        present = context.journal.find(sandbox).parent_snapshot
        _remove(context, outdated(made_of(context, sandbox), policy, present))


def clear(context: Context, sandbox: SandboxId, policy: Policy) -> None:
    """Remove what was kept for a sandbox that was removed: our snapshots of it, and what was remembered of it."""
    with contextlib.suppress(ThawboxError, OSError):  # what is not forgotten is cleared another time
        _remove(context, outdated(made_of(context, sandbox), replace(policy, keep=0), None))
        forget_supervised(context, sandbox)


def _remove(context: Context, snapshots: Iterable[SnapshotId]) -> None:
    for snapshot in snapshots:
        # somebody holds it, reads it, or has made something of it: then it stays for the next time
        with contextlib.suppress(ThawboxError, OSError):
            context.store.remove(snapshot)


@dataclass(frozen=True, slots=True)
class Spare:
    """The newest snapshot, and whether its memory was held ready when that was asked for; it may come and go later."""

    snapshot: SnapshotId | None = None
    is_held: bool = False


def renew_spare(context: Context, sandbox: SandboxId, last: Spare) -> Spare:
    """Hold the newest snapshot's memory ready instead of that of `last`.

    Nothing is held where the engine, the memory or the snapshot does not allow it: then a recovery takes its ordinary
    time.
    """
    try:
        newest = present_snapshot(context, context.journal.find(sandbox))
    except (ThawboxError, OSError, sqlite3.Error):
        return last
    if newest == last.snapshot:
        return last
    drop_spare(context, sandbox, last)
    try:
        return Spare(newest, newest is not None and hold(context, newest, holder=_spare_of(sandbox), shells=0))
    except (ThawboxError, OSError):
        return Spare(newest)


def drop_spare(context: Context, sandbox: SandboxId, last: Spare) -> None:
    """Give back the memory of a sandbox's spare."""
    if last.snapshot is not None:
        release(context, last.snapshot, holder=_spare_of(sandbox))


def _spare_of(sandbox: SandboxId) -> str:
    return f"spare:{sandbox}"
