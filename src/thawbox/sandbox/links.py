"""Connections to a sandbox's init. A checkpoint must see none, so they are made one way only: here."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from thawbox.engines import INIT_PID
from thawbox.errors import NotFound, SandboxNotFound
from thawbox.host.files import locked
from thawbox.host.init_client import CONTROL_SOCKET, InitLink, SessionGone
from thawbox.host.inside import connect_inside
from thawbox.host.proc import children, pid_inside
from thawbox.lifecycle import ALIVE
from thawbox.model import Phase, SandboxId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record

ANSWER_SECONDS = 10.0


def open_link(context: Context, record: Record, *, timeout: float = ANSWER_SECONDS) -> InitLink:
    """A connection to the sandbox's init; waits while a checkpoint runs. `timeout` is seconds for each answer.

    What is exec'd over it finds the sandbox again after a checkpoint, a thaw, or a recovery of a lost sandbox.
    """
    return InitLink(_dial(context, record.id, timeout=timeout))


def without_dumps(context: Context, record: Record) -> AbstractContextManager[None]:
    """No dump begins during the block; raises LockTimeout when one takes too long to end."""
    lock = context.link_lock(record.id)
    return locked(lock, timeout=context.settings.lock_timeout, shared=True, what=f"the init of {record.name}")


def direct_link(record: Record) -> InitLink:
    """The same for whoever holds the link lock, and so the right to connect at this moment."""
    return InitLink.connect(record.keeper_pid, started=record.keeper_started, timeout=ANSWER_SECONDS)


def has_callers(record: Record) -> bool:
    """Whether anybody is connected to the sandbox's init, or waits to be; False only when certainly nobody is.

    Asking init itself would change its memory, and so the snapshot of a sandbox in which nothing else happened.
    """
    inits = [pid for pid in children(record.keeper_pid) if pid_inside(pid) == INIT_PID]
    sockets = [link for pid in inits for link in _descriptors(pid) if link.startswith("socket:")]
    if len(inits) != 1 or len(sockets) != 1:  # it listens on the one
        return True
    # A caller that was not accepted yet has no descriptor there; its socket belongs to our network namespace.
    waiting = re.compile(rb" 0 %b$" % re.escape(CONTROL_SOCKET.encode()), re.MULTILINE)
    return waiting.search(Path("/proc/self/net/unix").read_bytes()) is not None


def _descriptors(pid: int) -> list[str]:
    """What a process has open, by name; empty if it is gone."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
    return found


def _dial(context: Context, sandbox: SandboxId, *, timeout: float) -> Callable[[], socket.socket]:
    def dial() -> socket.socket:
        try:
            context.journal.find(sandbox)  # first: the lock of one that was removed must not be made anew
        except SandboxNotFound as error:
            raise SessionGone(error.cause) from None
        lock = context.link_lock(sandbox)
        with locked(lock, timeout=context.settings.lock_timeout, shared=True, what=f"the init of {sandbox}"):
            record = context.journal.find(sandbox)
            if record.phase is Phase.FROZEN:  # it would be accepted by nobody, and fail the next dump
                raise BlockingIOError(errno.EAGAIN, f"{record.name} is frozen")
            if record.phase in (Phase.EXITED, Phase.SUSPENDED):  # on purpose; one that was lost may be recovered
                raise SessionGone(f"{record.name} is {record.phase.value}")
            if record.phase not in ALIVE:
                raise NotFound(f"{record.name} is {record.phase.value}")
            return connect_inside(record.keeper_pid, CONTROL_SOCKET, started=record.keeper_started, timeout=timeout)

    return dial
