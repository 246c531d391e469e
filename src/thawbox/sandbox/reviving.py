"""What restore and clone have in common: what a snapshot needs is found and held, and its tree is brought to life.

Rule: until the tree runs, the journal still tells what was before; a failure leaves exactly that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from thawbox.engines import Place
from thawbox.errors import RestoreFailed, Unavailable
from thawbox.host.clocks import offsets_to_go_on
from thawbox.host.databases import mend_identities
from thawbox.host.file_locks import SharedLock, is_held
from thawbox.host.files import locked, private_directory, remove_tree
from thawbox.host.namespaces import destroy_shell
from thawbox.host.rootfs import Rootfs
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Net, Phase
from thawbox.sandbox.body import Body, read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.hooks import Injection, tell_restored
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import Shell, generation_directory, remove_remains, rootfs_of
from thawbox.store import Fetched, check_compat

_Done_co = TypeVar("_Done_co", covariant=True)


class Attempt(Protocol[_Done_co]):
    """One try; it leaves nothing when it raises."""

    def __call__(self, *, eager: bool) -> _Done_co: ...


@dataclass(frozen=True, slots=True)
class RestoreTimes:
    """Milliseconds from the call until the tree ran, and until the sandbox answered."""

    restore_ms: float
    ready_ms: float


def add_record(context: Context, record: Record) -> Record:
    """Write a new record, with an address where its network needs one."""
    if record.spec.net is Net.NAT:
        return context.journal.add_with_address(record, context.settings.subnet)
    context.journal.add(record)
    return record


def found_record(context: Context, planned: Record, fetched: Fetched, undo: ExitStack) -> tuple[Record, Rootfs]:
    """The record over what it will be restored from, whose layers are held until `undo` unwinds, and its rootfs.

    Raises Incompatible where the snapshot is of another machine.
    """
    manifest = fetched.manifest
    rootfs = check_machine(context, fetched)
    undo.callback(context.store.release, holder(planned))
    context.store.hold(holder(planned), layers=[digest for digests in manifest.layers.values() for digest in digests])
    record = replace(
        planned, layers=dict(manifest.layers), rootfs_kind=rootfs.kind, rootfs_digest=rootfs.digest,
        parent_snapshot=fetched.id, boot_id=context.boot_id,
    )  # fmt: skip
    return record, rootfs


def check_machine(context: Context, fetched: Fetched) -> Rootfs:
    """The rootfs that a snapshot was made over; raises Incompatible where this machine cannot restore it."""
    body, compat = read_body(fetched.manifest.body, snapshot=fetched.id), fetched.manifest.compat
    rootfs = rootfs_of(context, body.spec, body.rootfs_kind, digest=compat.rootfs)
    check_compat(compat, replace(context.machine, rootfs=rootfs.digest), what=f"snapshot {fetched.id[:12]}")
    return rootfs


def clocks_for(body: Body) -> str:
    """The offsets with which a time namespace goes on from the frozen moment, as they are now."""
    return offsets_to_go_on(body.moment.clocks) if body.moment else ""


def revive_tree(
    context: Context, record: Record, shell: Shell, body: Body, fetched: Fetched, *, eager: bool = False
) -> Record:
    """Restore the tree into its shell; the record of what then runs. The caller takes the shell down on failure.

    Raises RestoreFailed, Unavailable where somebody else holds a lock that the tree would wait for.
    """
    record = replace(record, keeper_pid=shell.keeper, keeper_started=shell.started)
    cgroup = context.cgroup(record.id)
    place = Place(shell.keeper, cgroup_procs=(*cgroup.keeper_procs, *cgroup.tree_procs))
    databases = body.moment.databases if body.moment else ()

    def before_resume() -> None:
        mend_identities(cgroup.pids(), databases)

    try:
        with (
            _locks_are_free(context, record, body.moment.locks if body.moment else ()),
            context.telemetry.step("engine.restore", sandbox=record.id),
        ):
            told = before_resume if databases else None
            context.engine.restore(place, fetched.images[-1], before_resume=told, eager=eager)
    except RestoreFailed as failed:
        if cgroup.oom_kills():
            raise _does_not_fit(record, failed) from failed
        raise
    return replace(record, phase=next_phase(Phase.CREATING, Verb.STARTED, who=record.name))


@contextlib.contextmanager
def _locks_are_free(context: Context, record: Record, locks: Sequence[SharedLock]) -> Generator[None]:
    """Nobody holds what the tree had locked on files that it shares, and no other restore takes it in the block."""
    if not locks:
        yield
        return
    what = "the restore of locks on shared files"
    lock = private_directory(context.home / "locks") / "shared-files"
    with locked(lock, timeout=context.settings.lock_timeout, what=what):
        held = [str(lock) for lock in locks if is_held(lock, record.spec.mounts)]
        if held:
            raise Unavailable(
                f"{record.name} would wait for what somebody else holds: {'; '.join(held)}",
                remediation="end who holds it, the original or another clone; or let go of it before the checkpoint",
            )
        yield


_Done = TypeVar("_Done")


def with_second_try(context: Context, fetched: Fetched, attempt: Attempt[_Done], *, eager: bool) -> _Done:
    """What `attempt(eager=…)` gives: once more, from the files, when it failed with a tree whose memory was held ready.

    The server that held it may have died in the middle; what it held is given up, to be loaded anew.
    """
    images = fetched.images[-1]
    was_held = not eager and context.engine.is_warm(images)
    try:
        return attempt(eager=eager)
    except RestoreFailed:
        if not was_held:
            raise
    context.engine.cool(images)
    return attempt(eager=True)


def _does_not_fit(record: Record, failed: RestoreFailed) -> RestoreFailed:
    return RestoreFailed(
        f"{record.name} does not fit into its memory limit of {record.spec.memory} bytes while it is restored",
        remediation="a restore needs about 1 MiB more than the sandbox: give it a larger limit when it is run",
        log=failed.log,
    )


def tell(context: Context, record: Record, body: Body, *, what: str, injection: Injection) -> None:
    """Run the hooks of the programs that woke up; a tree whose hooks fail is not handed out."""
    moment = body.moment
    slept = 0.0 if moment is None else context.now() - moment.clocks.wall / 1e9
    names = moment.guests if moment else ()
    with context.telemetry.step("hooks", sandbox=record.id):
        tell_restored(context, record, what=what, names=names, slept=slept, injection=injection)


def holder(record: Record) -> str:
    """In whose name the store keeps the layers beneath a generation of a sandbox."""
    return f"sandbox:{record.id}:{record.generation}"


def take_down(context: Context, record: Record, shell: Shell) -> None:
    """Undo a shell and whatever was restored into it: processes, cgroups, network, the generation's directory."""
    destroy_shell(shell.keeper, started=shell.started)
    remove_remains(context, record)
    remove_tree(generation_directory(context, record))
