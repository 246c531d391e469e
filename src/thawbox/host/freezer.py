"""Freezing and thawing one cgroup, on either version.

Version 1 writes a word to `freezer.state` and gives no notice when it is done, so it is read again until it is;
version 2 writes `cgroup.freeze` and wakes whoever polls `cgroup.events`.

Rule 1: no task is left frozen between vfork and exec if that can be helped: nobody could stop its parent with ptrace,
which waits for the exec, and so nobody could dump the tree.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import Unavailable

_VFORK_PAUSE = 0.001
"""Seconds that a vforked child is given to come to its exec."""
_VFORK_WAITS = frozenset({"kernel_clone", "wait_for_vfork_done", "_do_fork"})
"""Kernel functions, by kernel version, in which a task sleeps only for its vforked child (`kernel/fork.c`)."""
_STOPS = frozenset({"do_signal_stop"})
"""Kernel functions in which a task sleeps while it is stopped (`kernel/signal.c`)."""


@dataclass(frozen=True, slots=True)
class Freezer:
    """The freezer of the group at `path`, on a hierarchy of `version` 1 or 2."""

    path: Path
    version: int

    def freeze(self, *, timeout: float) -> None:
        """Return once every task of the group is frozen; freezing twice is no error.

        Raises Unavailable, with the group thawed again, when a task could not be frozen within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.request_freeze()
        try:
            self._wait_frozen(deadline)
            while self._in_vfork() and time.monotonic() + _VFORK_PAUSE < deadline:
                self.thaw()
                time.sleep(_VFORK_PAUSE)
                self.request_freeze()
                self._wait_frozen(deadline)
        except TimeoutError:
            self.thaw()
            raise Unavailable(
                f"{self.path} did not freeze within {timeout:g} s: {self._awake()}; it was thawed again",
                remediation="a task in an uninterruptible wait (a dead network file system, a device) holds it up",
            ) from None

    def request_freeze(self) -> None:
        """Freeze without waiting: tasks that a tracer holds stopped stay so when it lets them go."""
        self._request(frozen=True)

    def thaw(self) -> None:
        """Let the tasks of the group run; thawing twice is no error."""
        self._request(frozen=False)

    def is_frozen(self) -> bool:
        """Whether every task of the group is frozen now."""
        if self.version == 1:
            return (self.path / "freezer.state").read_text() == "FROZEN\n"
        return "frozen 1" in (self.path / "cgroup.events").read_text().splitlines()

    def is_requested(self) -> bool:
        """Whether the group is frozen or on its way there."""
        name = "freezer.self_freezing" if self.version == 1 else "cgroup.freeze"
        return (self.path / name).read_text() == "1\n"

    def _request(self, *, frozen: bool) -> None:
        if self.version == 1:
            (self.path / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        else:
            (self.path / "cgroup.freeze").write_text("1" if frozen else "0")

    def _wait_frozen(self, deadline: float) -> None:
        if self.version == 1:
            pause = 0.00005  # a quiet tree freezes in 0.1 ms; the pause doubles so that a stuck one costs no CPU
            while not self.is_frozen():
                if time.monotonic() >= deadline:
                    raise TimeoutError
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
                # A task that was about to wait for its vforked child when it was told has overheard it for good.
                self.request_freeze()
            return
        events = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while b"frozen 1" not in os.pread(events, 4096, 0).splitlines():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                poll.poll(left * 1000)
        finally:
            os.close(events)

    def holds_stopped(self) -> bool:
        """Whether a task of the group is stopped by a signal, frozen or not."""
        return self._any_waits_in(_STOPS)

    def _in_vfork(self) -> bool:
        """Whether a task of the group waits for the child that it vforked."""
        return self._any_waits_in(_VFORK_WAITS)

    def _any_waits_in(self, functions: frozenset[str]) -> bool:
        tasks = (self.path / ("tasks" if self.version == 1 else "cgroup.threads")).read_text().split()
        return any(_waits_in(task) in functions for task in tasks)

    def _awake(self) -> str:
        """The tasks in an uninterruptible wait, in words."""
        names: list[str] = []
        for pid in (self.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text()
                name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
                if state == "D":
                    names.append(f"process {pid} ({name})")
        return ", ".join(names) + " in uninterruptible wait" if names else "no task names itself as the cause"


def _waits_in(task: str) -> str:
    try:
        return Path(f"/proc/{task}/wchan").read_text()
    except OSError:
        return ""
