"""Memory for the copies of a copy-on-write dump: whether there is enough, and a limit that leaves them room.

Every page that the program writes while its copies are read is there twice, charged to its sandbox: at worst all that
it has. It must not be killed for that, so its limit is doubled for the moment; and the machine, and every group above
the sandbox's, must have as much to give.

Rule 1: a raised limit is put back by whoever raised it, else by the next node that looks or the next checkpoint.
Rule 2: where memory might not be enough, the dump is a plain one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from thawbox.errors import InvalidSpec, SandboxNotFound
from thawbox.host.cgroup import Cgroup
from thawbox.host.spare_memory import spare_memory
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record

SPARE = 64 << 20
"""Bytes that must be left for everybody else, and for page tables."""

_PUT_BACK_SECONDS = 5.0


def why_no_room(context: Context, record: Record) -> str:
    """Why copies of the sandbox's memory might be too much, in words; empty when there is room."""
    cgroup = context.cgroup(record.id)
    needed = cgroup.private_memory()
    if needed is None:
        return "no cgroup tells how much memory the sandbox has"
    spare = spare_memory(cgroup)
    if spare >= needed + SPARE:
        return ""
    return f"{spare >> 20} MiB of memory are free for copies of {needed >> 20} MiB"


@contextlib.contextmanager
def room_for_copies(context: Context, record: Record) -> Generator[None]:
    """For the block the sandbox may have twice its memory limit; nothing happens when it has none."""
    limit = _own_limit(record)
    if limit is None:
        yield
        return
    cgroup = context.cgroup(record.id)
    try:
        cgroup.set_memory_limit(2 * limit + SPARE)
        yield
    finally:
        put_back(cgroup, limit)


def put_back(cgroup: Cgroup, limit: int) -> None:
    """Give the sandbox the limit it is to have; nothing happens if it has it, or is gone.

    What its copies held is free when they are dead. Should it have grown past its limit meanwhile, version 2 kills it,
    as it would have before; version 1 refuses, and the next checkpoint or node tries again.
    """
    deadline = time.monotonic() + _PUT_BACK_SECONDS
    with contextlib.suppress(SandboxNotFound):
        while not cgroup.has_memory_limit(limit):
            try:
                cgroup.set_memory_limit(limit)
            except InvalidSpec:
                if time.monotonic() > deadline:
                    _tell(cgroup, limit)
                    return
                time.sleep(0.01)  # the kernel tells nobody when it has uncharged what the dead had
            else:
                return


def _tell(cgroup: Cgroup, limit: int) -> None:
    import structlog  # with rich behind it, a tenth of a second, and hardly ever needed

    structlog.get_logger().warning("limit.raised_still", sandbox=cgroup.sandbox_id, limit=limit)


def mend_limit(context: Context, record: Record) -> None:
    """Put back a limit that was raised by a command which died before it could; the caller holds the lock."""
    limit = _own_limit(record)
    if limit is not None:
        put_back(context.cgroup(record.id), limit)


def has_its_limit(context: Context, record: Record) -> bool:
    """Whether the sandbox has the memory limit of its spec, or is gone."""
    limit = _own_limit(record)
    with contextlib.suppress(SandboxNotFound):
        return limit is None or context.cgroup(record.id).has_memory_limit(limit)
    return True


def _own_limit(record: Record) -> int | None:
    """The memory limit that the sandbox was given; in a placeholder the pod's holds, which is not ours to change."""
    return None if record.placeholder else record.spec.memory


__all__ = ["has_its_limit", "mend_limit", "room_for_copies", "why_no_room"]
