"""From what was dumped to a snapshot: compare with the parent, hash, commit. The sandbox may run meanwhile.

Rule 1: what is left to do lies whole in the staging directory, so that any process may finish what another began.
Rule 2: the snapshot exists when the store says so; what was not finished is swept when its process is dead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from thawbox.engines import DumpReport
from thawbox.errors import LockTimeout, NotFound, SandboxNotFound
from thawbox.host.databases import OpenDatabase
from thawbox.host.files import remove_tree
from thawbox.host.layer_differences import adds_nothing
from thawbox.host.layer_stacks import merge_layers
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.sandbox.body import Moment, body_of
from thawbox.sandbox.captures import join, remember_capture
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import generation_directory
from thawbox.sandbox.tracking import note_snapshot
from thawbox.sandbox.wishes import CheckpointReport, Wish
from thawbox.store import Draft, Staging, parent_link
from thawbox.store import Record as Stored

_FILE = "unfinished"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What the frozen moment gave, beside the images and layers in the staging directory: no snapshot yet.

    `beneath` are the stored layers under the captured ones, by overlay, base first; `marks` what the captures saw
    (see captures.py). With `parent_is_full`, what differs from the parent becomes a full snapshot.
    """

    record: Record
    wish: Wish
    parent: SnapshotId | None
    moment: Moment
    report: DumpReport
    beneath: dict[str, tuple[str, ...]]
    marks: bytes
    parent_is_full: bool = False
    dump_number: int = 0


def late_directory(staging: Staging) -> Path:
    """Where the captures of the frozen moment lie until they are joined with those made ahead of it."""
    return staging.path / "late"


def write_unfinished(staging: Staging, unfinished: Unfinished) -> None:
    """Leave in the staging directory all that another process needs to finish it."""
    (staging.path / _FILE).write_bytes(msgspec.msgpack.encode(unfinished))


def read_unfinished(staging: Staging) -> Unfinished:
    return msgspec.msgpack.decode((staging.path / _FILE).read_bytes(), type=Unfinished)


def finish(context: Context, staging: Staging, unfinished: Unfinished) -> CheckpointReport:
    """Make the snapshot, durable and visible; with `skip_if_clean` the parent is the answer if nothing had changed.

    `total_ms` of the report is the dump's alone. Raises IntegrityError when the parent is damaged; an OSError of our
    disk is passed on. What is staged is the caller's to discard.
    """
    record, wish, parent = unfinished.record, unfinished.wish, unfinished.parent
    join(unfinished.beneath, ahead=staging.layer, late=late_directory(staging))
    dumped = unfinished.report
    with context.telemetry.step("engine.shrink", sandbox=record.id):
        clean = dumped.clean if dumped.shrunk else _shrink(context, staging, parent)
    captured = _drop_repeated(context, staging, unfinished.beneath)
    if wish.skip_if_clean and clean and parent is not None and not captured:
        remember_capture(context, record, parent, unfinished.beneath, unfinished.marks)
        context.store.answer(staging, parent, name=wish.name, labels=wish.labels)
        return _report(context.store.record(parent), unfinished.report, skipped=True)
    if parent is not None and unfinished.parent_is_full:
        _flatten(context, staging, parent)
        parent = None
    moment = _with_places(context, staging, unfinished.moment, parent)
    draft = Draft(
        kind=SnapshotKind.FULL if parent is None else SnapshotKind.DELTA,
        parent=parent,
        compat=replace(context.machine, rootfs=record.rootfs_digest),
        layers=_layers_beneath(context, staging, unfinished.beneath),
        body=body_of(record, moment, frozen_ms=unfinished.report.frozen_ms),
    )
    with context.telemetry.step("store.put", sandbox=record.id) as step:
        stored = context.store.put(staging, draft, name=wish.name, labels=wish.labels, ttl=wish.ttl, pinned=wish.pinned)
        step.note(snapshot=stored.id, kind=draft.kind.value, bytes=stored.bytes)
    remember_capture(context, record, stored.id, stored.manifest.layers, unfinished.marks)
    note_snapshot(generation_directory(context, record), unfinished.dump_number, stored.id)
    return _report(stored, unfinished.report)


