"""Preflight of a sandbox: what would make its checkpoint fail, found while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from thawbox.errors import DumpFailed, InvalidTransition, Unsupported
from thawbox.host.preflight import Finding, examine
from thawbox.lifecycle import ALIVE
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record


def preflight(context: Context, record: Record) -> tuple[Finding, ...]:
    """What in the sandbox cannot be frozen, or may not; raises InvalidTransition when it does not run."""
    if record.phase not in ALIVE:
        raise InvalidTransition(f"{record.name} is {record.phase.value}: there is nothing to examine")
    return _examine(context, record, thorough=True)


def check_freezable(context: Context, record: Record) -> None:
    """Raise Unsupported, naming each process and descriptor, when a dump is sure to fail. Cheap: no mappings read."""
    blocking = [one for one in _examine(context, record) if one.blocking]
    if blocking:
        raise Unsupported(
            f"{record.name} cannot be checkpointed and runs on: {'; '.join(map(str, blocking))}",
            remediation=_remedies(blocking),
        )


def explained(context: Context, record: Record, failed: DumpFailed) -> DumpFailed:
    """The same failure, with the processes and descriptors that are known to make a dump fail, if there are any."""
    blocking: list[Finding] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
        blocking += [one for one in _examine(context, record, thorough=True) if one.blocking]
    if not blocking:
        return failed
    return DumpFailed(
        f"{failed.cause}: {'; '.join(map(str, blocking))}", remediation=_remedies(blocking), log=failed.log
    )  # fmt: skip


def _examine(context: Context, record: Record, *, thorough: bool = False) -> tuple[Finding, ...]:
    """What is found twice: processes that start and end meanwhile are not seen whole."""
    cgroup = context.cgroup(record.id)
    found = examine(cgroup.pids(), keeper=record.keeper_pid, thorough=thorough)
    if not found:
        return ()
    again = examine(cgroup.pids(), keeper=record.keeper_pid, thorough=thorough)
    return tuple(one for one in found if one in again)


def _remedies(findings: Iterable[Finding]) -> str:
    return "; ".join(dict.fromkeys(one.remediation for one in findings))
