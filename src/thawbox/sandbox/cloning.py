"""Clone: a new sandbox from a snapshot, with a new id, name, hostname, machine id and address; nothing else differs.

Its shell comes from the reserve where one is kept for the snapshot, else it is made now.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from thawbox.host.files import remove_tree, take_lock
from thawbox.model import Phase, SnapshotId
from thawbox.sandbox.body import Body, read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.hooks import NOTHING, Injection
from thawbox.sandbox.identity import Identity, new_identity, renamed
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link
from thawbox.sandbox.placeholders import enter_placeholder
from thawbox.sandbox.readiness import wait_ready
from thawbox.sandbox.reserve import Reserved
from thawbox.sandbox.reviving import (
    RestoreTimes,
    add_record,
    clocks_for,
    found_record,
    revive_tree,
    take_down,
    tell,
    with_second_try,
)
from thawbox.sandbox.shells import Shell, prepare_shell, raise_shell, remove_remains, use_shell
from thawbox.store import Fetched


def clone(
    context: Context, snapshot: SnapshotId, *, name: str = "", injection: Injection = NOTHING, owner: str = "",
    eager: bool = False, placeholder: int = 0,
) -> tuple[Record, RestoreTimes]:  # fmt: skip
    """A new sandbox from a snapshot, with a new id, name, hostname, machine id and address.

    With `eager` its memory is read from the files, though it may be held ready to be shared. With `placeholder` (a host
    pid) it lives in that pod's namespaces and under that pod's limits.
    Raises Incompatible, IntegrityError, RestoreFailed, HookFailed; nothing is left of it then.
    """
    begun = time.perf_counter()
    with (
        context.telemetry.step("clone", snapshot=snapshot) as step,
        context.reading(snapshot) as fetched,  # until its layers are held nobody may remove them
    ):
        context.warmth.used(snapshot, now=context.now())
        attempt = partial(
            _clone, context, fetched, begun, name=name, injection=injection, owner=owner, placeholder=placeholder
        )  # fmt: skip
        record, times = with_second_try(context, fetched, attempt, eager=eager)
        step.note(sandbox=record.id, restore_ms=times.restore_ms)
    return record, times


def _clone(
    context: Context, fetched: Fetched, begun: float, *, name: str, injection: Injection, owner: str, eager: bool,
    placeholder: int,
) -> tuple[Record, RestoreTimes]:  # fmt: skip
    body = read_body(fetched.manifest.body, snapshot=fetched.id)
    reserved = context.reserve.take(fetched.id) if not placeholder else None
    with ExitStack() as locks, ExitStack() as undo:
        if reserved is not None:
            locks.callback(os.close, reserved.lock)
            undo.enter_context(reserved.undo)
            identity = renamed(reserved.identity, name) if name else reserved.identity
        else:
            identity = new_identity(name, like=body.name)
            locks.enter_context(context.exclusive(identity.id))
            undo.callback(context.remove_locks, identity.id)
            undo.callback(remove_tree, context.directory(identity.id))
        wanted = _planned(context, body, identity, owner=owner, placeholder=placeholder)
        planned = add_record(context, replace(wanted, given=bool(injection)))
        undo.callback(context.journal.remove, planned.id)
        with context.telemetry.step("shell", sandbox=planned.id):
            if reserved is not None:
                record = _founded_like(reserved.ready.record, planned)
                shell = use_shell(context, reserved.ready, record, clock_offsets=clocks_for(body))
            else:
                record, rootfs = found_record(context, planned, fetched, undo)
                if placeholder:
                    enter_placeholder(context, record, undo)
                shell = raise_shell(context, record, rootfs, start_init=False, clock_offsets=clocks_for(body))
        undo.callback(take_down, context, record, shell)
        record = revive_tree(context, record, shell, body, fetched, eager=eager)
        if reserved is not None:
            reserved.ready.waiting.wait_done()
        restored = time.perf_counter()
        context.journal.update(record)
        undo.callback(remove_remains, context, record)
        _forget_callers(context, record)
        tell(context, record, body, what="clone", injection=injection)
        with context.telemetry.step("ready", sandbox=record.id):
            if record.spec.ready:  # else it is ready when its init answers, which it has just done
                wait_ready(context, record)
        undo.pop_all()
    return record, RestoreTimes((restored - begun) * 1000, (time.perf_counter() - begun) * 1000)


def prepare_clone(context: Context, snapshot: SnapshotId) -> Reserved:
    """A shell for a clone of this snapshot, with an identity of its own, ready for a tree.

    Raises what a clone raises; nothing is left of it then.
    """
    with context.reading(snapshot) as fetched, ExitStack() as undo:
        body = read_body(fetched.manifest.body, snapshot=fetched.id)
        identity = new_identity(like=body.name)
        lock = take_lock(context.lock(identity.id), timeout=0, what=f"sandbox {identity.id}")
        undo.callback(os.close, lock)
        with ExitStack() as mine:
            mine.callback(context.remove_locks, identity.id)
            mine.callback(remove_tree, context.directory(identity.id))
            planned = _planned(context, body, identity, owner="")
            record, rootfs = found_record(context, planned, fetched, mine)
            ready = prepare_shell(context, record, rootfs)
            mine.callback(take_down, context, record, Shell(ready.waiting.pid, ready.started))
            mine.callback(ready.waiting.destroy)
            reserved = Reserved(identity, ready, lock, mine.pop_all())
        undo.pop_all()
        return reserved


def _planned(context: Context, body: Body, identity: Identity, *, owner: str, placeholder: int = 0) -> Record:
    return Record(
        id=identity.id, name=identity.name, spec=replace(body.spec, name=identity.name, publish=()),
        phase=Phase.CREATING, created_at=context.now(), hostname=identity.hostname, machine_id=identity.machine_id,
        owner=owner, placeholder=placeholder,
    )  # fmt: skip


def _founded_like(ready: Record, planned: Record) -> Record:
    return replace(
        planned, layers=ready.layers, rootfs_kind=ready.rootfs_kind, rootfs_digest=ready.rootfs_digest,
        parent_snapshot=ready.parent_snapshot, boot_id=ready.boot_id,
    )  # fmt: skip


def _forget_callers(context: Context, record: Record) -> None:
    """End the clone's copies of `exec` sessions: who started them is connected to the original."""
    with open_link(context, record) as link:
        link.end_sessions()
