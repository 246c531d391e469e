"""The clocks of a time namespace (time_namespaces(7)): what its processes see, and how a new one goes on from there.

A monotonic clock that jumped back breaks every program that measures time; one that jumped ahead fires every timer
at once. So a restored sandbox's monotonic clock goes on where it stopped, on whatever machine, after whatever boot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Clocks:
    """CLOCK_MONOTONIC and CLOCK_BOOTTIME as seen inside, and the wall clock at that moment; nanoseconds."""

    monotonic: int
    boottime: int
    wall: int


def clocks_of(pid: int) -> Clocks:
    """The clocks as process `pid` sees them now; raises OSError when it is gone."""
    real = _real_clocks()
    monotonic, boottime = _offsets(pid)
    return Clocks(real.monotonic + monotonic, real.boottime + boottime, real.wall)


def offsets_to_go_on(stopped: Clocks) -> str:
    """What to write into a new time namespace's offsets for its clocks to go on from `stopped`.

    The monotonic clock stood still meanwhile; the boot clock counts the time slept, as after a suspend, unless the
    wall clock was set back. So the shell sees them; CRIU puts the tree into a namespace of its own below, whose boot
    clock goes on from the dump like the monotonic one.
    """
    return offsets_between(stopped, _real_clocks())


def offsets_between(stopped: Clocks, real: Clocks) -> str:
    """The same, for given values of the machine's own clocks."""
    slept = max(0, real.wall - stopped.wall)
    offsets = {"monotonic": stopped.monotonic - real.monotonic, "boottime": stopped.boottime + slept - real.boottime}
    return "".join(f"{name} {offset // _SECOND} {offset % _SECOND}\n" for name, offset in offsets.items())


def _real_clocks() -> Clocks:
    """The machine's own clocks: ours may be shifted too, when thawbox runs in a container."""
    monotonic, boottime = _offsets("self")
    return Clocks(
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) - monotonic,
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boottime,
        time.time_ns(),
    )


def _offsets(pid: int | str) -> tuple[int, int]:
    """Nanoseconds added to the monotonic and the boot clock for a process; 0 on a kernel without time namespaces."""
    try:
        lines = Path(f"/proc/{pid}/timens_offsets").read_text().splitlines()
    except FileNotFoundError:
        return 0, 0
    found = {name: int(seconds) * _SECOND + int(rest) for name, seconds, rest in map(str.split, lines)}
    return found["monotonic"], found["boottime"]
