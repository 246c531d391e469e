"""What the machine is and how busy it was: without that no figure can be compared with another."""

from __future__ import annotations

import os
import platform
import sys
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
