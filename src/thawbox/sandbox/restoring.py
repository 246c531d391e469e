"""Restore and clone: a snapshot's images brought to life inside a shell that was prepared for them.

Rule 1: a restore keeps id, name, address, limits and identity; a clone gets new ones. Nothing else differs.
Rule 2: until the tree runs, the journal still tells what was before; a failure leaves exactly that.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from thawbox.engines import Place
from thawbox.errors import RestoreFailed, SandboxNotFound
from thawbox.host.clocks import offsets_to_go_on
from thawbox.host.databases import mend_identities
from thawbox.host.files import remove_tree
from thawbox.host.namespaces import destroy_shell
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Net, Phase, SnapshotId, checked_name
from thawbox.sandbox.body import Body, read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.hooks import NOTHING, Injection, tell_restored
from thawbox.sandbox.identity import new_identity
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link
from thawbox.sandbox.observe import observe
from thawbox.sandbox.readiness import wait_ready
from thawbox.sandbox.shells import generation_directory, raise_shell, remove_remains, rootfs_of
from thawbox.store import Fetched, check_compat


@dataclass(frozen=True, slots=True)
class RestoreTimes:
    """Milliseconds from the call until the tree ran, and until the sandbox answered."""

    restore_ms: float
    ready_ms: float


def restore(context: Context, snapshot: SnapshotId, *, injection: Injection = NOTHING) -> tuple[Record, RestoreTimes]:
    """Bring the sandbox that a snapshot was made of back, under the same id, name, address and limits.

    Raises InvalidTransition while it still runs, Incompatible, IntegrityError, RestoreFailed, HookFailed; then nothing
    changed.
    """
    begun = time.perf_counter()
    with (
        context.telemetry.step("restore", snapshot=snapshot) as step,
        context.reading(snapshot) as fetched,  # until its layers are held nobody may remove them
    ):
        record, times = _restore(context, fetched, begun, injection=injection)
        step.note(sandbox=record.id, restore_ms=times.restore_ms)
    return record, times


def _restore(context: Context, fetched: Fetched, begun: float, *, injection: Injection) -> tuple[Record, RestoreTimes]:
    body = read_body(fetched.manifest.body, snapshot=fetched.id)
    with context.exclusive(body.sandbox):
        before = _record_before(context, body)
        base = before if before is not None else _record_from(context, body)
        planned = replace(
            base, spec=body.spec, hostname=body.hostname, machine_id=body.machine_id,
            phase=next_phase(base.phase, Verb.RESTORE, who=base.name), generation=base.generation + 1,
            ended_at=None, ended_why="",
        )  # fmt: skip
        with ExitStack() as undo:
            if before is None:
                context.journal.add(planned)
                undo.callback(context.journal.remove, planned.id)
            record = _bring_to_life(context, planned, fetched, undo)
            context.journal.update(record)
            if before is not None:
                undo.callback(context.journal.update, before)
            _tell(context, record, body, what="restore", injection=injection)
            undo.pop_all()
        times = _times(context, record, begun)
        if before is not None:
            context.threads.start(partial(_drop_generation, context, before), name=f"thawbox-drop-{before.id}")
        return record, times


def _drop_generation(context: Context, before: Record) -> None:
    """Remove the writable layer that a restore has replaced: many small files, which can take a busy disk 30 ms."""
    remove_tree(generation_directory(context, before))
    context.store.release(_holder(before))


def clone(
    context: Context, snapshot: SnapshotId, *, name: str = "", injection: Injection = NOTHING, owner: str = ""
) -> tuple[Record, RestoreTimes]:
    """A new sandbox from a snapshot, with a new id, name, hostname, machine id and address.

    Raises Incompatible, IntegrityError, RestoreFailed, HookFailed; nothing is left of it then.
    """
    begun = time.perf_counter()
    with (
        context.telemetry.step("clone", snapshot=snapshot) as step,
        context.reading(snapshot) as fetched,  # until its layers are held nobody may remove them
    ):
        record, times = _clone(context, fetched, begun, name=name, injection=injection, owner=owner)
        step.note(sandbox=record.id, restore_ms=times.restore_ms)
    return record, times


def _clone(
    context: Context, fetched: Fetched, begun: float, *, name: str, injection: Injection, owner: str
) -> tuple[Record, RestoreTimes]:
    body = read_body(fetched.manifest.body, snapshot=fetched.id)
    identity = new_identity(name, like=body.name)
    planned = Record(
        id=identity.id, name=identity.name, spec=replace(body.spec, name=identity.name, publish=()),
        phase=Phase.CREATING, created_at=context.now(), hostname=identity.hostname, machine_id=identity.machine_id,
        owner=owner,
    )  # fmt: skip
    with context.exclusive(planned.id), ExitStack() as undo:
        undo.callback(context.remove_locks, planned.id)
        undo.callback(remove_tree, context.directory(planned.id))
        planned = add_record(context, planned)
        undo.callback(context.journal.remove, planned.id)
        record = _bring_to_life(context, planned, fetched, undo)
        restored = time.perf_counter()
        context.journal.update(record)
        undo.callback(remove_remains, context, record)
        _forget_callers(context, record)
        _tell(context, record, body, what="clone", injection=injection)
        with context.telemetry.step("ready", sandbox=record.id):
            if record.spec.ready:  # else it is ready when its init answers, which it has just done
                wait_ready(context, record)
        undo.pop_all()
    return record, RestoreTimes((restored - begun) * 1000, (time.perf_counter() - begun) * 1000)


def _tell(context: Context, record: Record, body: Body, *, what: str, injection: Injection) -> None:
    """Run the hooks of the programs that woke up; a tree whose hooks fail is not handed out."""
    moment = body.moment
    slept = 0.0 if moment is None else context.now() - moment.clocks.wall / 1e9
    names = moment.guests if moment else ()
    with context.telemetry.step("hooks", sandbox=record.id):
        tell_restored(context, record, what=what, names=names, slept=slept, injection=injection)


def _forget_callers(context: Context, record: Record) -> None:
    """End the clone's copies of `exec` sessions: who started them is connected to the original."""
    with open_link(context, record) as link:
        link.end_sessions()


