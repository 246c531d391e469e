"""Checkpoint: dump, copy the writable layers in the same frozen moment, run on; everything else afterwards.

Rule 1: between the freeze and the thaw there is only the dump and the copy of changed files.
Rule 2: the snapshot exists when the store says so; until then the sandbox is as it was, and nothing is listed.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

from thawbox.engines import INIT_PID, DumpReport, Place
from thawbox.errors import DumpFailed, InvalidRequest, SnapshotNotFound
from thawbox.host.clocks import Clocks, clocks_of
from thawbox.host.files import locked, remove_tree
from thawbox.host.layer_stacks import merge_layers
from thawbox.host.proc import children, command_name, pid_inside
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, SnapshotId, SnapshotKind
from thawbox.sandbox.body import Moment, body_of
from thawbox.sandbox.captures import (
    Capture,
    Captured,
    capture_ahead,
    capture_frozen,
    join,
    last_capture,
    remember_capture,
)
from thawbox.sandbox.context import Context
from thawbox.sandbox.ending import take_down
from thawbox.sandbox.hooks import attending, names_in, resume, wait_until_ready
from thawbox.sandbox.journal import Record
from thawbox.sandbox.preflight import check_freezable
from thawbox.sandbox.links import direct_link, has_callers
from thawbox.store import Draft, Staging, parent_link


class Mode(enum.Enum):
    """What kind of snapshot is wanted: AUTO makes a delta where there is a parent to make it against."""

    AUTO = "auto"
    FULL = "full"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of a checkpoint. `ttl` is seconds; with `stop` the sandbox does not run on.

    With `when_ready` it waits, up to the spec's `ready_timeout`, until the programs say that they may be checkpointed.
    """

    mode: Mode = Mode.AUTO
    stop: bool = False
    skip_if_clean: bool = False
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    ttl: float | None = None
    pinned: bool = False
    when_ready: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A finished checkpoint. `frozen_ms` is how long the sandbox could not run; `bytes` what was stored for it.

    With `skipped` nothing had changed since `id`, which existed before.
    """

    id: SnapshotId
    parent: SnapshotId | None
    kind: SnapshotKind
    frozen_ms: float
    total_ms: float
    bytes: int
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Dumped:
    """What the frozen moment gave: nothing of it is a snapshot yet."""

    moment: Moment
    report: DumpReport
    since: Captured
    capture: Capture


def checkpoint(context: Context, record: Record, wish: Wish) -> tuple[Record, CheckpointReport]:
    """Make a durable snapshot of a running or frozen sandbox; the caller holds its lock.

    Raises InvalidTransition, InvalidRequest (a delta without a parent), DumpFailed; the sandbox is then as it was.
    """
    begun = time.perf_counter()
    after = next_phase(record.phase, Verb.SUSPEND if wish.stop else Verb.CHECKPOINT, who=record.name)
    parent = choose_parent(context, record, wish.mode)
    if wish.when_ready:
        wait_until_ready(context, record, timeout=record.spec.ready_timeout)
    with context.store.stage() as staging, _thawed_on_failure(context, record, wanted=wish.stop):
        dumped = dump(context, record, staging, stop=wish.stop)
        record, report = finish(context, record, staging, dumped, parent=parent, wish=wish)
    if wish.stop:
        record = take_down(context, record, phase=after, why="suspended")
    changed = replace(record, phase=after)
    context.journal.update(changed)
    return changed, replace(report, total_ms=(time.perf_counter() - begun) * 1000)


def choose_parent(context: Context, record: Record, mode: Mode) -> SnapshotId | None:
    """The snapshot to make a delta against, or None for a full one: none wanted, none here, or its chain is full.

    Raises InvalidRequest when a delta is wanted and cannot be.
    """
    if mode is Mode.FULL:
        return None
    parent = record.parent_snapshot
    try:
        links = 0 if parent is None else len(context.store.chain(parent))
    except SnapshotNotFound:
        links = 0
    limit = context.settings.max_chain_length
    if 0 < links < limit:
        return parent
    if mode is Mode.DELTA:
        why = f"its chain has {links} links, the limit" if links else "this node has no snapshot it came from"
        raise InvalidRequest(f"{record.name} cannot have a delta: {why}", remediation="make a full snapshot (--full)")
    return None


def dump(context: Context, record: Record, staging: Staging, *, stop: bool) -> Dumped:
    """Write memory and changed files into `staging`; the sandbox runs on when this returns, unless `stop`."""
    cgroup = context.cgroup(record.id)
    since = last_capture(context, record)
    late = staging.path / "late"
    late.mkdir(mode=0o700)
    ahead = capture_ahead(context, record, since, ahead=staging.layer, late=late)
    captures: list[Capture] = []

    clocks: list[Clocks] = []

    def while_stopped() -> None:
        clocks.append(clocks_of(record.keeper_pid))
        captures.append(capture_frozen(context, record, ahead))
        if stop:
            cgroup.request_freeze()

    place = Place(record.keeper_pid, freezer=cgroup.freezer_dir if record.phase is Phase.FROZEN else None)
    with attending(context, record, stop=stop) as attendance, without_connections(context, record):
        _check_whole(record)
        check_freezable(context, record)
        report = context.engine.dump(place, staging.images, while_stopped=while_stopped)
    moment = Moment(clocks[0], names_in(record, attendance))
    return Dumped(moment, report, since, captures[0])


def _check_whole(record: Record) -> None:
    """Raise DumpFailed if a process of the sandbox is outside the tree that is dumped: it would be missing silently."""
    outside = [pid for pid in children(record.keeper_pid) if pid_inside(pid) not in (INIT_PID, None)]
    if outside:
        names = ", ".join(f"{pid} ({command_name(pid)})" for pid in outside)
        raise DumpFailed(
            f"{record.name}: processes {names} left the tree of its init and would be missing from the snapshot",
            remediation="end them; if they came there by a restore, use the criu that `make setup` builds",
        )


def finish(
    context: Context, record: Record, staging: Staging, dumped: Dumped, *, parent: SnapshotId | None, wish: Wish
) -> tuple[Record, CheckpointReport]:
    """Make the snapshot of what was dumped: compare with the parent, hash, commit. The sandbox may run meanwhile."""
    join(dumped.capture)
    clean = _shrink(context, staging, parent)
    if wish.skip_if_clean and clean and parent is not None and not dumped.capture.changed:
        return record, _report(context, parent, dumped, skipped=True)
    draft = Draft(
        kind=SnapshotKind.FULL if parent is None else SnapshotKind.DELTA,
        parent=parent,
        compat=replace(context.machine, rootfs=record.rootfs_digest),
        layers=_layers_beneath(context, staging, dumped.since),
        body=body_of(record, dumped.moment, frozen_ms=dumped.report.frozen_ms),
    )
    stored = context.store.put(staging, draft, name=wish.name, labels=wish.labels, ttl=wish.ttl, pinned=wish.pinned)
    remember_capture(context, record, Captured(stored.id, dict(stored.manifest.layers), dumped.capture.marks))
    return replace(record, parent_snapshot=stored.id), _report(context, stored.id, dumped)


def _shrink(context: Context, staging: Staging, parent: SnapshotId | None) -> bool:
    """Drop from the images what a restore finds elsewhere; True if the memory is the parent's."""
    if parent is None:
        context.engine.shrink(staging.images)
        return False
    with context.store.reading(parent) as fetched:
        return context.engine.shrink(staging.images, parents=fetched.images, parent_link=parent_link(parent))


