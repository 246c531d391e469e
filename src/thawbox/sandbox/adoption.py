"""What a starting node does with what an earlier one left: adopt what runs, clean up after what is dead.

Rule 1: what a living command is working on (it holds the sandbox's lock) is left alone.
Rule 2: the journal decides what is ours: a running sandbox whose record is there is never touched.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import LockTimeout, SandboxNotFound
from thawbox.host import network
from thawbox.host.cgroup import list_groups
from thawbox.host.files import locked, names_in, remove_tree
from thawbox.host.nat_rules import table_name
from thawbox.lifecycle import ALIVE
from thawbox.model import Phase, SandboxId
from thawbox.sandbox.context import Context
from thawbox.sandbox.ending import release_layers, take_down
from thawbox.sandbox.journal import Record
from thawbox.sandbox.observe import is_alive, settle
from thawbox.sandbox.room import has_its_limit, mend_limit


@dataclass(frozen=True, slots=True)
class Adoption:
    """Ids of the sandboxes found running, found dead, and of half-made remains that were removed."""

    adopted: tuple[SandboxId, ...]
    settled: tuple[SandboxId, ...]
    removed: tuple[SandboxId, ...]


def adopt(context: Context) -> Adoption:
    """Bring journal and kernel into agreement; safe beside running commands, and quick when there is nothing to do."""
    adopted: list[SandboxId] = []
    settled: list[SandboxId] = []
    removed: list[SandboxId] = []
    records = {record.id: record for record in context.journal.all()}
    for record in records.values():
        if record.phase in ALIVE and is_alive(context, record):
            adopted.append(record.id)
            if record.phase is Phase.RUNNING:
                _thaw_if_left_frozen(context, record)
                _mend_limit_if_left_raised(context, record)
        elif record.phase in ALIVE:
            with contextlib.suppress(LockTimeout, SandboxNotFound), _idle(context, record.id):
                (removed if _settle(context, record.id) else settled).append(record.id)
    for sandbox in _strangers(context, records):
        with contextlib.suppress(LockTimeout), _idle(context, sandbox):
            _remove_remains(context, sandbox)
            removed.append(sandbox)
    _prune_network(context)
    return Adoption(tuple(adopted), tuple(settled), tuple(removed))


def _idle(context: Context, sandbox: SandboxId) -> contextlib.AbstractContextManager[None]:
    return locked(context.lock(sandbox), timeout=0, what=f"sandbox {sandbox}")


def _thaw_if_left_frozen(context: Context, record: Record) -> None:
    """Let a sandbox run on that was frozen by a `checkpoint --stop` which died before its snapshot was durable."""
    with contextlib.suppress(SandboxNotFound, LockTimeout):
        cgroup = context.cgroup(record.id)
        if not cgroup.is_freeze_requested():
            return
        with _idle(context, record.id):
            if context.journal.find(record.id).phase is Phase.RUNNING:
                cgroup.thaw()


def _mend_limit_if_left_raised(context: Context, record: Record) -> None:
    """Put back the memory limit of a sandbox that a checkpoint raised which died before it could."""
    if has_its_limit(context, record):
        return
    with contextlib.suppress(LockTimeout, SandboxNotFound), _idle(context, record.id):
        mend_limit(context, context.journal.find(record.id))


def _settle(context: Context, sandbox: SandboxId) -> bool:
    """Settle a dead record; True if it was never alive and was removed whole."""
    record = context.journal.find(sandbox)
    if record.phase is Phase.CREATING and not record.keeper_pid:
        _remove_remains(context, sandbox)
        return True
    if record.phase in ALIVE and not is_alive(context, record):
        settle(context, record)
    return False


def _strangers(context: Context, records: dict[SandboxId, Record]) -> list[SandboxId]:
    """Sandboxes with cgroups, directories or locks whose record does not say that they run (or are at all)."""
    groups = list_groups(context.layout, context.tag)
    alive = {record.id for record in records.values() if record.phase in ALIVE}
    directories = context.home / "sandboxes"
    kept = {SandboxId(path.name) for path in directories.iterdir()} if directories.is_dir() else set[SandboxId]()
    # pools, templates and the supervisor have locks there too: trying those would look like a second owner
    names = (name.partition(".")[0] for name in names_in(context.home / "locks"))
    locks = {SandboxId(name) for name in names if name.startswith("sb-")}
    return sorted((groups - alive) | ((kept | locks) - set(records)))


def _remove_remains(context: Context, sandbox: SandboxId) -> None:
    try:
        record = context.journal.find(sandbox)
    except SandboxNotFound:
        record = None
    if record is not None and record.phase in ALIVE and is_alive(context, record):
        return  # restored since we looked
    cgroup = context.cgroup(sandbox)
    cgroup.kill_all()
    cgroup.remove()
    if record is None or record.phase is Phase.CREATING:
        if record is not None:
            take_down(context, record, phase=Phase.LOST, why="never started")
            context.journal.remove(sandbox)
        remove_tree(context.directory(sandbox))
        release_layers(context, sandbox)
        context.remove_locks(sandbox)
        return
    for generation in context.directory(sandbox).iterdir():
        if generation.name != str(record.generation):
            remove_tree(generation)


def _prune_network(context: Context) -> None:
    """Remove network devices of this node whose sandbox is gone. Looking costs nothing; removing imports netlink."""
    devices = Path("/sys/class/net")
    mark = f"{table_name(context.tag)} "
    aliases = [path.read_text() for path in devices.glob("tb*/ifalias")]
    known = {record.id for record in context.journal.all()}
    if any(alias.startswith(mark) and alias.split()[1] not in known for alias in aliases):
        network.prune(context.tag, known)
