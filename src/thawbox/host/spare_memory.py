"""How much memory a sandbox could still be given: by the machine, and by every group above its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from thawbox.host.cgroup import Cgroup
from thawbox.host.machine_memory import available_memory

_USED_AND_LIMIT = {1: ("memory.usage_in_bytes", "memory.limit_in_bytes"), 2: ("memory.current", "memory.max")}


def spare_memory(cgroup: Cgroup) -> int:
    """Bytes that the sandbox could have besides what it has, were it not for its own limit."""
    return min([available_memory(), *_left_above(cgroup)])


def _left_above(cgroup: Cgroup) -> Iterator[int]:
    """What each group above the sandbox's has left of its limit; page cache counts as used. None for no limit."""
    seat = cgroup.layout.seat("memory")
    if seat is None:
        return
    for group in cgroup.path.parents:
        if group == seat.mount.parent:
            return
        with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: "max", no limit
            used, limit = (int((group / name).read_text()) for name in _USED_AND_LIMIT[seat.version])
            yield limit - used
