"""Checkpoint: dump, copy the writable layers in the same frozen moment, run on; everything else afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

from thawbox.engines import DumpReport, Place
from thawbox.host.files import locked
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, SnapshotId, SnapshotKind
from thawbox.sandbox.body import body_of
from thawbox.sandbox.context import Context
from thawbox.sandbox.ending import take_down
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import direct_link
from thawbox.sandbox.shells import upper_directory
from thawbox.sandbox.uppers import capture
from thawbox.store import Draft, Staging


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A finished checkpoint. `frozen_ms` is how long the sandbox could not run; `bytes` what was stored for it."""

    id: SnapshotId
    parent: SnapshotId | None
    kind: SnapshotKind
    frozen_ms: float
    total_ms: float
    bytes: int


def checkpoint(
    context: Context, record: Record, *, stop: bool = False, name: str = "", labels: Mapping[str, str] | None = None
) -> tuple[Record, CheckpointReport]:
    """Make a durable snapshot of a running or frozen sandbox; the caller holds its lock.

    With `stop` the sandbox does not run again after the frozen moment, and ends once the snapshot is durable.
    Raises InvalidTransition, DumpFailed; the sandbox is then as it was.
    """
    begun = time.perf_counter()
    after = next_phase(record.phase, Verb.SUSPEND if stop else Verb.CHECKPOINT, who=record.name)
    with context.store.stage() as staging, _frozen_from_here_on(context, record, wanted=stop):
        dumped = _dump(context, record, staging, stop=stop)
        draft = Draft(
            kind=SnapshotKind.FULL,
            compat=replace(context.machine, rootfs=record.rootfs_digest),
            layers=record.layers,
            body=body_of(record, frozen_ms=dumped.frozen_ms),
        )
        stored = context.store.put(staging, draft, name=name, labels=dict(labels or {}))
    changed = replace(record, parent_snapshot=stored.id, phase=after)
    if stop:
        changed = take_down(context, changed, phase=after, why="suspended")
    context.journal.update(changed)
    report = CheckpointReport(
        id=stored.id, parent=stored.manifest.parent, kind=stored.manifest.kind, frozen_ms=dumped.frozen_ms,
        total_ms=(time.perf_counter() - begun) * 1000, bytes=stored.bytes,
    )  # fmt: skip
    return changed, report


def _dump(context: Context, record: Record, staging: Staging, *, stop: bool) -> DumpReport:
    cgroup = context.cgroup(record.id)
    was_frozen = record.phase is Phase.FROZEN
    uppers = {name: upper_directory(context, record, name) for name in record.layers}

    def while_stopped() -> None:
        capture(uppers, staging.layer)
        if stop:
            cgroup.request_freeze()

    place = Place(record.keeper_pid, freezer=cgroup.freezer_dir if was_frozen else None)
    with without_connections(context, record):
        return context.engine.dump(place, staging.images, while_stopped=while_stopped)


@contextlib.contextmanager
def without_connections(context: Context, record: Record) -> Generator[None]:
    """Nobody of the host is connected to the sandbox's init for the block; new ones wait.

    A socket whose other end is outside the tree cannot be dumped.
    """
    with locked(context.link_lock(record.id), timeout=context.settings.lock_timeout, what=f"exec into {record.name}"):
        if record.phase is not Phase.FROZEN:  # `freeze` has closed them
            with direct_link(record) as link:
                link.quiesce()
        yield


@contextlib.contextmanager
def _frozen_from_here_on(context: Context, record: Record, *, wanted: bool) -> Generator[None]:
    """With `wanted`, whatever was frozen in the block is thawed again if the block fails."""
    try:
        yield
    except BaseException:
        if wanted and record.phase is Phase.RUNNING:
            context.cgroup(record.id).thaw()
        raise
