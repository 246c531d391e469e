"""Stand-ins for placeholder pods where no kubelet is: a parked process in namespaces and cgroups of its own.

Its main process is thawbox-init in its waiting mode: static, does nothing, ends by SIGKILL; as Kubernetes' own pause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.config import load_settings
from thawbox.host.cgroup_layout import detect_layout
from thawbox.host.namespaces import SHELL_NAMESPACES, destroy_shell, start_shell
from thawbox.node import find_programs

_MEMORY = 256 << 20


@dataclass(frozen=True)
class Placeholder:
    """`pid` is the host's number of its main process; `groups` are its cgroups, by hierarchy."""

    pid: int
    uid: str
    name: str
    groups: tuple[Path, ...] = field(repr=False)

    def members(self) -> set[int]:
        """Host pids of everything that counts against the pod."""
        found: set[int] = set()
        for group in self.groups:
            for procs in group.rglob("cgroup.procs"):
                found.update(int(word) for word in procs.read_text().split())
        return found

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the host in the placeholder's namespaces."""
        entered = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--pid", "--mount", *argv]
        return subprocess.run(entered, capture_output=True, text=True, check=True)


@contextmanager
def a_placeholder(name: str, *, uid: str = "") -> Iterator[Placeholder]:
    """A placeholder that is parked until the end of the block; nothing of it is left then."""
    programs = find_programs(load_settings())
    uid = uid or str(uuid.uuid4())
    layout = detect_layout()
    seats = {seat.mount: seat for seat in (*layout.v1.values(), *([layout.v2] if layout.v2 else []))}
    with ExitStack() as undo:
        groups: list[Path] = []
        for mount, seat in seats.items():
            if seat.version == 2 and layout.v1:
                continue  # the hybrid mount holds nothing that counts
            group = mount / f"placeholder-{uid}"
            group.mkdir()
            undo.callback(_remove_groups, group)
            groups.append(group)
            if (group / "cpuset.cpus").exists():
                for kept in ("cpuset.cpus", "cpuset.mems"):
                    (group / kept).write_text((mount / kept).read_text())
            if (group / "memory.limit_in_bytes").exists():
                (group / "memory.limit_in_bytes").write_text(str(_MEMORY))
        steps = [("cgroup", str(group / "cgroup.procs")) for group in groups]
        steps += [("unshare", hex(SHELL_NAMESPACES)), ("hostname", name), ("loopback",)]
        steps += [("mount", "proc", "/proc", "0", ""), ("become", str(programs.init), "hold")]
        pid = start_shell(programs.launcher, steps)
        undo.callback(destroy_shell, pid)
        undo.callback(_thaw, groups)
        yield Placeholder(pid, uid, name, tuple(groups))


def _thaw(groups: list[Path]) -> None:
    """On version 1 a killed process that is frozen dies when it is thawed, and its pid namespace waits for that."""
    for group in groups:
        for directory, _, _ in os.walk(group):
            with suppress(OSError):
                Path(directory, "freezer.state").write_text("THAWED")


def _remove_groups(group: Path) -> None:
    """As a container runtime does: what runs in there is killed, then the groups go from the leaves up.

    The node may be at the same, and a killed process leaves its group a moment later, of which nobody is told.
    """
    deadline = time.monotonic() + 30
    while group.exists() and time.monotonic() < deadline:
        for directory, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                for word in Path(directory, "cgroup.procs").read_text().split():
                    os.kill(int(word), signal.SIGKILL)
            with suppress(OSError):
                Path(directory).rmdir()
        time.sleep(0.01)
