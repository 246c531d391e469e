"""Snapshots finished while their sandbox runs on: in a thread of this process, or in a process of its own.

Rule 1: one unfinished snapshot per sandbox. Who finishes it holds the sandbox's lock for that; the next checkpoint
waits for it, and so does whoever waits for the token, which stands in the lock file.
Rule 2: this lock is taken before the sandbox's own, never after it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from thawbox.config import Settings
from thawbox.errors import DumpFailed, SnapshotNotFound, ThawboxError
from thawbox.host.files import locked, names_in, take_lock
from thawbox.host.proc import start_detached
from thawbox.model import SandboxId, SnapshotId
from thawbox.sandbox.context import FINISHING, Context
from thawbox.sandbox.finishing import finish_apart, read_unfinished
from thawbox.store import Staging


@dataclass(frozen=True, slots=True)
class Order:
    """What a process that finishes a snapshot is told, as JSON in a pipe."""

    settings: Settings
    staging: Path


def encode_order(order: Order) -> bytes:
    return msgspec.json.encode(order, enc_hook=str)


def decode_order(content: bytes) -> Order:
    return msgspec.json.decode(content, type=Order, dec_hook=lambda kind, value: kind(value))


def take_finishing_lock(context: Context, sandbox: SandboxId) -> int:
    """A descriptor that holds the right to finish snapshots of this sandbox; raises LockTimeout.

    It waits while another is being finished, so its time limit is the engine's.
    """
    return take_lock(
        context.finishing_lock(sandbox), timeout=context.settings.engine_timeout,
        what=f"the unfinished snapshot of {sandbox}",
    )  # fmt: skip


def release_finishing_lock(context: Context, sandbox: SandboxId, lock: int) -> None:
    context.finishing_lock(sandbox).unlink(missing_ok=True)
    os.close(lock)


def finish_in_thread(context: Context, staging: Staging, lock: int) -> None:
    """Finish in a thread; `close` of the node waits for it. The descriptor `lock` is closed at the end."""
    _announce(lock, staging)

    def work() -> None:
        with contextlib.suppress(ThawboxError, OSError):  # whoever waits for it is told
            _finish(context, staging, lock)

    context.threads.start(work, name=f"thawbox-finish-{staging.token[:6]}")


def hand_over(context: Context, staging: Staging, lock: int, *, program: Sequence[str]) -> None:
    """Let a process of its own finish: `program` is started with the numbers of two descriptors as arguments.

    The first is a pipe with an Order, the second holds the lock. This process may end as soon as this returns.
    """
    _announce(lock, staging)
    read_end, write_end = os.pipe()
    try:
        pid = start_detached(program, pass_fds=(read_end, lock))
        given = context.store.hand_over(staging, pid)
        os.write(write_end, encode_order(Order(context.settings, given.path)))
    finally:
        os.close(read_end)
        os.close(write_end)
        os.close(lock)


def _announce(lock: int, staging: Staging) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, staging.token.encode(), 0)


def wait_finished(context: Context, token: str, *, timeout: float) -> SnapshotId:
    """The snapshot that an unfinished one has become, once it has; `timeout` is seconds.

    Raises LockTimeout, DumpFailed with the reason when it was not made, SnapshotNotFound for a token that nobody is
    at work on: it is unknown, or its process died.
    """
    lock = _lock_of(context, token)
    if lock is not None:
        with locked(lock, timeout=timeout, what=f"the unfinished snapshot {token}"):
            lock.unlink()  # it may have died, or this be a new file
    outcome = context.store.outcome(token)
    if outcome is None:
        raise SnapshotNotFound(
            f"no snapshot came of {token}: the process that was finishing it died, or there never was one",
            remediation="make another checkpoint",
        )
    if outcome.id is None:
        raise DumpFailed(f"no snapshot came of {token}: {outcome.error}")
    return outcome.id


def _lock_of(context: Context, token: str) -> Path | None:
    directory = context.home / "locks"
    for name in names_in(directory):
        if name.endswith(FINISHING):
            path = directory / name
            try:
                if path.read_text() == token:
                    return path
            except FileNotFoundError:
                continue
    return None


def finish_order(context: Context, order: Order, *, lock: int) -> None:
    """What the process started by `hand_over` does; `lock` is the descriptor that came with the order."""
    _finish(context, Staging(order.staging), lock)


def _finish(context: Context, staging: Staging, lock: int) -> None:
    try:
        unfinished = read_unfinished(staging)
        try:
            finish_apart(context, staging, unfinished)
        finally:
            context.finishing_lock(unfinished.record.id).unlink(missing_ok=True)
    finally:
        os.close(lock)
