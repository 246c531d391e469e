"""The shapes of what only the service answers; what the command line prints too is in `thawbox.shapes`.

Rule: no name here is another thing there. What a shape inherits is looked up here first (`typing.get_type_hints`).
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from thawbox import shapes
from thawbox.api import operations
from thawbox.api.tokens import Limits
from thawbox.shapes import Moment, Named, words
from thawbox.store import Compat

# Sandboxes


class Sandbox(shapes.SandboxBrief):
    """A sandbox in a list. `memory` is bytes; `owner` the token that made it."""

    memory: int | None
    owner: str | None
    pool: str | None


class SandboxWhole(shapes.SandboxKnown):
    """A sandbox as the service shows it."""

    owner: str | None
    pool: str | None


class SandboxPage(TypedDict):
    sandboxes: list[Sandbox]
    next: str | None


class PlacedLogRecord(shapes.LogRecord):
    """With `after`, to go on behind it."""

    after: str


class LogRecords(TypedDict):
    records: list[PlacedLogRecord]


class Cloned(TypedDict):
    sandboxes: list[shapes.Restored]


class Forked(Cloned):
    """The clones, and the snapshot that they are of."""

    snapshot: shapes.Checkpointed


# Snapshots


class Snapshot(shapes.SnapshotBrief):
    """A snapshot in a list."""

    sandbox_name: str | None
    chain_length: int | None
    owner: str | None


class SnapshotWhole(shapes.SnapshotKnown):
    """A snapshot as the service shows it."""

    owner: str | None


class SnapshotPage(TypedDict):
    snapshots: list[Snapshot]
    next: str | None


class RemovedSnapshots(TypedDict):
    removed: list[str]


class Verified(shapes.Verification):
    """`verified` is how many snapshots were read."""

    verified: int


# Templates, pools, claims


class TemplatePage(TypedDict):
    templates: list[shapes.TemplateBrief]
    next: str | None


class PoolPage(TypedDict):
    pools: list[shapes.Pool]
    next: str | None


class PoolName(TypedDict):
    name: str


class Renewed(TypedDict):
    lease: str
    until: float


class Claim(TypedDict):
    """A claim and its sandbox."""

    id: str
    state: str
    pool: str | None
    sandbox: Named
    until: Moment | None


class Bound(Claim):
    """A claim that was just bound."""

    acquire_ms: float


class ClaimPage(TypedDict):
    claims: list[Claim]
    next: str | None


# The node, its operations and events


class Alive(TypedDict):
    status: str


class Memory(TypedDict):
    total: int | None
    available: int | None


class Disk(TypedDict):
    total: int
    free: int
    store: int


class Node(TypedDict):
    """The node in figures; `event` is the newest event's number, `sandboxes` counts by state."""

    version: str
    home: str
    started_at: Moment | None
    uptime_s: float
    cpus: int | None
    memory: Memory
    disk: Disk
    sandboxes: dict[str, int]
    snapshots: int
    pools: int
    event: int


class Recoveries(TypedDict):
    recoveries: list[shapes.RecoveryOf]


class Problem(TypedDict):
    """What went wrong (RFC 9457), with a stable `code` and what to do next."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    cause: str
    remediation: str
    log: NotRequired[str]


class Done(TypedDict):
    """How far an operation is."""

    done: int
    total: int
    what: str


class Operation(TypedDict):
    """Long work; `result` is what the request would have answered."""

    id: str
    kind: str
    state: Annotated[str, words(operations.State)]
    created_at: Moment | None
    finished_at: Moment | None
    progress: Done | None
    result: Any
    error: Problem | None


class OperationPage(TypedDict):
    operations: list[Operation]
    next: str | None


class Subject(TypedDict):
    """What an event is about."""

    type: str
    id: str
    name: str


class Event(TypedDict):
    """What happened; each `kind` has further fields of its own."""

    id: int
    at: Moment | None
    kind: str
    subject: Subject | None


class Check(TypedDict):
    """One finding of the doctor's, as `host.probe.Check` has it."""

    name: str
    state: str
    detail: str
    remedy: str
    why: str


class Doctor(TypedDict):
    """Whether this machine has all that thawbox needs; found out `at`."""

    ok: bool
    checks: list[Check]
    at: Moment | None


class Token(TypedDict):
    """A token, but for its text."""

    id: str
    name: str
    scope: str
    created_at: Moment | None
    expires_at: Moment | None
    limits: Limits


class NewToken(Token):
    """With its text, which is shown this once."""

    token: str


class TokenPage(TypedDict):
    tokens: list[Token]
    next: str | None


# Commands and files


class CommandEnded(TypedDict):
    """How a command ended; `exit_status` is as a shell says it, `signal` 0 unless one killed it."""

    exit_status: int
    signal: int
    timed_out: bool
    duration_ms: float


class CommandResult(CommandEnded):
    """With what it printed."""

    stdout: str
    stderr: str
    truncated: bool


class Session(TypedDict):
    """A detached command."""

    session: int


class File(TypedDict):
    """What a path inside a sandbox names, as `inside_files.Entry` has it; `mode` is octal text."""

    name: str
    path: str
    type: str
    size: int
    mode: str
    mtime: Moment | None
    target: str | None
    uid: int
    gid: int


class Directory(TypedDict):
    path: str
    entries: list[File]


# Placeholders


class Placed(TypedDict):
    """What a placeholder holds."""

    pod: str
    id: str
    name: str
    state: shapes.State
    snapshot: str | None


class PlacedIn(Placed):
    """With how long it took."""

    ms: float


class Placeholders(TypedDict):
    placeholders: list[Placed]
    machine: Compat


class Fenced(TypedDict):
    """Pods whose clones were frozen because nobody said any more that they may run."""

    fenced: list[str]


class Sent(TypedDict):
    """A snapshot that is at `url`."""

    id: str
    url: str


class Golden(Sent):
    """With the facts of the machine that made it."""

    machine: Compat


OPEN: tuple[Any, ...] = (Event,)
"""Shapes that have further fields."""
