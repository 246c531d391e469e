"""What the machine is and how busy it was: without that no figure can be compared with another."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path


def machine_facts() -> dict[str, str]:
    """Facts by name, in words: processor, cores, memory, kernel, system, cgroups, load. No host name, no path."""
    return {
        "processor": _field("/proc/cpuinfo", ("model name", "Model", "CPU implementer")) or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{_memory_kib() / 2**20:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _os_name(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "cgroups": "version 2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "version 1 or both",
        "virtual": "yes" if " hypervisor" in Path("/proc/cpuinfo").read_text() else "not seen",
        "load": load(),
    }


def load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


_WINDOW = 0.1
"""Seconds over which the cores' idleness is looked at: long enough for the kernel's ticks to say something."""
_QUIET = 0.9
"""Share of idle time from which others do not disturb a measurement."""


def wait_quiet(*, timeout: float) -> bool:
    """Wait until nobody else uses the cores, at most `timeout` seconds; whether they are idle now.

    What happens after that nobody knows: it makes disturbed samples fewer, not impossible.
    """
    deadline = time.monotonic() + timeout
    while True:
        before = _ticks()
        time.sleep(_WINDOW)
        idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
        if total and idle >= _QUIET * total:
            return True
        if time.monotonic() >= deadline:
            return False


def _ticks() -> tuple[int, int]:
    """Idle ticks (waiting for the disk is not idle) and all ticks of all cores since boot: line 1 of /proc/stat."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3], sum(fields)


def _field(path: str, keys: tuple[str, ...]) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _memory_kib() -> int:
    return int((_field("/proc/meminfo", ("MemTotal",)) or "0 kB").split()[0])


def _os_name() -> str:
    found = Path("/etc/os-release")
    for line in found.read_text().splitlines() if found.exists() else ():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return "unknown"
