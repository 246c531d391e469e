"""What to do about a sandbox that died: which snapshot next, how soon, and when to give up. No I/O, no clock.

Rule 1: an end that was asked for is never answered.
Rule 2: only snapshots of the life that died are tried, newest first; one that failed is not tried again meanwhile.
Rule 3: attempts that follow each other quickly are one crash loop; a loop ends in `GiveUp` after `attempts` of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from thawbox.errors import InvalidRequest
from thawbox.model import Health, Restart, SnapshotId, Spec, check_health


@dataclass(frozen=True, slots=True)
class Policy:
    """How a sandbox is supervised. Every span is seconds.

    `checkpoint_every` 0 means never by itself; with `checkpoint_on_pressure` there is one when the sandbox comes near
    its memory limit, with `checkpoint_on_drain` when whoever watches over it stops. `keep` is how many of the
    supervisor's own snapshots stay. With `spare` the memory of the newest snapshot is held ready, which makes a restore
    fast and costs that memory. A recovery that lived for `settled_after` is no part of a crash loop; in a loop, the
    n-th restart waits `backoff` · 2ⁿ⁻², at most `backoff_most`, and `attempts` are made. `healthy_within` is how long a
    restored sandbox may take to be healthy.
    """

    restart: Restart = Restart.ON_FAILURE
    health: Health | None = None
    checkpoint_every: float = 0.0
    checkpoint_on_pressure: bool = False
    checkpoint_on_drain: bool = False
    keep: int = 3
    spare: bool = False
    attempts: int = 8
    tries_per_snapshot: int = 2
    backoff: float = 0.5
    backoff_most: float = 60.0
    settled_after: float = 30.0
    healthy_within: float = 30.0


def check_policy(policy: Policy) -> Policy:
    """Return `policy` unchanged if it can be followed; raises InvalidRequest, or InvalidSpec for its probe."""
    if policy.health is not None:
        check_health(policy.health)
    least = {
        "keep": 1, "attempts": 1, "tries_per_snapshot": 1, "backoff": 0, "backoff_most": policy.backoff,
        "checkpoint_every": 0, "settled_after": 0, "healthy_within": 0.001,
    }  # fmt: skip
    for name, smallest in least.items():
        if not smallest <= getattr(policy, name) < 1e9:
            raise InvalidRequest(f"the restart policy's {name}={getattr(policy, name)} is not at least {smallest}")
    return policy


def policy_of(spec: Spec) -> Policy | None:
    """What a spec asks a supervisor for; None if nothing."""
    makes_checkpoints = spec.checkpoint_every or spec.checkpoint_on_pressure or spec.checkpoint_on_drain
    if spec.restart is Restart.NO and not makes_checkpoints:
        return None
    return Policy(
        restart=spec.restart, health=spec.health, checkpoint_every=spec.checkpoint_every,
        checkpoint_on_pressure=spec.checkpoint_on_pressure, checkpoint_on_drain=spec.checkpoint_on_drain,
        keep=spec.keep, spare=spec.spare,
    )  # fmt: skip


class Outcome(enum.Enum):
    """How an attempt to recover ended."""

    RECOVERED = "recovered"
    FAILED = "failed"
    """The engine failed: the snapshot may be at fault, or not."""
    UNHEALTHY = "unhealthy"
    """It was restored, and ended or did not become healthy: the snapshot holds the trouble."""
    REFUSED = "refused"
    """Damaged, untrusted, or made for another machine: this node can never restore it."""
    UNAVAILABLE = "unavailable"
    """Not the snapshot's fault: a lock, the disk, a backend."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to recover, as the journal keeps it. Times are seconds since the epoch, spans what they say.

    `lost_s` is the time between the snapshot and the death. `detect_ms`, `restore_ms` and `healthy_ms`: from the death
    until it was noticed, the restore alone, and from the death until the sandbox was healthy.
    """

    at: float
    cause: str
    snapshot: SnapshotId
    lost_s: float
    detect_ms: float
    restore_ms: float
    healthy_ms: float
    ended_at: float
    outcome: Outcome = Outcome.RECOVERED
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a sandbox: `at` seconds since the epoch, `status` as a shell shows it, None when it is not known."""

    at: float
    cause: str
    status: int | None
    was_asked_for: bool = False


