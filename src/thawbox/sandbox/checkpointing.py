"""Checkpoint: dump, copy the writable layers in the same frozen moment, run on; everything else afterwards.

Rule 1: between the freeze and the thaw there is only the dump and the copy of changed files.
Rule 2: the snapshot exists when the store says so; until then the sandbox is as it was, and nothing is listed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from thawbox.engines import ALONE, INIT_PID, Parents, Place
from thawbox.errors import (
    CopyLost,
    DumpFailed,
    HookFailed,
    IntegrityError,
    InvalidRequest,
    InvalidTransition,
    SnapshotNotFound,
    StartFailed,
)
from thawbox.host.cgroup import Cgroup
from thawbox.host.clocks import Clocks, clocks_of
from thawbox.host.databases import OpenDatabase, find_databases
from thawbox.host.file_locks import SharedLock, find_shared_locks
from thawbox.host.files import locked, remove_tree
from thawbox.host.proc import children, command_name, pid_inside, start_time
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, SnapshotId
from thawbox.sandbox.body import Moment
from thawbox.sandbox.captures import Capture, capture_ahead, capture_frozen, encode_marks, last_capture
from thawbox.sandbox.context import Context
from thawbox.sandbox.ending import take_down
from thawbox.sandbox.finishing import Unfinished, finish, late_directory, write_unfinished
from thawbox.sandbox.hooks import Attendance, attending, go_on, missing, names_in, wait_until_ready
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import direct_link, has_callers
from thawbox.sandbox.preflight import check_freezable, explained
from thawbox.sandbox.room import room_for_copies, why_no_room
from thawbox.sandbox.shells import generation_directory
from thawbox.sandbox.tracking import begin_dump
from thawbox.sandbox.wishes import CheckpointReport, Mode, Wish, check_wish
from thawbox.store import Staging, parent_link

__all__ = ["CheckpointReport", "Mode", "Wish", "begin", "checkpoint", "without_connections"]


def checkpoint(context: Context, record: Record, wish: Wish) -> tuple[Record, CheckpointReport]:
    """Make a durable snapshot of a running or frozen sandbox; the caller holds its lock.

    Raises InvalidTransition, InvalidRequest (a delta without a parent), DumpFailed; the sandbox is then as it was.
    """
    begun = time.perf_counter()
    after = next_phase(record.phase, Verb.SUSPEND if wish.stop else Verb.CHECKPOINT, who=record.name)
    attendance = Attendance()
    with context.store.stage() as staging, _running_on_failure(context, record, attendance, wanted=wish.stop):
        report = finish(context, staging, dump(context, record, staging, wish, attendance))
    record = replace(record, parent_snapshot=report.id)
    if wish.stop:
        record = take_down(context, record, phase=after, why="suspended")
    changed = replace(record, phase=after)
    context.journal.update(changed)
    return changed, replace(report, total_ms=(time.perf_counter() - begun) * 1000)


def begin(context: Context, record: Record, wish: Wish) -> tuple[Staging, Unfinished]:
    """The same up to the moment when the sandbox runs again; the caller sees that what is staged is finished.

    Raises InvalidRequest for a checkpoint that stops the sandbox: it would have nothing left if that failed.
    """
    if wish.stop:
        raise InvalidRequest(
            f"{record.name} cannot be stopped before its snapshot is durable", remediation="wait for the checkpoint"
        )
    next_phase(record.phase, Verb.CHECKPOINT, who=record.name)
    staging = context.store.begin()
    try:
        unfinished = dump(context, record, staging, wish, Attendance())
        write_unfinished(staging, unfinished)
    except BaseException:
        context.store.discard(staging)
        raise
    return staging, unfinished


def wait_for_wish(context: Context, record: Record, wish: Wish) -> None:
    """Return once the programs may be checkpointed, where that is wished; the sandbox's lock is not needed.

    Raises what the checkpoint would refuse after the wait, and StartFailed when they are not ready in time.
    """
    if not wish.when_ready:
        return
    next_phase(record.phase, Verb.CHECKPOINT, who=record.name)
    check_wish(wish)
    _choose_parent(context, record, wish)
    _check_thawed(record)
    wait_until_ready(context, record, timeout=record.spec.ready_timeout)


def _check_thawed(record: Record) -> None:
    if record.phase is Phase.FROZEN:
        raise InvalidTransition(
            f"{record.name} is frozen: its programs cannot say that they are ready",
            remediation="thaw it first, or do not wait until it is ready",
        )


def _choose_parent(context: Context, record: Record, wish: Wish) -> tuple[SnapshotId | None, bool]:
    """The snapshot to hold the dump against, None for none wanted or none here; and whether its chain is full.

    Against one whose chain is full nothing is held but what may come to nothing. Raises InvalidRequest when a delta is
    wanted and cannot be.
    """
    if wish.mode is Mode.FULL:
        return None, False
    parent = record.parent_snapshot
    try:
        links = 0 if parent is None else len(context.store.chain(parent))
    except SnapshotNotFound:
        links = 0
    if 0 < links < context.settings.max_chain_length:
        return parent, False
    if wish.mode is Mode.DELTA:
        why = f"its chain has {links} links, the limit" if links else "this node has no snapshot it came from"
        raise InvalidRequest(f"{record.name} cannot have a delta: {why}", remediation="make a full snapshot (--full)")
    return (parent, True) if links and wish.skip_if_clean else (None, False)


def dump(context: Context, record: Record, staging: Staging, wish: Wish, attendance: Attendance) -> Unfinished:
    """Write memory and changed files into `staging`; the sandbox runs on when this returns, unless told to stop.

    A sandbox that is to stop is frozen, and those in `attendance` wait to be told that it runs on, if it does.
    A short freeze that comes to nothing, because what it left to be read was ended, is followed by a plain one.
    """
    check_wish(wish)
    if wish.when_ready:
        _check_thawed(record)
        if waiting := missing(context, record):
            raise StartFailed(
                f"{record.name} is no longer ready to be checkpointed: {', '.join(waiting)}",
                remediation="wait until it is, then retry",
            )
    try:
        return _dump(context, record, staging, wish, attendance, why_plain=_why_plain(context, record, wish))
    except CopyLost as lost:
        _empty(staging)
        return _dump(context, record, staging, wish, attendance, why_plain=lost.cause)


def _why_plain(context: Context, record: Record, wish: Wish) -> str:
    """Why nobody waits for a short freeze, or why it must not be; empty when it is wanted."""
    if not context.settings.short_freezes:
        return "short freezes are switched off"
    if wish.stop:
        return "the sandbox does not run on"
    if record.phase is Phase.FROZEN:
        return "the sandbox is frozen anyway"
    return why_no_room(context, record)


def _empty(staging: Staging) -> None:
    remove_tree(late_directory(staging))
    for directory in (staging.images, staging.layer):
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                entry.unlink()


def _dump(
    context: Context, record: Record, staging: Staging, wish: Wish, attendance: Attendance, *, why_plain: str
) -> Unfinished:
    parent, is_full = _choose_parent(context, record, wish)
    cgroup = context.cgroup(record.id)
    since = last_capture(context, record)
    late_directory(staging).mkdir(mode=0o700)
    ahead = capture_ahead(context, record, since, staging.layer)
    captures: list[Capture] = []
    clocks: list[Clocks] = []
    databases: list[OpenDatabase] = []
    locks: list[SharedLock] = []

    def while_stopped() -> None:
        clocks.append(clocks_of(record.keeper_pid))
        databases.extend(find_databases(cgroup.pids()))
        locks.extend(find_shared_locks(cgroup.pids(), record.spec.mounts))
        captures.append(capture_frozen(context, record, ahead, late_directory(staging)))
        if wish.stop:
            cgroup.request_freeze()

    number, tracked = begin_dump(generation_directory(context, record))
    known = parent_link(tracked) if tracked is not None and tracked == parent else ""
    with ExitStack() as reading, ExitStack() as held:
        parents = ALONE
        if not why_plain:
            try:
                parents = _parents(context, parent, reading)
            except IntegrityError:  # whoever finishes the snapshot tells of it
                why_plain = "its parent cannot be read"
        held.enter_context(attending(context, record, attendance, stop=wish.stop))
        held.enter_context(without_connections(context, record))
        _check_whole(record)
        check_freezable(context, record)
        if not why_plain:
            reading.enter_context(room_for_copies(context, record))
        freezer = reading.enter_context(_traceable(cgroup, frozen=record.phase is Phase.FROZEN))
        with context.telemetry.step("engine.dump", sandbox=record.id) as step:
            try:
                report = context.engine.dump(
                    Place(record.keeper_pid, freezer=freezer), staging.images, while_stopped=while_stopped,
                    when_running=held.close, tracked=known, why_plain=why_plain, parents=parents,
                )  # fmt: skip
            except CopyLost:
                raise
            except DumpFailed as failed:
                raise explained(context, record, failed) from failed
            step.note(
                frozen_ms=report.frozen_ms, pages_written=report.pages_written, freeze=report.freeze.value,
                why_plain=report.why_plain,
            )  # fmt: skip
    moment = Moment(clocks[0], names_in(record, attendance), tuple(databases), tuple(locks))
    return Unfinished(
        record, wish, parent, moment, report, beneath=since.layers,
        marks=encode_marks(captures[0].marks), parent_is_full=is_full, dump_number=number,
    )  # fmt: skip


def _parents(context: Context, parent: SnapshotId | None, reading: ExitStack) -> Parents:
    """What the dump may leave out, held for as long as it is read."""
    if parent is None:
        return ALONE
    return Parents(reading.enter_context(context.store.reading(parent)).images, parent_link(parent))


@contextlib.contextmanager
def _traceable(cgroup: Cgroup, *, frozen: bool) -> Generator[Path | None]:
    """The freezer that holds a frozen tree, for the engine; None for a tree that is not frozen, or cannot stay so.

    A task that was stopped (SIGSTOP) and then frozen cannot be traced: whoever tries hangs. A tree with one runs for
    the moments before and after the dump.
    """
    if not frozen or not cgroup.holds_stopped():
        yield cgroup.freezer_dir if frozen else None
        return
    cgroup.thaw()
    try:
        yield None
    finally:
        cgroup.freeze()


def _check_whole(record: Record) -> None:
    """Raise DumpFailed if a process of the sandbox is outside the tree that is dumped: it would be missing silently."""
    # What is dead, and waits for the keeper to take note of it, is missed by nobody.
    alive = [pid for pid in children(record.keeper_pid) if start_time(pid) is not None]
    outside = [pid for pid in alive if pid_inside(pid) not in (INIT_PID, None)]
    if outside:
        names = ", ".join(f"{pid} ({command_name(pid)})" for pid in outside)
        raise DumpFailed(
            f"{record.name}: processes {names} left the tree of its init and would be missing from the snapshot",
            remediation="end them; if they came there by a restore, use the criu that `make setup` builds",
        )


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
def _running_on_failure(context: Context, record: Record, attendance: Attendance, *, wanted: bool) -> Generator[None]:
    """With `wanted`, what was frozen in the block runs again if the block fails, and its programs are told so."""
    try:
        yield
    except BaseException:
        if wanted and record.phase is Phase.RUNNING:
            context.cgroup(record.id).thaw()
            with contextlib.suppress(HookFailed):  # the first failure is the one to report
                go_on(attendance)
        raise
