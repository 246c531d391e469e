"""What CRIU is doing within a dump or restore, as far as it says so: it notifies us as each part of its work ends.

At a notification CRIU waits for us, so what we do then (copying changed files, mending identities) is told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from thawbox.engines.criu_rpc import Notified
from thawbox.telemetry import Telemetry

NOTIFICATIONS = (
    "pre-dump", "network-lock", "post-dump", "network-unlock", "pre-restore", "setup-namespaces",
    "post-setup-namespaces", "post-restore", "pre-resume", "post-resume", "orphan-pts-master",
)  # fmt: skip
"""All that CRIU sends (criu/action-scripts.c)."""


class Phases:
    """Tells of each part of one request as a step `criu.until-NOTIFICATION`, and of our own as `criu.on-…`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._last = time.perf_counter()

    def of(self, on: Notified) -> Notified:
        """The same answers to notifications, with the phases told where anybody listens."""
        if not self._telemetry.observers:
            return on
        return {name: partial(self._notified, name, on.get(name)) for name in NOTIFICATIONS}

    def forked(self, pid: int, parts: Mapping[str, float]) -> None:
        """A template server has forked the CRIU that restores, `pid`; `parts` are what it says that it did for that, in
        order, with the seconds of each. What was done before and on the way is told as `template.until-fork`."""
        now = time.perf_counter()
        rest = sum(parts.values())
        self._telemetry.passed("template.until-fork", seconds=max(0.0, now - self._last - rest), ago=rest)
        for name, seconds in parts.items():
            rest -= seconds
            self._telemetry.passed(f"template.{name}", seconds=seconds, ago=rest, pid=pid)
        self._last = now

    def end(self) -> None:
        """The request is answered."""
        self._tell("criu.until-end")

    def _notified(self, name: str, act: Callable[[], None] | None) -> None:
        self._tell(f"criu.until-{name}")
        if act is not None:
            act()
            self._tell(f"criu.on-{name}")

    def _tell(self, name: str) -> None:
        now = time.perf_counter()
        self._telemetry.passed(name, seconds=now - self._last)
        self._last = now