@dataclass(frozen=True, slots=True)
class Restore:
    """Restore `snapshot` in `delay` seconds."""

    snapshot: SnapshotId
    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing more is tried until somebody says so."""

    why: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The sandbox has ended as it may."""

    why: str


Order = Restore | GiveUp | Leave


def next_order(policy: Policy, death: Death, candidates: Sequence[SnapshotId], past: Sequence[Attempt]) -> Order:
    """What to do about `death`, given the usable snapshots, newest first, and the attempts so far, oldest first."""
    if death.was_asked_for:
        return Leave(death.cause)
    if policy.restart is Restart.NO or (policy.restart is Restart.ON_FAILURE and death.status == 0):
        return Leave(death.cause)
    loop = crash_loop(policy, death, past)
    if not candidates:
        return GiveUp("there is no snapshot of it")
    if len(loop) >= policy.attempts:
        return GiveUp(f"{len(loop)} attempts in a row did not last {policy.settled_after:g} s")
    left = [snapshot for snapshot in candidates if not _is_spent(policy, snapshot, loop)]
    if not left:
        return GiveUp(
            f"none of its {len(candidates)} snapshots could be brought to life: {loop[-1].detail or 'it died'}"
        )
    return Restore(left[0], _delay(policy, loop))


def crash_loop(policy: Policy, death: Death, past: Sequence[Attempt]) -> list[Attempt]:
    """The newest attempts of which each was followed by the next death before it had lived for `settled_after`.

    Those that failed to answer this very death are always among them.
    """
    loop: list[Attempt] = []
    followed_at = death.at
    for attempt in reversed(past):
        lasted = followed_at - (attempt.ended_at if attempt.outcome is Outcome.RECOVERED else attempt.at)
        is_of_this_death = attempt.at == death.at and attempt.outcome is not Outcome.RECOVERED
        if lasted >= policy.settled_after and not is_of_this_death:
            break
        loop.insert(0, attempt)
        followed_at = attempt.at
    return loop


def _is_spent(policy: Policy, snapshot: SnapshotId, loop: Iterable[Attempt]) -> bool:
    outcomes = [attempt.outcome for attempt in loop if attempt.snapshot == snapshot]
    if Outcome.REFUSED in outcomes or Outcome.UNHEALTHY in outcomes:
        return True
    return len(outcomes) - outcomes.count(Outcome.UNAVAILABLE) >= policy.tries_per_snapshot


def _delay(policy: Policy, loop: Sequence[Attempt]) -> float:
    """Nothing for the first; the one before a bad snapshot is tried at once too: it is no reason to wait."""
    waited_for = sum(1 for one in loop if one.outcome in (Outcome.RECOVERED, Outcome.UNAVAILABLE))
    if not waited_for:
        return 0.0
    return min(policy.backoff_most, policy.backoff * 2.0 ** min(waited_for - 1, 64))


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot of one sandbox. `is_kept`: a user named, pinned or labelled it, or something else needs it."""

    id: SnapshotId
    at: float
    parent: SnapshotId | None = None
    is_automatic: bool = False
    is_kept: bool = False


def candidates(made: Iterable[Made], present: SnapshotId | None) -> tuple[SnapshotId, ...]:
    """The snapshots to recover from, newest first, given the one that the sandbox last was (`parent_snapshot`).

    What was made after that one belongs to a life that somebody went back from.
    """
    ordered = sorted(made, key=lambda one: (one.at, one.id), reverse=True)
    ids = [one.id for one in ordered]
    return tuple(ids[ids.index(present) :] if present is not None and present in ids else ids)


def outdated(made: Iterable[Made], policy: Policy, present: SnapshotId | None) -> tuple[SnapshotId, ...]:
    """The supervisor's own snapshots that may go, children first: beyond `keep`, and nothing that stays needs them."""
    ordered = sorted(made, key=lambda one: (one.at, one.id), reverse=True)
    automatic = [one.id for one in ordered if one.is_automatic]
    going = set(automatic[policy.keep :])
    parents = {one.id: one.parent for one in ordered}
    for one in ordered:
        if one.id not in going or one.is_kept or one.id == present:
            going.discard(one.id)
            ancestor = parents.get(one.id)
            while ancestor is not None:
                going.discard(ancestor)
                ancestor = parents.get(ancestor)
    return tuple(one.id for one in ordered if one.id in going)
