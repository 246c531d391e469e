"""The cgroups of one sandbox, on version 2, version 1 and both side by side.

    thawbox-<node tag>/<sandbox id>        limits; the keeper (pid 1) lives here and is never frozen
    thawbox-<node tag>/<sandbox id>/tree   freezer only; init (pid 2), everything below it, and CRIU while it restores

Rule 1: on version 2 the sandbox's own group enables no controller for `tree`, so both may hold processes.
Rule 2: a process that was killed while frozen on version 1 dies only when it is thawed: kill first, then thaw.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thawbox.errors import SandboxNotFound, ThawboxError, Unavailable, Unsupported
from thawbox.host.cgroup_layout import CPUACCT, FREEZER, Hierarchy, Layout, Placement
from thawbox.host.cgroup_limits import (
    LIMITED,
    LimitGroup,
    Limits,
    apply_limits,
    node_weight,
    require_controllers,
    write_controller,
)
from thawbox.host.freezer import Freezer
from thawbox.host.proc import open_process
from thawbox.model import SandboxId

_UNLIMITED_V1 = 1 << 62
"""Version 1 reports "no limit" as the largest page-aligned 64-bit number; nothing real comes near this."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CONTROLLERS = ("memory", "cpu", CPUACCT, "pids", FREEZER)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a sandbox uses now. Memory counts the page cache it caused; limits are None where there is none."""

    memory: int
    memory_peak: int | None
    memory_limit: int | None
    cpu_usec: int
    pids: int
    pids_limit: int | None
    oom_kills: int


