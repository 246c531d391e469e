"""What processes take of the machine's memory: their own, and what they share with others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes. `private` is freed when the processes end, `shared` is mapped by others too, `proportional` is private
    plus each shared page divided by the number of those that map it."""

    private: int = 0
    shared: int = 0
    proportional: int = 0

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(
            self.private + other.private, self.shared + other.shared, self.proportional + other.proportional
        )


def memory_use(pids: Iterable[int]) -> MemoryUse:
    """What these processes take together, from /proc/PID/smaps_rollup (proc(5)); those that are gone take nothing."""
    whole = MemoryUse()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        whole += _read(lines)
    return whole


def _read(lines: Iterable[str]) -> MemoryUse:
    private = shared = proportional = 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name.startswith("Private_"):
            private += _bytes(rest)
        elif name in ("Shared_Clean", "Shared_Dirty"):
            shared += _bytes(rest)
        elif name == "Pss":
            proportional += _bytes(rest)
    return MemoryUse(private, shared, proportional)


def _bytes(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024
