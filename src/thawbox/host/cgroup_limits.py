"""Limits of one cgroup: what to write where, on either version.

Sources: cgroup-v1/memory.rst, cgroup-v1/pids.rst, cgroup-v2.rst and scheduler/sched-bwc.rst of the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import InvalidSpec, Unsupported

LIMITED = ("memory", "cpu", "pids")
CPU_PERIOD_US = 100_000
"""The kernel's own default period of CPU bandwidth control."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory` in bytes, swap included; `cpus` in cores; `pids` in tasks. None means no limit of our own."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class LimitGroup:
    """The group at `path`, on a hierarchy of `version` 1 or 2, that carries one controller's limit."""

    path: Path
    version: int


_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"})
"""Absent on kernels built or booted without swap accounting, or older than the file."""


def apply_limits(limits: Limits, groups: Mapping[str, LimitGroup], *, lift: bool) -> None:
    """Write `limits` into the groups, given by controller; those that are None are lifted if `lift`, else left.

    Raises InvalidSpec when the kernel refuses a value. Lowering memory below what is in use is refused on version 1;
    on version 2 the kernel reclaims, then kills.
    """
    for name, value in _by_controller(limits).items():
        if name not in groups or (value is None and not lift):
            continue
        for file, text in limit_writes(name, value, version=groups[name].version):
            path = groups[name].path / file
            if file not in _OPTIONAL or path.exists():
                write_controller(path, text)


def require_controllers(limits: Limits, available: frozenset[str]) -> None:
    """Raise Unsupported when a limit is asked for whose controller is not among `available`."""
    for name, value in _by_controller(limits).items():
        if value is not None and name not in available:
            raise Unsupported(
                f"a limit on {name} is asked for, but no cgroup hierarchy of this host has that controller",
                remediation=f"enable the {name} controller, or leave the limit out",
            )


def limit_writes(controller: str, value: float | None, *, version: int) -> list[tuple[str, str]]:
    """The files of a group and what to write to each, in order, for one limit; None lifts it."""
    if controller == "cpu":
        return _cpu_writes(value, version)
    if controller == "pids":
        return [("pids.max", "max" if value is None else str(value))]
    return _memory_writes(value, version)


def node_weight(*, version: int, cpus: int) -> tuple[str, str]:
    """The file of a node's group, and what to write there: its sandboxes together weigh on each of `cpus` as much as an
    ordinary program. A new group weighs that in all: beside one busy program, a whole node would be one.
    """
    if version == 2:
        return "cpu.weight", str(min(100 * cpus, 10_000))  # the kernel's most
    return "cpu.shares", str(min(1024 * cpus, 262_144))


def write_controller(path: Path, text: str) -> None:
    """Write to a controller's file; raises InvalidSpec saying in words why the kernel refused."""
    try:
        path.write_text(text)
    except OSError as refused:
        if refused.errno == errno.EBUSY and path.name.startswith("memory."):
            cause = f"a memory limit of {text} bytes is less than what is in use"
            raise InvalidSpec(cause, remediation="give a higher limit") from refused
        cause = f"the kernel refused {text!r} for {path}: {refused.strerror}"
        raise InvalidSpec(cause, remediation="choose another limit") from refused


def _cpu_writes(cpus: float | None, version: int) -> list[tuple[str, str]]:
    quota = None if cpus is None else max(1000, round(cpus * CPU_PERIOD_US))  # the kernel's least is 1 ms
    if version == 2:
        return [("cpu.max", f"{'max' if quota is None else quota} {CPU_PERIOD_US}")]
    return [("cpu.cfs_period_us", str(CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(-1 if quota is None else quota))]


def _memory_writes(limit: float | None, version: int) -> list[tuple[str, str]]:
    if version == 2 and limit is None:
        return [("memory.max", "max"), ("memory.swap.max", "max")]
    if version == 2:
        # A tree that lost one process at random is in no state worth keeping: it dies whole and is recovered.
        return [("memory.oom.group", "1"), ("memory.swap.max", "0"), ("memory.max", str(limit))]
    # Memory and swap together may never be below memory alone, so that limit is lifted first.
    lifted = ("memory.memsw.limit_in_bytes", "-1")
    if limit is None:
        return [lifted, ("memory.limit_in_bytes", "-1")]
    return [lifted, ("memory.limit_in_bytes", str(limit)), ("memory.memsw.limit_in_bytes", str(limit))]


def _by_controller(limits: Limits) -> dict[str, float | None]:
    return {"memory": limits.memory, "cpu": limits.cpus, "pids": limits.pids}