def _flatten(context: Context, staging: Staging, parent: SnapshotId) -> None:
    """Make the delta's images full ones."""
    whole = staging.path / "whole"
    whole.mkdir(mode=0o700)
    with context.store.reading(parent) as fetched:
        context.engine.flatten((*fetched.images, staging.images), whole)
    remove_tree(staging.images)
    whole.rename(staging.images)


def _drop_repeated(context: Context, staging: Staging, beneath: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Drop captured layers that only repeat what lies beneath them; the overlays whose layers stay."""
    for name, digests in beneath.items():
        layer = staging.layer / name
        if layer.is_dir() and adds_nothing(layer, [context.store.layer_tree(digest) for digest in digests]):
            remove_tree(layer)
    return tuple(name for name in beneath if (staging.layer / name).is_dir())


def _with_places(context: Context, staging: Staging, moment: Moment, parent: SnapshotId | None) -> Moment:
    """The same, with the places in memory at which each database's identity lies: a restore need not search."""
    if not moment.databases:
        return moment
    with contextlib.ExitStack() as reading:
        beneath = () if parent is None else reading.enter_context(context.store.reading(parent)).images
        chain = (*beneath, staging.images)
        located: list[OpenDatabase] = []
        for task in dict.fromkeys(database.pid for database in moment.databases):
            mine = [database for database in moment.databases if database.pid == task]
            try:
                places = context.engine.find_pairs(chain, task, [database.identity for database in mine])
            except NotFound:  # it lives in another task's memory: the restore searches
                return moment
            located += [replace(database, places=at) for database, at in zip(mine, places, strict=True)]
    return replace(moment, databases=tuple(located))


def finish_apart(context: Context, staging: Staging, unfinished: Unfinished) -> None:
    """Finish for whoever waits by token, success or failure, and discard what is left; the journal learns of it."""
    try:
        with context.telemetry.step("checkpoint.finish", sandbox=unfinished.record.id) as step:
            report = finish(context, staging, unfinished)
            step.note(snapshot=report.id, kind=report.kind.value, bytes=report.bytes, skipped=report.skipped)
        _follow(context, unfinished.record, report.id)
    except Exception as error:
        context.store.record_failure(staging.token, str(error))
        raise
    finally:
        context.store.discard(staging)


def _follow(context: Context, record: Record, snapshot: SnapshotId) -> None:
    """Note what the sandbox's next delta is made against, unless it was restored or removed meanwhile.

    A sandbox that is busy for too long goes without: its next delta is the larger for it.
    """
    with contextlib.suppress(LockTimeout, SandboxNotFound), context.exclusive(record.id):
        now = context.journal.find(record.id)
        if now.generation == record.generation:
            context.journal.update(replace(now, parent_snapshot=snapshot))


def _shrink(context: Context, staging: Staging, parent: SnapshotId | None) -> bool:
    """Drop from the images what a restore finds elsewhere; True if the memory is the parent's."""
    if parent is None:
        context.engine.shrink(staging.images)
        return False
    with context.store.reading(parent) as fetched:
        return context.engine.shrink(staging.images, parents=fetched.images, parent_link=parent_link(parent))


def _layers_beneath(
    context: Context, staging: Staging, beneath: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The stored layers beneath what was captured; where there would be too many, all are merged into the capture."""
    left = dict(beneath)
    for name, digests in beneath.items():
        if len(digests) < context.settings.max_chain_length:
            continue
        captured = staging.layer / name
        merged = staging.path / f"merged-{name}"
        merged.mkdir(mode=0o755)
        top = [captured] if captured.is_dir() else []
        merge_layers([*map(context.store.layer_tree, digests), *top], merged)
        remove_tree(captured)
        merged.rename(captured)
        left[name] = ()
    return left


def _report(stored: Stored, dumped: DumpReport, *, skipped: bool = False) -> CheckpointReport:
    return CheckpointReport(
        id=stored.id, parent=stored.manifest.parent, kind=stored.manifest.kind, frozen_ms=dumped.frozen_ms,
        total_ms=dumped.total_ms, bytes=stored.bytes, skipped=skipped, freeze=dumped.freeze,
        why_plain=dumped.why_plain,
    )  # fmt: skip