def _layers_beneath(context: Context, staging: Staging, since: Captured) -> dict[str, tuple[str, ...]]:
    """The stored layers beneath what was captured; where there would be too many, all are merged into the capture."""
    beneath = dict(since.layers)
    for name, digests in since.layers.items():
        if len(digests) < context.settings.max_chain_length:
            continue
        captured = staging.layer / name
        merged = staging.path / f"merged-{name}"
        merged.mkdir(mode=0o755)
        top = [captured] if captured.is_dir() else []
        merge_layers([*map(context.store.layout.tree, digests), *top], merged)
        remove_tree(captured)
        merged.rename(captured)
        beneath[name] = ()
    return beneath


def _report(context: Context, snapshot: SnapshotId, dumped: Dumped, *, skipped: bool = False) -> CheckpointReport:
    stored = context.store.record(snapshot)
    return CheckpointReport(
        id=stored.id, parent=stored.manifest.parent, kind=stored.manifest.kind, frozen_ms=dumped.report.frozen_ms,
        total_ms=dumped.report.total_ms, bytes=stored.bytes, skipped=skipped,
    )  # fmt: skip


@contextlib.contextmanager
def without_connections(context: Context, record: Record) -> Generator[None]:
    """Nobody of the host is connected to the sandbox's init for the block; new ones wait.

    A socket whose other end is outside the tree cannot be dumped.
    """
    with locked(context.link_lock(record.id), timeout=context.settings.lock_timeout, what=f"exec into {record.name}"):
        if record.phase is not Phase.FROZEN and has_callers(record):  # `freeze` has closed them
            with direct_link(record) as link:
                link.quiesce()
        yield


@contextlib.contextmanager
def _thawed_on_failure(context: Context, record: Record, *, wanted: bool) -> Generator[None]:
    """With `wanted`, what was frozen in the block is thawed again if the block fails."""
    try:
        yield
    except BaseException:
        if wanted and record.phase is Phase.RUNNING:
            context.cgroup(record.id).thaw()
            resume(context, record)
        raise
