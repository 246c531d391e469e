"""Seeing what became of a sandbox: the journal says what was, /proc and the cgroup say what is."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import msgspec

from thawbox.host.proc import start_time
from thawbox.lifecycle import ALIVE, Verb, next_phase
from thawbox.model import Phase
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import open_private, remove_remains


@dataclass(frozen=True, slots=True)
class Ending:
    """How the main program ended: `status` as a shell shows it (128 + signal), `why` in words.

    With `never_began` it could not even be started.
    """

    status: int | None
    why: str
    never_began: bool = False


def is_alive(context: Context, record: Record) -> bool:
    """Whether the very process that the journal names as pid 1 of the sandbox still runs."""
    return (
        record.boot_id == context.boot_id
        and record.keeper_pid > 0
        and start_time(record.keeper_pid) == record.keeper_started
    )


def observe(context: Context, record: Record) -> Record:
    """The record as it is now, the journal brought up to date, and the remains of a dead sandbox removed.

    Call it under the sandbox's lock when the answer decides something; without, it is what was true a moment ago.
    """
    if record.phase not in ALIVE:
        return record
    if is_alive(context, record):
        return record
    if record.phase is Phase.CREATING and not record.keeper_pid:
        return record  # somebody is making it, or died doing so: `adopt` tells them apart by the lock
    return settle(context, record)


def settle(context: Context, record: Record) -> Record:
    """Record the end of a sandbox whose pid 1 is gone, and remove what it left in the kernel."""
    ending = ending_of(context, record)
    remove_remains(context, record)
    verb = Verb.EXIT if ending.status is not None else Verb.DIED
    settled = replace(
        record, phase=next_phase(record.phase, verb, who=record.name), keeper_pid=0, keeper_started=0,
        ended_at=context.now(), ended_why=ending.why,
    )  # fmt: skip
    context.journal.update(settled)
    return settled


_LONGEST_EXIT = 4096
"""Bytes; init writes far less, but what stands there may be the sandbox's own."""


class _Exit(msgspec.Struct):
    """What init leaves in `/.thawbox/exit` (native/init/PROTOCOL.md)."""

    status: int
    signal: int
    cause: str = ""


def exit_status(context: Context, record: Record) -> int | None:
    """The main program's status as a shell shows it, if it ended by itself; None if it did not, or nobody knows."""
    ended = _read_exit(context, record)
    return None if ended is None else 128 + ended.signal if ended.signal else ended.status


def ending_of(context: Context, record: Record) -> Ending:
    """What is known about why a dead sandbox died."""
    ended = _read_exit(context, record)
    if ended is not None and ended.signal == signal.SIGKILL and _oom_kills(context, record):
        return Ending(128 + ended.signal, "out of memory: the kernel killed its program at its memory limit")
    if ended is not None and ended.signal:
        return Ending(128 + ended.signal, f"its program was killed by {_signal_name(ended.signal)}")
    if ended is not None:
        why = ended.cause or f"its program exited with {ended.status}"
        return Ending(ended.status, why, never_began=bool(ended.cause))
    if record.boot_id != context.boot_id:
        return Ending(None, "the machine was restarted")
    if _oom_kills(context, record):
        return Ending(None, "out of memory: the kernel killed it at its memory limit")
    return Ending(None, "its processes were killed from outside")


def _oom_kills(context: Context, record: Record) -> int:
    try:
        return context.cgroup(record.id).oom_kills()
    except OSError:
        return 0  # its groups are gone: whoever settled it looked before


def _read_exit(context: Context, record: Record) -> _Exit | None:
    try:
        with os.fdopen(open_private(context, record, "exit"), "rb") as file:
            return msgspec.json.decode(file.read(_LONGEST_EXIT), type=_Exit)
    except (OSError, msgspec.DecodeError):
        return None  # it did not get to writing one, or what stands there is not init's


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
