"""Preflight of a sandbox: what would make its checkpoint fail, found while it runs."""

from __future__ import annotations

from thawbox.errors import InvalidTransition, Unsupported
from thawbox.host.preflight import Finding, examine
from thawbox.lifecycle import ALIVE
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record


def preflight(context: Context, record: Record) -> tuple[Finding, ...]:
    """What in the sandbox cannot be frozen, or may not; raises InvalidTransition when it does not run."""
    if record.phase not in ALIVE:
        raise InvalidTransition(f"{record.name} is {record.phase.value}: there is nothing to examine")
    return examine(context.cgroup(record.id).pids(), keeper=record.keeper_pid, thorough=True)


def check_freezable(context: Context, record: Record) -> None:
    """Raise Unsupported, naming each process and descriptor, when a dump is sure to fail. Cheap: no mappings read."""
    blocking = [one for one in examine(context.cgroup(record.id).pids(), keeper=record.keeper_pid) if one.blocking]
    if blocking:
        remedies = dict.fromkeys(one.remediation for one in blocking)
        raise Unsupported(
            f"{record.name} cannot be checkpointed and runs on: {'; '.join(map(str, blocking))}",
            remediation="; ".join(remedies),
        )