def add_record(context: Context, record: Record) -> Record:
    """Write a new record, with an address where its network needs one."""
    if record.spec.net is Net.NAT:
        return context.journal.add_with_address(record, context.settings.subnet)
    context.journal.add(record)
    return record


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


def _bring_to_life(context: Context, planned: Record, fetched: Fetched, undo: ExitStack) -> Record:
    manifest = fetched.manifest
    body = read_body(manifest.body, snapshot=fetched.id)
    rootfs = rootfs_of(context, body.spec, body.rootfs_kind, digest=manifest.compat.rootfs)
    check_compat(manifest.compat, replace(context.machine, rootfs=rootfs.digest), what=f"snapshot {fetched.id[:12]}")
    undo.callback(context.store.release, _holder(planned))
    context.store.hold(_holder(planned), layers=[digest for digests in manifest.layers.values() for digest in digests])
    record = replace(
        planned, layers=dict(manifest.layers), rootfs_kind=rootfs.kind, rootfs_digest=rootfs.digest,
        parent_snapshot=fetched.id, boot_id=context.boot_id,
    )  # fmt: skip
    offsets = offsets_to_go_on(body.moment.clocks) if body.moment else ""
    with context.telemetry.step("shell", sandbox=record.id):
        shell = raise_shell(context, record, rootfs, start_init=False, clock_offsets=offsets)
    undo.callback(_take_down, context, record, shell.keeper)
    record = replace(record, keeper_pid=shell.keeper, keeper_started=shell.started)
    cgroup = context.cgroup(record.id)
    place = Place(shell.keeper, cgroup_procs=(*cgroup.keeper_procs, *cgroup.tree_procs))
    databases = body.moment.databases if body.moment else ()

    def before_resume() -> None:
        mend_identities(cgroup.pids(), databases)

    try:
        with context.telemetry.step("engine.restore", sandbox=record.id):
            told = before_resume if databases else None
            context.engine.restore(place, fetched.images[-1], before_resume=told)
    except RestoreFailed as failed:
        if cgroup.oom_kills():
            raise _does_not_fit(record, failed) from failed
        raise
    return replace(record, phase=next_phase(Phase.CREATING, Verb.STARTED, who=record.name))


def _does_not_fit(record: Record, failed: RestoreFailed) -> RestoreFailed:
    return RestoreFailed(
        f"{record.name} does not fit into its memory limit of {record.spec.memory} bytes while it is restored",
        remediation="a restore needs about 1 MiB more than the sandbox: give it a larger limit when it is run",
        log=failed.log,
    )


def _holder(record: Record) -> str:
    """In whose name the store keeps the layers beneath a generation of a sandbox."""
    return f"sandbox:{record.id}:{record.generation}"


def _take_down(context: Context, record: Record, keeper: int) -> None:
    destroy_shell(keeper)
    remove_remains(context, record)
    remove_tree(generation_directory(context, record))


def _times(context: Context, record: Record, begun: float) -> RestoreTimes:
    restored = time.perf_counter()
    with context.telemetry.step("ready", sandbox=record.id):
        wait_ready(context, record)
    return RestoreTimes((restored - begun) * 1000, (time.perf_counter() - begun) * 1000)
