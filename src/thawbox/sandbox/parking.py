"""Parked clones: restored, given an identity, found ready, frozen. Handing one over is a lease record and a thaw.

Rule 1: restoring, hashing and waiting for the disk belong to `park`; `hand_over` does none of them.
Rule 2: the journal says that a clone is leased before anything in it runs: whoever starts the node anew after a crash
never takes a used clone for a parked one.
Rule 3: a frozen tree cannot change, so one that did was killed or thawed by somebody, and is not handed over.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Protocol

from thawbox.errors import NotFound, SandboxNotFound
from thawbox.host.files import locked
from thawbox.host.machine_memory import total_memory
from thawbox.host.proc import open_process
from thawbox.lifecycle import ALIVE, Verb, next_phase
from thawbox.model import Phase, SandboxId, SnapshotId
from thawbox.pool_plan import WORTH_WARMING, room_for
from thawbox.sandbox.cloning import clone
from thawbox.sandbox.context import Context
from thawbox.sandbox.handle import Sandbox
from thawbox.sandbox.journal import Record
from thawbox.sandbox.observe import is_alive
from thawbox.sandbox.readiness import wait_ready
from thawbox.sandbox.templates import find_template
from thawbox.sandbox.warming import hold, release

SHELLS = 2
"""Kept ready for a pool's refills: as many as it makes at once."""
_SIGKILL_PENDING = 1 << 8
"""Bit of signal 9 in the masks of /proc/PID/status (proc(5))."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A clone that a pool owns, as it was when it was parked.

    `pids` are the host's numbers of all its processes, `bytes` what its memory cgroup was charged. `death` becomes
    readable once the clone is gone (a pidfd); None where nothing is left to watch. `Parking.forget` and `destroy` close
    it.
    """

    record: Record
    pids: frozenset[int] = frozenset()
    death: FileIO | None = None
    bytes: int = 0

    @property
    def id(self) -> SandboxId:
        return self.record.id

    @property
    def digest(self) -> SnapshotId | None:
        """The golden snapshot that it was made from."""
        return self.record.parent_snapshot


@dataclass(frozen=True, slots=True)
class Inherited:
    """What an earlier life of the node left of a pool: clones to check, clones that are leased, and the rest."""

    parked: tuple[Parked, ...]
    leased: tuple[Parked, ...]
    rest: tuple[Parked, ...]


class Parking(Protocol):
    """What a pool asks of clones; `tests/contract/test_parking.py` holds the real one and its fake to it."""

    def digest(self) -> SnapshotId:
        """The golden snapshot that clones are to be made from now; raises NotFound once the template was removed."""
        ...

    def park(self, digest: SnapshotId) -> Parked:
        """Make a clone with an identity of its own, wait until it is ready, and freeze it.

        Raises what a clone raises (RestoreFailed, StartFailed, …); nothing is left of it then.
        """
        ...

    def inherited(self) -> Inherited:
        """What the journal has of this pool; ask while none of its clones is being made."""
        ...

    def recheck(self, parked: Parked) -> Parked:
        """Thaw an inherited clone, wait until it is ready, and freeze it again; if it is not, destroy it and raise."""
        ...

    def is_unharmed(self, parked: Parked) -> bool:
        """Whether nothing happened to the clone since it was parked."""
        ...

    def hand_over(self, parked: Parked, *, lease: str, until: float) -> Sandbox:
        """Record the lease, which ends at `until` (seconds since the epoch), and thaw the clone.

        Raises a ThawboxError when the clone is not as it was parked; destroy it then.
        """
        ...

    def extend(self, parked: Parked, *, until: float) -> None:
        """Record a later end of the lease; raises SandboxNotFound when the sandbox was removed."""
        ...

    def is_removed(self, parked: Parked) -> bool:
        """Whether somebody removed the clone, files and all."""
        ...

    def destroy(self, parked: Parked) -> None:
        """Kill and remove the clone, whatever became of it; once more does nothing."""
        ...

    def room(self, each: int) -> int | None:
        """For how many more clones of `each` bytes there is memory; None where that does not matter."""
        ...

    def forget(self, parked: Parked) -> None:
        """Watch the clone no more; it stays as it is, for the next life of the node."""
        ...

    def close(self) -> None:
        """Give up what makes parking faster; nothing happens to any clone."""
        ...


