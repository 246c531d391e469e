"""The machine's own memory."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int:
    """Bytes that can be had without swapping (MemAvailable of proc(5)); 0 when it does not say."""
    return _line("MemAvailable")


def total_memory() -> int:
    """Bytes that the machine has."""
    return _line("MemTotal")


def _line(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
