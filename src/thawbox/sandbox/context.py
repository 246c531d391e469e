"""What every operation on a sandbox is given: built once by `node`, never by the operations themselves."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from thawbox.config import Settings
from thawbox.engines import Engine
from thawbox.errors import BrokenChain, CorruptSnapshot, LockTimeout, SnapshotNotFound
from thawbox.host.cgroup import Cgroup
from thawbox.host.cgroup_layout import Layout, Placement
from thawbox.host.files import locked, private_directory
from thawbox.host.machine_memory import available_memory
from thawbox.model import SandboxId, SnapshotId
from thawbox.sandbox.journal import Journal
from thawbox.sandbox.reserve import Reserve
from thawbox.sandbox.threads import Threads
from thawbox.sandbox.warmth import Warmth
from thawbox.store import Compat, Fetched, Store
from thawbox.telemetry import NOBODY, Telemetry

if TYPE_CHECKING:
    from thawbox.store.backends import Backend
    from thawbox.store.replicas import Replicas


@dataclass(frozen=True, slots=True)
class Programs:
    """Our built programs: init runs inside sandboxes, the launcher makes namespaces, criu dumps and restores."""

    init: Path
    launcher: Path
    criu: Path


FINISHING = ".finishing"


@dataclass(frozen=True)
class Context:
    """The parts of one node. `tag` tells this node's cgroups and network devices from another node's.

    `seccomp_filter` is a raw BPF program, `capabilities` a bit mask.
    """

    settings: Settings
    journal: Journal
    store: Store
    make_engine: Callable[[], Engine]
    layout: Layout
    programs: Programs
    capabilities: int
    seccomp_filter: bytes
    tag: str
    boot_id: str
    now: Callable[[], float]
    available_memory: Callable[[], int] = available_memory
    threads: Threads = field(default_factory=Threads)
    open_replicas: Sequence[Callable[[], Backend]] = ()
    warmth: Warmth = field(default_factory=Warmth)
    reserve: Reserve = field(default_factory=Reserve)
    telemetry: Telemetry = NOBODY

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def rootfs_cache(self) -> Path:
        return private_directory(self.home / "rootfs")

    def directory(self, sandbox: SandboxId) -> Path:
        """Where a sandbox's writable layers lie, one directory per generation."""
        return self.home / "sandboxes" / sandbox

    def cgroup(self, sandbox: SandboxId) -> Cgroup:
        """Its groups: below the placeholder's where it was made in one, so that the pod's limits hold for it."""
        try:
            groups = self.placeholder_groups(sandbox).read_text()
        except OSError:
            return Cgroup(self.layout, self.tag, sandbox)
        return Cgroup(self.layout.below(groups), self.tag, sandbox, Placement.OWN)

    def placeholder_groups(self, sandbox: SandboxId) -> Path:
        """The file that keeps the text of the placeholder's /proc/PID/cgroup."""
        return self.directory(sandbox) / "placeholder"

    @contextlib.contextmanager
    def exclusive(self, sandbox: SandboxId) -> Generator[None]:
        """One change at a time to one sandbox, across processes; raises LockTimeout."""
        with locked(self.lock(sandbox), timeout=self.settings.lock_timeout, what=f"sandbox {sandbox}"):
            yield

    def lock(self, sandbox: SandboxId) -> Path:
        """The lock that `exclusive` takes."""
        return private_directory(self.home / "locks") / sandbox

    def link_lock(self, sandbox: SandboxId) -> Path:
        """The lock that keeps connections to a sandbox's init and its dumps apart."""
        return private_directory(self.home / "locks") / f"{sandbox}.link"

    def finishing_lock(self, sandbox: SandboxId) -> Path:
        """The lock of whoever finishes a snapshot of a sandbox; taken before `exclusive`, never after it."""
        return private_directory(self.home / "locks") / f"{sandbox}{FINISHING}"

    def remove_locks(self, sandbox: SandboxId) -> None:
        """Remove the locks of a sandbox that is no more; whoever calls this holds the first of them."""
        for lock in (self.lock(sandbox), self.link_lock(sandbox)):
            lock.unlink(missing_ok=True)
        finishing = self.finishing_lock(sandbox)
        with contextlib.suppress(LockTimeout), locked(finishing, timeout=0):  # who holds it removes it in the end
            finishing.unlink()

    @cached_property
    def engine(self) -> Engine:
        """Made when it is first needed: it brings CRIU's formats along, for which a command like `ps` would wait."""
        return self.make_engine()

    def close_engine(self) -> None:
        """Close the engine if it was ever needed."""
        if "engine" in self.__dict__:
            self.engine.close()

    @cached_property
    def replicas(self) -> Replicas:
        """The stores elsewhere that hold copies of this node's snapshots; false where there are none."""
        from thawbox.store.replicas import Replicas

        def later(work: Callable[[], None]) -> None:
            self.threads.start(work, name="thawbox-repair")

        return Replicas(
            self.store, self.open_replicas, patience=self.settings.replica_patience, later=later,
            telemetry=self.telemetry,
        )  # fmt: skip

    @contextlib.contextmanager
    def reading(self, snapshot: SnapshotId) -> Generator[Fetched]:
        """As `store.reading`, and one that is not here, or is damaged here, is brought from a replica first."""
        with contextlib.ExitStack() as stack:
            try:
                fetched = stack.enter_context(self.store.reading(snapshot))
            except (SnapshotNotFound, CorruptSnapshot, BrokenChain):
                if not self.replicas:
                    raise
                self.replicas.bring(snapshot)
                fetched = stack.enter_context(self.store.reading(snapshot))
            yield fetched

    @cached_property
    def machine(self) -> Compat:
        """The facts of this machine that a snapshot is bound to, less its rootfs."""
        return Compat(
            arch=platform.machine(),
            kernel=platform.release(),
            engine=f"{self.engine.name} {self.engine.version()}",
            cpu_features=_cpu_features(),
        )


def _cpu_features() -> tuple[str, ...]:
    """The CPU's flags as the kernel lists them, sorted; x86 calls them flags, ARM Features."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return tuple(sorted(value.split()))
    return ()
