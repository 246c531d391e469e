"""`thawbox serve` as a process of its own, and what it holds while it runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli_process import Cli

WAIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Served:
    """A running service."""

    pid: int
    socket: Path

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    def links(self) -> list[str]:
        """What its descriptors lead to."""
        found: list[str] = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
        return found


def start(cli: Cli) -> tuple[subprocess.Popen[bytes], Served]:
    """Start the service and return once it answers."""
    process = subprocess.Popen(cli.argv("serve", "--json"), env=cli.environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    socket = Path(json.loads(process.stdout.readline())["socket"])
    return process, Served(process.pid, socket)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return once it holds; fail after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
