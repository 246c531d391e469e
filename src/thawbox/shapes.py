"""The shapes of what the node shows: what `views` builds, routes answer and `/openapi.json` describes.

Rule 1: a shape is a TypedDict, or the dataclass that an answer is; type checkers hold `views` and the routes to it, so
nothing is looked through again when it is sent.
Rule 2: what a view spreads into its object from dataclasses stands in `SPREAD`, not here once more.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, TypedDict

import msgspec

from thawbox.host.cgroup import Stats
from thawbox.host.memory_use import MemoryUse
from thawbox.host.preflight import Finding
from thawbox.model import Phase, SnapshotKind, Spec
from thawbox.pool import PoolSpec
from thawbox.pool.ledger import Statistics
from thawbox.restart_plan import Policy
from thawbox.store import Compat
from thawbox.store.manifest import FileEntry


def words(kind: type[enum.Enum]) -> msgspec.Meta:
    """For `Annotated[str, …]`: one of the values of this enum."""
    return msgspec.Meta(extra_json_schema={"enum": [one.value for one in kind]})


Moment = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339 in UTC."""
State = Annotated[str, words(Phase)]
Kind = Annotated[str, words(SnapshotKind)]

# Sandboxes


class Named(TypedDict):
    """A sandbox, by id and name."""

    id: str
    name: str


class SandboxSeen(TypedDict):
    """What is told of a sandbox wherever it is shown."""

    id: str
    name: str
    state: State
    created_at: Moment | None
    address: str | None
    parent_snapshot: str | None


class SandboxBrief(SandboxSeen):
    """A sandbox as `ps` lists it."""

    command: list[str]
    labels: dict[str, str]


class Rootfs(TypedDict):
    kind: str
    digest: str


class Recovery(TypedDict):
    """One that brought a sandbox back. Spans as `restart_plan.Attempt` tells them."""

    at: Moment | None
    cause: str
    snapshot: str
    lost_s: float
    detect_ms: float
    restore_ms: float
    healthy_ms: float


class SandboxKnown(SandboxSeen):
    """A sandbox with its spec and all that is known of it now; `pid` is its init's on the host."""

    pid: int | None
    cgroup: str | None
    hostname: str
    machine_id: str
    rootfs: Rootfs
    layers: dict[str, list[str]]
    ended_at: Moment | None
    ended_why: str | None
    exit_status: int | None
    recoveries: list[Recovery]
    spec: Spec


class SandboxState(TypedDict):
    """A sandbox after something was done to it."""

    id: str
    name: str
    state: State


class Started(SandboxState):
    """A sandbox that was made and is ready."""

    create_ms: float


class SandboxStats(SandboxState):
    """What a sandbox uses now, and what of its memory is its own, shared, and its fair share of both (bytes)."""


class Preflight(TypedDict):
    """What a sandbox has that cannot be frozen, or may not."""

    ok: bool
    findings: list[Finding]


class LogRecord(TypedDict):
    """A piece of what a sandbox's programs printed."""

    time: Moment | None
    stream: str
    session: int
    text: str


class Restored(TypedDict):
    """A sandbox that was restored or cloned, with how long it took."""

    id: str
    name: str
    restore_ms: float
    ready_ms: float


class Supervision(TypedDict):
    """What is done to keep a sandbox alive."""

    id: str
    name: str
    state: str
    why: str | None
    policy: Policy


# Snapshots


class Checkpointed(TypedDict):
    """A checkpoint that was made, as `CheckpointReport` has it."""

    id: str
    parent: str | None
    kind: Kind
    frozen_ms: float
    total_ms: float
    bytes: int
    skipped: bool
    freeze: str
    why_plain: str


class MadeOf(TypedDict):
    """The sandbox that a snapshot was made of."""

    id: str | None
    name: str | None


class SnapshotBrief(TypedDict):
    """A snapshot; `bytes` is what it added to the store."""

    id: str
    names: list[str]
    kind: Kind
    parent: str | None
    sandbox: MadeOf
    created_at: Moment | None
    bytes: int
    labels: dict[str, str]
    pinned: bool
    expires_at: Moment | None
    used_at: Moment | None


class SnapshotKnown(SnapshotBrief):
    """Everything that a snapshot says of itself."""

    chain: list[str]
    files: dict[str, FileEntry]
    layers: dict[str, list[str]]
    compat: Compat
    body: dict[str, Any]


class SnapshotChain(TypedDict):
    """Base first."""

    chain: list[SnapshotBrief]


class Damage(TypedDict):
    snapshot: str
    file: str
    cause: str


class Verification(TypedDict):
    """What is wrong with stored bytes."""

    ok: bool
    problems: list[Damage]


class Freed(TypedDict):
    id: str
    reason: str
    bytes: int


class Kept(TypedDict):
    id: str
    reason: str


class Collection(TypedDict):
    """What `gc` removed, or would."""

    removed: list[Freed]
    kept: list[Kept]
    freed_bytes: int
    dry_run: bool


# Templates and pools


class TemplateBrief(TypedDict):
    """A template in a list."""

    name: str
    snapshot: str
    command: list[str]
    bytes: int
    created_at: Moment | None
    rebuilt_at: Moment | None
    exposures: list[str]


class Template(TemplateBrief):
    """A template with its spec."""

    spec: Spec


class Pool(TypedDict):
    """A pool as it is said to be, and, where it is `open`, as it is."""

    open: bool
    parked: int
    leased: int
    restoring: int
    waiting: int


class Leased(TypedDict):
    """A sandbox that was acquired; `until` is seconds since the epoch."""

    id: str
    name: str
    pool: str
    acquire_ms: float
    lease: str
    until: float


# The node


class RecoveryOf(Recovery):
    """A recovery, and whose it was."""

    sandbox: Named


SPREAD: dict[Any, tuple[type, ...]] = {SandboxStats: (Stats, MemoryUse), Pool: (PoolSpec,)}
"""Dataclasses whose every field is beside those of a shape."""
SPREAD_WHERE_KNOWN: dict[Any, tuple[type, ...]] = {Pool: (Statistics,)}
"""Likewise, but not always."""
