"""Word of a sandbox that comes near its memory limit, before the kernel kills anything in it."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack

from thawbox.errors import Unsupported
from thawbox.host.cgroup import Cgroup, OomEvents

NEAR = 0.9
"""The part of the limit from which it is near. What the kernel could drop (page cache) counts as used."""
_STALLED = "some 100000 1000000"
"""Version 2: some task waited for memory for 100 ms of one second (Documentation/accounting/psi.rst)."""


def open_pressure_events(cgroup: Cgroup, *, limit: int) -> OomEvents:
    """A descriptor to wait on; `limit` is the sandbox's memory limit in bytes.

    Version 1: usage crossed `NEAR` of the limit, in either direction (cgroup-v1/memory.rst, "Memory thresholds").
    Version 2, which knows no thresholds: tasks stall for want of memory. It may also wake when the group goes.
    Raises Unsupported where the kernel tells of neither, OSError when the group is gone.
    """
    seat = cgroup.layout.seat("memory")
    if seat is None:
        raise Unsupported("no memory controller on this host", remediation="boot with cgroup_enable=memory")
    if seat.version == 2:
        fd = os.open(cgroup.path / "memory.pressure", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, _STALLED.encode())
        except OSError:
            os.close(fd)
            raise
        return OomEvents(fd, select.POLLPRI)
    with ExitStack() as undo:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, event)
        usage = os.open(cgroup.path / "memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)
        try:
            control = os.open(cgroup.path / "cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(control, f"{event} {usage} {int(limit * NEAR)}".encode())
            finally:
                os.close(control)
        finally:
            os.close(usage)
        undo.pop_all()
    return OomEvents(event, select.POLLIN)


def is_near(cgroup: Cgroup, *, limit: int) -> bool:
    """Whether the sandbox is near its limit now; raises SandboxNotFound when its groups are gone."""
    return cgroup.stats().memory >= limit * NEAR