@dataclass(frozen=True, slots=True)
class OomEvents:
    """A descriptor that becomes ready (`mask`, for poll or epoll) when the sandbox runs out of memory.

    It also wakes for other memory events and when the group goes: compare `Cgroup.oom_kills` before and after.
    After a wake-up call `drain`. The owner closes it.
    """

    fd: int
    mask: int

    def drain(self) -> None:
        """Make ready for the next event."""
        with contextlib.suppress(BlockingIOError):
            if self.mask == select.POLLIN:
                os.read(self.fd, 8)
            else:
                os.pread(self.fd, 4096, 0)

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The groups of the sandbox `sandbox_id` on the node `node_tag`; a name, whether or not they exist."""

    layout: Layout
    node_tag: str
    sandbox_id: SandboxId
    placement: Placement = Placement.ROOT

    def create(self, limits: Limits) -> None:
        """Make the groups and apply `limits`; all or nothing.

        Empty groups left by a crash are replaced. Raises Unavailable when a group of this name still holds processes,
        Unsupported when a controller is missing or the hierarchy may not be written, InvalidSpec for a limit that
        the kernel refuses.
        """
        require_controllers(limits, frozenset(self._limit_groups()))
        self.remove()
        with ExitStack() as undo:
            undo.callback(self.remove)
            for hierarchy in self._hierarchies():
                self._make_groups(hierarchy)
            apply_limits(limits, self._limit_groups(), lift=False)
            undo.pop_all()

    def open_existing(self) -> Cgroup:
        """This, if all its groups exist; raises SandboxNotFound otherwise."""
        for group in (*self._groups(), self.freezer_dir):
            if not group.is_dir():
                raise SandboxNotFound(f"{self.sandbox_id} has no cgroup {group}")
        return self

    def set_limits(self, limits: Limits) -> None:
        """Apply every limit of `limits`, lifting those that are None; errors as for `create`."""
        apply_limits(limits, self._limit_groups(), lift=True)

    def set_memory_limit(self, limit: int) -> None:
        """Apply this limit, in bytes, alone; errors as for `set_limits`, SandboxNotFound when the groups are gone."""
        with self._present():
            apply_limits(Limits(memory=limit), self._limit_groups(), lift=False)

    def has_memory_limit(self, limit: int) -> bool:
        """Whether this limit, in bytes, holds: the kernel keeps whole pages of it. Raises SandboxNotFound."""
        return self.stats().memory_limit == limit - limit % _PAGE

    def private_memory(self) -> int | None:
        """Bytes of anonymous memory, as programs have it by themselves; None without a memory controller.

        Raises SandboxNotFound when the groups are gone.
        """
        seat = self.layout.seat("memory")
        if seat is None:
            return None
        names = ("total_rss",) if seat.version == 1 else ("anon",)
        with self._present():
            counted = _keyed(self._group(seat) / "memory.stat")
        return sum(counted.get(name, 0) for name in names)

    @property
    def keeper_procs(self) -> tuple[Path, ...]:
        """The files into which a process of one thread writes "0" to enter the sandbox, outside the frozen part."""
        return tuple(_entry(self._group(hierarchy), hierarchy) for hierarchy in self._hierarchies())

    @property
    def tree_procs(self) -> tuple[Path, ...]:
        """The files into which such a process inside the sandbox writes "0", besides, to enter the frozen part."""
        return (_entry(self.freezer_dir, self._freezer_seat()),)

    @property
    def freezer_dir(self) -> Path:
        """The group that holds exactly the dumped tree: CRIU's `--freeze-cgroup`."""
        return self._group(self._freezer_seat()) / "tree"

    @property
    def path(self) -> Path:
        """The group that carries the memory limit, or the freezer's where none does: what `inspect` shows."""
        return self._group(self.layout.seat("memory") or self._freezer_seat())

    def freeze(self, *, timeout: float = 5.0) -> None:
        """Return once the tree is frozen; raises Unavailable, tree thawed, after `timeout` seconds.

        This, `thaw` and `is_frozen` raise SandboxNotFound when the groups are gone.
        """
        with self._present():
            self._freezer().freeze(timeout=timeout)

    def request_freeze(self) -> None:
        """Freeze the tree without waiting for it: a tree that CRIU holds stopped stays so when CRIU lets it go."""
        with self._present():
            self._freezer().request_freeze()

    def thaw(self) -> None:
        """Let the tree run."""
        with self._present():
            self._freezer().thaw()

    def is_frozen(self) -> bool:
        """Whether the whole tree is frozen now."""
        with self._present():
            return self._freezer().is_frozen()

    def holds_stopped(self) -> bool:
        """Whether a task of the tree is stopped (SIGSTOP, ^Z), frozen or not."""
        with self._present():
            return self._freezer().holds_stopped()

    def is_freeze_requested(self) -> bool:
        """Whether the tree is frozen, or will be as soon as whoever holds it stopped lets it go."""
        with self._present():
            return self._freezer().is_requested()

    def pids(self) -> frozenset[int]:
        """Host pids of every process of the sandbox, the keeper included; empty if the groups are gone."""
        found: set[int] = set()
        for directory in _below(self._group(self._freezer_seat())):
            found.update(_members(directory))
        return frozenset(found)

    def kill_all(self, *, timeout: float = 10.0) -> None:
        """Kill every process of the sandbox, frozen or not, and return when none is left.

        Raises Unavailable when some live on after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while members := self.pids():
            with ExitStack() as closing:
                fds = _pidfds(members, closing)
                # A pid may have been reused before its descriptor was opened: only what is still a member is ours.
                living = {pid: fd for pid, fd in fds.items() if pid in self.pids()}
                for fd in living.values():
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                with contextlib.suppress(SandboxNotFound):
                    self.thaw()
                _wait_ended(list(living.values()), deadline)
            if time.monotonic() >= deadline and (left := self.pids()):
                raise Unavailable(f"{self.sandbox_id}: processes {sorted(left)} outlived SIGKILL by {timeout:g} s")

    def remove(self, *, timeout: float = 5.0) -> None:
        """Remove the groups with all below them; nothing happens if they are gone.

        The kernel lets go of dead tasks a moment after their end, so a busy group is tried again for `timeout`
        seconds, but only while no process is listed in it. Raises Unavailable when it is in use.
        """
        deadline = time.monotonic() + timeout
        for group in self._groups():
            for directory in reversed(_below(group)):
                _rmdir(directory, deadline)

    def stats(self) -> Stats:
        """What the sandbox uses now; raises SandboxNotFound when its groups are gone."""
        with self._present():
            return self._stats()

    def oom_kills(self) -> int:
        """How many processes of the sandbox the kernel killed for want of memory so far; 0 once its group is gone."""
        seat = self.layout.seat("memory")
        if seat is None:
            return 0
        name = "memory.oom_control" if seat.version == 1 else "memory.events"
        try:
            return _keyed(self._group(seat) / name).get("oom_kill", 0)
        except FileNotFoundError:
            return 0

    def open_oom_events(self) -> OomEvents:
        """A descriptor to wait on for want of memory; raises Unsupported without a memory controller.

        Version 1: cgroup-v1/memory.rst, "OOM Control"; version 2: cgroup-v2.rst, `memory.events`.
        """
        seat = self.layout.seat("memory")
        if seat is None:
            raise Unsupported("no memory controller on this host", remediation="boot with cgroup_enable=memory")
        group = self._group(seat)
        if seat.version == 2:
            fd = os.open(group / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
            os.pread(fd, 4096, 0)  # a first read: without it the first poll answers at once
            return OomEvents(fd, select.POLLPRI)
        with ExitStack() as undo:
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, event)
            control = os.open(group / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_controller(group / "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
            undo.pop_all()
        return OomEvents(event, select.POLLIN)

    @contextlib.contextmanager
    def _present(self) -> Generator[None]:
        """Say in our own words that the groups are gone."""
        try:
            yield
        except OSError as gone:
            if gone.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            raise SandboxNotFound(f"{self.sandbox_id} has no cgroup {self.freezer_dir.parent}") from None

    def _freezer_seat(self) -> Hierarchy:
        seat = self.layout.seat(FREEZER)
        if seat is None:
            raise Unsupported("no cgroup freezer on this host", remediation="mount -t cgroup2 none /sys/fs/cgroup")
        return seat

    def _freezer(self) -> Freezer:
        return Freezer(self.freezer_dir, self._freezer_seat().version)

    def _hierarchies(self) -> tuple[Hierarchy, ...]:
        """Those that hold a controller we use, the freezer's last: entering it is what freezing counts on."""
        seats = [seat for name in _CONTROLLERS if (seat := self.layout.seat(name))]
        unique = {seat.mount: seat for seat in seats}
        return tuple(unique.values())

    def _group(self, hierarchy: Hierarchy) -> Path:
        return _node_parent(hierarchy, self.placement, self.node_tag) / self.sandbox_id

    def _limit_groups(self) -> dict[str, LimitGroup]:
        seats = {name: self.layout.seat(name) for name in LIMITED}
        return {name: LimitGroup(self._group(seat), seat.version) for name, seat in seats.items() if seat}

    def _groups(self) -> tuple[Path, ...]:
        return tuple(self._group(hierarchy) for hierarchy in self._hierarchies())

    def _make_groups(self, hierarchy: Hierarchy) -> None:
        group = self._group(hierarchy)
        try:
            self._make_group(hierarchy, group)
            if hierarchy == self.layout.seat(FREEZER):
                (group / "tree").mkdir()
        except OSError as refused:
            raise _refusal(group, refused) from refused

    def _make_group(self, hierarchy: Hierarchy, group: Path) -> None:
        wanted = [name for name in _CONTROLLERS if name in hierarchy.controllers] if hierarchy.version == 2 else []
        for left in reversed(range(10)):
            try:
                for directory in (group.parent.parent, group.parent) if wanted else ():
                    _enable(directory, wanted)
                group.mkdir()
            except FileNotFoundError:  # the first of the node, or another command has just removed its empty group
                if not left:
                    raise
                with contextlib.suppress(FileExistsError):  # exist_ok fails if it goes while it is looked at
                    group.parent.mkdir()
                    _weigh(hierarchy, group.parent)
            else:
                return

    def _stats(self) -> Stats:
        memory, cpu, pids = (self.layout.seat(name) for name in ("memory", CPUACCT, "pids"))
        used = peak = limit = count = most = None
        cpu_usec = 0
        if memory:
            used, peak, limit = (_number(self._group(memory) / name) for name in _MEMORY_FILES[memory.version])
        if cpu and cpu.version == 1:
            cpu_usec = (_number(self._group(cpu) / "cpuacct.usage") or 0) // 1000
        elif cpu:
            cpu_usec = _keyed(self._group(cpu) / "cpu.stat").get("usage_usec", 0)
        if pids:
            count, most = (_number(self._group(pids) / name) for name in _PIDS_FILES)
        return Stats(
            memory=used or 0, memory_peak=peak, memory_limit=limit, cpu_usec=cpu_usec,
            pids=len(self.pids()) if count is None else count, pids_limit=most, oom_kills=self.oom_kills(),
        )  # fmt: skip