class CloneParking:
    """The clones of one pool, made from one template; of them only the journal and the kernel know.

    The golden snapshot's memory is held ready for `clones` clones to share, where that many are worth it.
    """

    def __init__(self, context: Context, pool: str, template: str, *, clones: int = 0) -> None:
        self.context = context
        self.pool = pool
        self.template = template
        self._clones = clones
        self._warm: SnapshotId | None = None
        self._warming = threading.Lock()

    @property
    def owner(self) -> str:
        return f"pool:{self.pool}"

    def digest(self) -> SnapshotId:
        return find_template(self.context, self.template).snapshot

    def park(self, digest: SnapshotId) -> Parked:
        self._keep_warm(digest)
        name = f"{self.pool[:50].rstrip('-_.')}-{secrets.token_hex(3)}"
        record, _ = clone(self.context, digest, name=name, owner=self.owner)
        return self._frozen(record)

    def inherited(self) -> Inherited:
        parked: list[Parked] = []
        leased: list[Parked] = []
        rest: list[Parked] = []
        for record in self.context.journal.all():
            if record.owner == self.owner:
                kind = leased if record.lease else parked if record.phase is Phase.FROZEN else rest
                kind.append(Parked(record))
        return Inherited(tuple(parked), tuple(leased), tuple(rest))

    def recheck(self, parked: Parked) -> Parked:
        if not is_alive(self.context, parked.record):
            self.destroy(parked)
            raise NotFound(f"{parked.record.name} died while it was parked")
        # until it is frozen again the journal has it among those that nobody may be given
        running = replace(parked.record, phase=Phase.RUNNING)
        with self._destroyed_on_failure(parked):
            self.context.journal.update(running)
            self.context.cgroup(parked.id).thaw()
            wait_ready(self.context, running)
        return self._frozen(running)

    def is_unharmed(self, parked: Parked) -> bool:
        cgroup = self.context.cgroup(parked.id)
        try:
            if not cgroup.is_frozen() or cgroup.pids() != parked.pids:
                return False
        except SandboxNotFound:
            return False
        return not any(_is_killed(pid) for pid in parked.pids)

    def hand_over(self, parked: Parked, *, lease: str, until: float) -> Sandbox:
        record = parked.record
        after = next_phase(record.phase, Verb.THAW, who=record.name)
        with locked(self.context.lock(record.id), timeout=0, what=f"sandbox {record.id}"):
            if not self.is_unharmed(parked):
                raise NotFound(f"{record.name} was killed or thawed while it was parked")
            # not waited for on the disk: it outlives this process, and after a power cut there is no clone
            leased = replace(record, phase=after, lease=lease, lease_until=until)
            with self.context.telemetry.step("pool.lease", sandbox=record.id):
                self.context.journal.update(leased)
            with self.context.telemetry.step("pool.thaw", sandbox=record.id):
                self.context.cgroup(record.id).thaw()
        return Sandbox(self.context, leased)

    def extend(self, parked: Parked, *, until: float) -> None:
        with self.context.exclusive(parked.id):
            self.context.journal.update(replace(self.context.journal.find(parked.id), lease_until=until))

    def is_removed(self, parked: Parked) -> bool:
        try:
            self.context.journal.find(parked.id)
        except SandboxNotFound:
            return True
        return False

    def destroy(self, parked: Parked) -> None:
        self.forget(parked)
        with contextlib.suppress(SandboxNotFound):
            Sandbox(self.context, parked.record).remove(force=True)

    def room(self, each: int) -> int | None:
        return room_for(each, available=self.context.available_memory(), total=total_memory())

    def forget(self, parked: Parked) -> None:
        if parked.death is not None:
            parked.death.close()

    def close(self) -> None:
        with self._warming:
            self._cool()

    def _keep_warm(self, digest: SnapshotId) -> None:
        """Hold this snapshot's memory ready, and that of the one before it no longer."""
        with self._warming:
            if self._warm == digest:
                return
            self._cool()
            if self._clones >= WORTH_WARMING:
                hold(self.context, digest, holder=self.owner, shells=SHELLS)
            self._warm = digest

    def _cool(self) -> None:
        if self._warm is not None:
            release(self.context, self._warm, holder=self.owner)
            self._warm = None

    def _frozen(self, record: Record) -> Parked:
        with self._destroyed_on_failure(Parked(record)):
            sandbox = Sandbox(self.context, record)
            sandbox.freeze()
            frozen = sandbox.record
            if frozen.phase not in ALIVE:
                raise NotFound(f"{record.name} died while it was parked: {frozen.ended_why}")
            cgroup = self.context.cgroup(record.id)
            death = FileIO(open_process(frozen.keeper_pid))
            return Parked(frozen, cgroup.pids(), death, cgroup.stats().memory)

    @contextlib.contextmanager
    def _destroyed_on_failure(self, parked: Parked) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.destroy(parked)
            raise


def _is_killed(pid: int) -> bool:
    """Whether SIGKILL waits for a frozen process: on version 1 cgroups it dies of it only when it is thawed."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask & _SIGKILL_PENDING for mask in masks)
