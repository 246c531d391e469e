"""Ending a sandbox: stop, remove, and the taking down that both share with `checkpoint --stop`."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace

from thawbox.errors import InvalidTransition, NotFound, Unavailable
from thawbox.host.files import remove_tree
from thawbox.host.proc import wait_gone
from thawbox.lifecycle import ALIVE, Verb, next_phase
from thawbox.model import Phase, SandboxId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import direct_link, without_dumps
from thawbox.sandbox.observe import observe
from thawbox.sandbox.shells import remove_remains

STOPPED = "stopped"
"""Why a sandbox ended that was told to: nobody brings it back by himself."""


def stop(context: Context, record: Record, *, timeout: float) -> Record:
    """End the main program by SIGTERM, after `timeout` seconds by SIGKILL; the caller holds the sandbox's lock.

    Nothing happens to a sandbox that has ended. Its files stay until it is removed.
    """
    record = observe(context, record)
    after = next_phase(record.phase, Verb.STOP, who=record.name)
    if record.phase not in ALIVE:
        return record
    if record.phase is Phase.FROZEN:
        context.cgroup(record.id).thaw()
    _ask_to_end(context, record)
    wait_gone(record.keeper_pid, started=record.keeper_started, timeout=timeout)
    stopped = take_down(context, record, phase=after, why=STOPPED)
    context.journal.update(stopped)
    return stopped


def _ask_to_end(context: Context, record: Record) -> None:
    with (
        # it may have ended just now, or its init may not answer: then SIGKILL follows
        contextlib.suppress(NotFound, OSError, Unavailable),
        without_dumps(context, record),
        direct_link(record) as link,
    ):
        link.signal(signal.SIGTERM)


def take_down(context: Context, record: Record, *, phase: Phase, why: str) -> Record:
    """Kill what runs, remove what the kernel holds of it, and return the record of an ended sandbox."""
    remove_remains(context, record)
    return replace(record, phase=phase, keeper_pid=0, keeper_started=0, ended_at=context.now(), ended_why=why)


def remove(context: Context, record: Record, *, force: bool = False) -> None:
    """Remove an ended sandbox with its files; its snapshots stay. `force` ends a running one first, by SIGKILL.

    Raises InvalidTransition for a running one without `force`.
    """
    record = observe(context, record)
    if record.phase in ALIVE and not force:
        raise InvalidTransition(f"{record.name} is {record.phase.value}", remediation="stop it first, or use --force")
    remove_remains(context, record)
    remove_tree(context.directory(record.id))
    release_layers(context, record.id)
    context.journal.remove(record.id)
    context.remove_locks(record.id)


def release_layers(context: Context, sandbox: SandboxId) -> None:
    """Let go of the layers that any generation of a sandbox lay over."""
    for holder in context.store.holders():
        if holder.startswith(f"sandbox:{sandbox}:"):
            context.store.release(holder)