def _entry(group: Path, hierarchy: Hierarchy) -> Path:
    """Where to write "0". `cgroup.procs` holds up every fork of the machine and waits some 10 ms for a grace period
    of RCU; version 1's `tasks`, for the writing thread alone, takes no such lock (cgroup_procs_write_start)."""
    return group / ("tasks" if hierarchy.version == 1 else "cgroup.procs")


_MEMORY_FILES = {
    1: ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
    2: ("memory.current", "memory.peak", "memory.max"),
}
_PIDS_FILES = ("pids.current", "pids.max")


def node_group(node_tag: str) -> str:
    """The name of the group that holds all groups of one node."""
    return f"thawbox-{node_tag}"


@cache
def _node_parent(hierarchy: Hierarchy, placement: Placement, node_tag: str) -> Path:
    return hierarchy.parent(placement) / node_group(node_tag)


def list_groups(layout: Layout, node_tag: str, placement: Placement = Placement.ROOT) -> frozenset[SandboxId]:
    """The sandboxes for which the node has a group on any hierarchy: what a crash may have left."""
    found: set[SandboxId] = set()
    for parent in _node_parents(layout, node_tag, placement):
        with contextlib.suppress(FileNotFoundError):
            found.update(SandboxId(entry.name) for entry in os.scandir(parent) if entry.is_dir())
    return frozenset(found)


