"""Connections to a sandbox's init. A checkpoint must see none, so they are made one way only: here."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

from thawbox.errors import NotFound
from thawbox.host.files import locked
from thawbox.host.init_client import CONTROL_SOCKET, InitLink
from thawbox.host.inside import connect_inside
from thawbox.lifecycle import ALIVE
from thawbox.model import Phase, SandboxId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record

ANSWER_SECONDS = 10.0


def open_link(context: Context, record: Record, *, timeout: float = ANSWER_SECONDS) -> InitLink:
    """A connection to the sandbox's init; waits while a checkpoint runs. `timeout` is seconds for each answer.

    What is exec'd over it finds the sandbox again after a checkpoint, a thaw or a restore.
    """
    return InitLink(_dial(context, record.id, timeout=timeout))


def without_dumps(context: Context, record: Record) -> AbstractContextManager[None]:
    """No dump begins during the block; raises LockTimeout when one takes too long to end."""
    lock = context.link_lock(record.id)
    return locked(lock, timeout=context.settings.lock_timeout, shared=True, what=f"the init of {record.name}")


def direct_link(record: Record) -> InitLink:
    """The same for whoever holds the link lock, and so the right to connect at this moment."""
    return InitLink.connect(record.keeper_pid, started=record.keeper_started, timeout=ANSWER_SECONDS)


def _dial(context: Context, sandbox: SandboxId, *, timeout: float) -> Callable[[], socket.socket]:
    def dial() -> socket.socket:
        lock = context.link_lock(sandbox)
        lock = context.link_lock(sandbox)
        with locked(lock, timeout=context.settings.lock_timeout, shared=True, what=f"the init of {sandbox}"):
            record = context.journal.find(sandbox)
            if record.phase is Phase.FROZEN:  # it would be accepted by nobody, and fail the next dump
                raise BlockingIOError(errno.EAGAIN, f"{record.name} is frozen")
            if record.phase not in ALIVE:
                raise NotFound(f"{record.name} is {record.phase.value}")
            return connect_inside(record.keeper_pid, CONTROL_SOCKET, started=record.keeper_started, timeout=timeout)

    return dial
