"""Parked clones in placeholders: what a Kubernetes node agent asks of its node.

Rule 1: a clone that is parked here belongs to its pod (`owner`), and whoever handed the pod out may thaw it.
Rule 2: while it is parked, its pod wants the golden snapshot's memory held: the pods of a pool share it.
Rule 3: snapshots of it that were sent to a store are this node's to drop again: all but the newest while it lives, and
those too when its pod is emptied.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator, Iterable

from thawbox.errors import CorruptSnapshot, SandboxNotFound, ThawboxError
from thawbox.model import SandboxId, SnapshotId
from thawbox.restart_plan import Policy, outdated
from thawbox.sandbox.body import read_body
from thawbox.sandbox.cloning import clone
from thawbox.sandbox.context import Context
from thawbox.sandbox.handle import Sandbox
from thawbox.sandbox.journal import Record
from thawbox.sandbox.recovering import made_of, present_snapshot
from thawbox.sandbox.restoring import restore
from thawbox.sandbox.warming import hold, leave

SENT = {"made-by": "node-agent"}
"""Labels of the snapshots that a store has as well."""
KEPT = 2
"""How many of them stay here while their sandbox lives."""
_PREFIX = "pod:"


def owner_of(pod: str) -> str:
    """In whose name a placeholder's sandbox stands in the journal; `pod` is the pod's uid."""
    return f"{_PREFIX}{pod}"


def park_in_placeholder(context: Context, snapshot: SnapshotId, *, pid: int, pod: str, name: str = "") -> Sandbox:
    """A clone in the placeholder whose main process is `pid`, ready and frozen. Raises as cloning does.

    What the pod held before is gone then, also when this fails.
    """
    empty_placeholder(context, pod)
    name = f"{name[:50].rstrip('-_.')}-{secrets.token_hex(3)}" if name else ""
    with _emptied_on_failure(context, pod):
        hold(context, snapshot, holder=owner_of(pod), shells=0)
        record, _ = clone(context, snapshot, name=name, owner=owner_of(pod), placeholder=pid)
        sandbox = Sandbox(context, record)
        sandbox.freeze()
    return sandbox


def let_run(context: Context, sandbox: Sandbox) -> None:
    """Thaw what is parked in a placeholder: it has been handed out, and its pod waits for no clone any more."""
    sandbox.thaw()
    leave(context, holder=sandbox.record.owner)


def recover_in_placeholder(context: Context, snapshot: SnapshotId, *, pid: int, pod: str) -> Sandbox:
    """The very sandbox that a snapshot was made of, running in a placeholder. Raises as restoring does."""
    empty_placeholder(context, pod)
    record, _ = restore(context, snapshot, placeholder=pid, owner=owner_of(pod))
    return Sandbox(context, record)


def pod_of(owner: str) -> str:
    """The pod in whose name a sandbox stands in the journal; empty for any other."""
    return owner.removeprefix(_PREFIX) if owner.startswith(_PREFIX) else ""


def all_placed(context: Context) -> list[Record]:
    """Every sandbox of a placeholder, dead or alive."""
    return [record for record in context.journal.all() if pod_of(record.owner)]


def sandbox_in(context: Context, pod: str) -> Sandbox | None:
    """What a pod's placeholder holds, dead or alive."""
    found = _all_in(context, pod)
    return found[-1] if found else None


def empty_placeholder(context: Context, pod: str) -> None:
    """Kill and remove what a pod's placeholder holds; nothing happens when that is nothing."""
    for sandbox in _all_in(context, pod):
        sandbox.remove(force=True)
    leave(context, holder=owner_of(pod))


def end_in_placeholder(context: Context, pod: str) -> None:
    """The same, for good: what was sent of it to a store goes from here too."""
    ended = [one.id for one in all_placed(context) if pod_of(one.owner) == pod and present_snapshot(context, one)]
    empty_placeholder(context, pod)
    for sandbox in ended:
        drop_sent(context, sandbox, keep=0)


def drop_sent(context: Context, sandbox: SandboxId, *, keep: int = KEPT) -> None:
    """Remove the snapshots of a sandbox that a store has, but the newest `keep` and what these are made upon."""
    try:
        present = context.journal.find(sandbox).parent_snapshot
    except SandboxNotFound:
        present = None
    for snapshot in outdated(made_of(context, sandbox, automatic=SENT), Policy(keep=keep), present):
        with contextlib.suppress(ThawboxError):  # it is read, or somebody has made something of it
            context.store.remove(snapshot)


def mark_sent(context: Context, snapshots: Iterable[SnapshotId], *, of: SnapshotId) -> None:
    """Label those that are of the same sandbox as `of`: they came from a store."""
    sandbox = _made_of(context, of)
    for snapshot in snapshots:
        if _made_of(context, snapshot) == sandbox:
            for key, value in SENT.items():
                context.store.label(snapshot, key, value)


def _made_of(context: Context, snapshot: SnapshotId) -> SandboxId | None:
    try:
        return read_body(context.store.manifest(snapshot).body, snapshot=snapshot).sandbox
    except CorruptSnapshot:
        return None


def _all_in(context: Context, pod: str) -> list[Sandbox]:
    return [Sandbox(context, record) for record in context.journal.all() if record.owner == owner_of(pod)]


@contextlib.contextmanager
def _emptied_on_failure(context: Context, pod: str) -> Generator[None]:
    try:
        yield
    except BaseException:
        empty_placeholder(context, pod)
        raise