def remove_node_group(layout: Layout, node_tag: str, placement: Placement = Placement.ROOT) -> None:
    """Remove the node's own groups where no sandbox is left in them."""
    for parent in _node_parents(layout, node_tag, placement):
        with contextlib.suppress(OSError):  # busy: a sandbox is in it; missing: nothing to do
            parent.rmdir()


def _node_parents(layout: Layout, node_tag: str, placement: Placement) -> set[Path]:
    seats = [seat for name in _CONTROLLERS if (seat := layout.seat(name))]
    return {_node_parent(seat, placement, node_tag) for seat in seats}


def _weigh(hierarchy: Hierarchy, node_group: Path) -> None:
    """Give a new node's group its weight; one that is gone again, before or while it is opened, will be made anew."""
    if "cpu" not in hierarchy.controllers:
        return
    file, text = node_weight(version=hierarchy.version, cpus=os.cpu_count() or 1)
    try:
        (node_group / file).write_text(text)
    except OSError as gone:
        if gone.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _enable(directory: Path, controllers: list[str]) -> None:
    """Make `controllers` available to the children of a version 2 group."""
    control = directory / "cgroup.subtree_control"
    missing = set(controllers) - set(control.read_text().split())
    if missing:
        control.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def _refusal(group: Path, refused: OSError) -> ThawboxError:
    if refused.errno == errno.EBUSY:
        return Unsupported(
            f"{group.parent.parent} holds processes, so version 2 cgroups allow no limits below it",
            remediation="run the node in a leaf of a delegated group (systemd: Delegate=yes, DelegateSubgroup=node)",
        )
    if refused.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Unsupported(
            f"{group} cannot be made: {refused.strerror}",
            remediation="run as root with /sys/fs/cgroup writable, or in a delegated group",
        )
    if refused.errno == errno.EEXIST:
        return Unavailable(f"{group} is being used by another command")
    return Unavailable(f"{group} cannot be made: {refused.strerror}", remediation="look for thousands of left cgroups")


def _number(path: Path) -> int | None:
    """The number in a controller file; None where it means "no limit" or the kernel has no such file."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        if path.parent.is_dir():
            return None
        raise
    return None if text == "max" or int(text) >= _UNLIMITED_V1 else int(text)


def _keyed(path: Path) -> dict[str, int]:
    """The `name number` lines of a controller file."""
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def _below(group: Path) -> list[Path]:
    """`group` and every group below it, parents first; empty if it is gone."""
    return [Path(directory) for directory, _, _ in os.walk(group)]


def _members(group: Path) -> frozenset[int]:
    """The processes of one group that this pid namespace can see; empty if the group is gone."""
    try:
        listed = (group / "cgroup.procs").read_text().split()
    except OSError as gone:
        if gone.errno in (errno.ENOENT, errno.ENODEV):  # ENODEV: removed between open and read
            return frozenset()
        raise
    return frozenset(int(word) for word in listed if word != "0")


def _rmdir(directory: Path, deadline: float) -> None:
    pause = 0.0002
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as busy:
            if busy.errno != errno.EBUSY:
                raise
            if (members := _members(directory)) or time.monotonic() >= deadline:
                raise Unavailable(
                    f"{directory} is in use by {len(members)} processes: {sorted(members)[:8]}",
                    remediation="stop the sandbox first",
                ) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _pidfds(pids: frozenset[int], closing: ExitStack) -> dict[int, int]:
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found[pid] = open_process(pid)
            closing.callback(os.close, found[pid])
    return found


def _wait_ended(pidfds: list[int], deadline: float) -> None:
    """Wait until all have ended or the deadline has come."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    waiting = len(pidfds)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting -= 1
