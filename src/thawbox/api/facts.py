"""The node in figures, and what its doctor says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from thawbox.errors import Unavailable
from thawbox.host.proc import run_program
from thawbox.views import timestamp

if TYPE_CHECKING:
    from thawbox.api import shown
    from thawbox.api.service import Service

DOCTOR_KEPT = 600.0
"""Seconds for which the doctor's findings count: it freezes and restores a program, which takes a second."""
_DOCTOR_SECONDS = 120.0


def facts_of(service: Service) -> shown.Node:
    """What `GET /v1/node` answers."""
    node = service.node
    home = node.settings.home
    disk = shutil.disk_usage(home)
    memory = _memory()
    states = Counter(record.phase.value for record in node.context.journal.all())
    stored = node.context.store.records()
    return {
        "version": version("thawbox"),
        "home": str(home),
        "started_at": timestamp(service.started_at),
        "uptime_s": round(service.uptime(), 3),
        "cpus": os.cpu_count(),
        "memory": {"total": memory.get("MemTotal"), "available": memory.get("MemAvailable")},
        "disk": {"total": disk.total, "free": disk.free, "store": sum(one.bytes for one in stored)},
        "sandboxes": dict(states),
        "snapshots": len(stored),
        "pools": len(node.pools()),
        "event": service.events.last,
    }


def _memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}


class Doctor:
    """`thawbox doctor` in a process of its own, kept for ten minutes. One runs at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: shown.Doctor | None = None
        self._at = 0.0

    def findings(self, *, fresh: bool = False) -> shown.Doctor:
        """What it says, as `doctor --json`, and `at`: when. Raises Unavailable when it does not end."""
        with self._lock:
            if self._found is None or fresh or time.monotonic() - self._at > DOCTOR_KEPT:
                self._found = cast("shown.Doctor", {**self._ask(), "at": timestamp(time.time())})
                self._at = time.monotonic()
            return self._found

    def _ask(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "thawbox.cli", "doctor", "--json"]
        try:
            done = run_program(command, timeout=_DOCTOR_SECONDS)
            found: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise Unavailable(f"the doctor did not end well: {type(error).__name__}") from error
        return found
