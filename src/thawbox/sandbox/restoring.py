"""Restore: the very sandbox back that a snapshot was made of, with its id, name, address, limits and identity."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from thawbox.errors import SandboxNotFound
from thawbox.host.files import remove_tree
from thawbox.host.network import check_port
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, SnapshotId, checked_name
from thawbox.sandbox.body import Body, read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.hooks import NOTHING, Injection
from thawbox.sandbox.journal import Record
from thawbox.sandbox.observe import observe
from thawbox.sandbox.placeholders import enter_placeholder, leave_placeholder
from thawbox.sandbox.readiness import wait_ready
from thawbox.sandbox.reviving import (
    RestoreTimes,
    clocks_for,
    found_record,
    holder,
    revive_tree,
    take_down,
    tell,
    with_second_try,
)
from thawbox.sandbox.shells import generation_directory, raise_shell
from thawbox.store import Fetched

_MAKE_ROOM = "`thawbox rm` that sandbox, or make a clone, which gets a name and an address of its own"
_FREE_THE_PORT = "end what listens there, or make a clone, which publishes no ports"


def restore(
    context: Context, snapshot: SnapshotId, *, injection: Injection = NOTHING, eager: bool = False,
    placeholder: int = 0, owner: str = "",
) -> tuple[Record, RestoreTimes]:  # fmt: skip
    """Bring the sandbox that a snapshot was made of back, under the same id, name, address and limits.

    With `eager` its memory is read from the files, though it may be held ready. With `placeholder` (a pid) it comes
    back in that pod's namespaces and under that pod's limits, in the name of `owner`.
    Raises InvalidTransition while it still runs, Unavailable (a port, a lock, an address that somebody else has),
    Incompatible, IntegrityError, RestoreFailed, HookFailed, StartFailed when it is not ready in time; then nothing
    changed.
    """
    begun = time.perf_counter()
    with (
        context.telemetry.step("restore", snapshot=snapshot) as step,
        context.reading(snapshot) as fetched,  # until its layers are held nobody may remove them
    ):
        attempt = partial(
            _restore, context, fetched, begun, injection=injection, placeholder=placeholder, owner=owner
        )  # fmt: skip
        record, times = with_second_try(context, fetched, attempt, eager=eager)
        step.note(sandbox=record.id, restore_ms=times.restore_ms)
    return record, times


def _restore(
    context: Context, fetched: Fetched, begun: float, *, injection: Injection, eager: bool, placeholder: int, owner: str
) -> tuple[Record, RestoreTimes]:
    body = read_body(fetched.manifest.body, snapshot=fetched.id)
    with context.exclusive(body.sandbox):
        before = _record_before(context, body)
        base = before if before is not None else _record_from(context, body)
        planned = replace(
            base, spec=body.spec, hostname=body.hostname, machine_id=body.machine_id,
            phase=next_phase(base.phase, Verb.RESTORE, who=base.name), generation=base.generation + 1,
            ended_at=None, ended_why="", placeholder=placeholder, owner=owner or base.owner, given=bool(injection),
        )  # fmt: skip
        with ExitStack() as undo:
            if before is None:
                undo.callback(context.remove_locks, planned.id)
                undo.callback(remove_tree, context.directory(planned.id))
            for publish in planned.spec.publish:
                check_port(publish, remedy=_FREE_THE_PORT)
            if before is None:
                context.journal.add(planned, remedy=_MAKE_ROOM)
                undo.callback(context.journal.remove, planned.id)
            record, rootfs = found_record(context, planned, fetched, undo)
            (enter_placeholder if placeholder else leave_placeholder)(context, record, undo)
            with context.telemetry.step("shell", sandbox=record.id):
                shell = raise_shell(context, record, rootfs, start_init=False, clock_offsets=clocks_for(body))
            undo.callback(take_down, context, record, shell)
            record = revive_tree(context, record, shell, body, fetched, eager=eager)
            context.journal.update(record)
            if before is not None:
                undo.callback(context.journal.update, before)
            tell(context, record, body, what="restore", injection=injection)
            restored = time.perf_counter()
            with context.telemetry.step("ready", sandbox=record.id):
                wait_ready(context, record)
            undo.pop_all()
        times = RestoreTimes((restored - begun) * 1000, (time.perf_counter() - begun) * 1000)
        if before is not None:
            context.threads.start(partial(_drop_generation, context, before), name=f"thawbox-drop-{before.id}")
        return record, times


def _drop_generation(context: Context, before: Record) -> None:
    """Remove the writable layer that a restore has replaced: many small files, which can take a busy disk 30 ms."""
    remove_tree(generation_directory(context, before))
    context.store.release(holder(before))


def _record_before(context: Context, body: Body) -> Record | None:
    try:
        return observe(context, context.journal.find(body.sandbox))
    except SandboxNotFound:
        return None


def _record_from(context: Context, body: Body) -> Record:
    """The record of a sandbox that this node no longer has, or never had."""
    return Record(
        id=body.sandbox, name=checked_name(body.name), spec=body.spec, phase=Phase.SUSPENDED,
        created_at=context.now(), hostname=body.hostname, machine_id=body.machine_id, address=body.address,
    )  # fmt: skip
