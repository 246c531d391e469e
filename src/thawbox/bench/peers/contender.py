"""What is asked of everyone who freezes a workload, thawbox included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

RESTORE = "restore"
COLD = "cold start"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds of one measurement, and the nonce that the program then told."""

    ms: float
    nonce: str = ""


class Contender(Protocol):
    """Somebody who starts, freezes and brings back one workload. Each verb clears away what it made.

    Constructing it may raise Unsupported: the report then says why there is no row. `close` leaves nothing.
    """

    @property
    def name(self) -> str:
        """As the report's rows call it."""
        ...

    @property
    def clocks(self) -> dict[str, str]:
        """The verbs that can be measured, and what the clock of each covers: none of what is not in it."""
        ...

    @property
    def nonce(self) -> str:
        """Of the program that was frozen; empty where nothing was."""
        ...

    def measure(self, verb: str) -> Measured:
        """One measurement."""
        ...

    def close(self) -> None: ...
