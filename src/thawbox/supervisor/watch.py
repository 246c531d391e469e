"""One supervised sandbox as the supervisor's thread sees it, and the descriptors that tell of its death."""

from __future__ import annotations

import contextlib
import enum
import math
import os
from dataclasses import dataclass, field, replace

from thawbox.errors import ThawboxError
from thawbox.host.cgroup import OomEvents
from thawbox.host.memory_pressure import open_pressure_events
from thawbox.host.proc import children, open_process, pid_inside, start_time
from thawbox.model import SandboxId
from thawbox.restart_plan import Policy
from thawbox.sandbox import Context, Record
from thawbox.supervisor.jobs import Spare

NEVER = math.inf
NO_SPARE = Spare()


class State(enum.Enum):
    """What the supervisor is doing about a sandbox."""

    WATCHING = "watching"
    RECOVERING = "recovering"
    ENDED = "ended"
    """It has ended as it may; it is watched again when somebody restores it."""
    GAVE_UP = "gave up"


@dataclass(slots=True)
class Watch:
    """Owned by the supervisor's thread. The `…_at` are moments of the monotonic clock, `NEVER` when nothing is due."""

    id: SandboxId
    name: str
    policy: Policy
    state: State = State.ENDED
    why: str = ""
    life: Life | None = None
    noticed_at: float = 0.0
    hanging: tuple[int, str] | None = None
    refusals: int = 0
    probe_at: float = NEVER
    checkpoint_at: float = NEVER
    recover_at: float = NEVER
    has_waited: bool = False
    has_first: bool = False
    why_checkpoint: str = "periodic"
    pressed_at: float = -NEVER
    seems_stuck: bool = False
    spare: Spare = NO_SPARE
    spare_at: float = NEVER
    is_busy: bool = False

    def next_due(self, *, errands: bool = True) -> float:
        """When something is to be begun; a job under way comes first, but for a recovery nothing else is waited for.

        Without `errands` as many of them are under way as may be: checkpoints and spares are not begun then.
        """
        if self.state is State.RECOVERING:
            return self.recover_at
        if self.state is not State.WATCHING:
            return NEVER
        if self.is_busy:
            return NEVER
        return min(self.probe_at, self.checkpoint_at, self.spare_at) if errands else self.probe_at


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a sandbox: its keeper, a pidfd of it, and where it has a memory limit, word of want of memory.

    `program` is the main program's pid and start time on the host.
    """

    keeper: int
    pidfd: int
    oom: OomEvents | None
    oom_kills: int = field(default=0, compare=False)
    pressure: OomEvents | None = None
    program: tuple[int, int] = (0, 0)

    def fds(self) -> tuple[int, ...]:
        """Every descriptor to listen to."""
        return (self.pidfd, *(events.fd for events in (self.oom, self.pressure) if events is not None))

    def is_program_over(self) -> bool:
        """Whether the main program has ended, collected or not."""
        pid, started = self.program
        return pid > 0 and start_time(pid) != started

    def close(self) -> None:
        for fd in self.fds():
            os.close(fd)


def open_life(context: Context, record: Record, policy: Policy) -> Life | None:
    """Begin to watch the life that a record names; None if it is over."""
    try:
        pidfd = open_process(record.keeper_pid) if record.keeper_pid else -1
    except ProcessLookupError:
        return None
    if pidfd < 0 or record.boot_id != context.boot_id or start_time(record.keeper_pid) != record.keeper_started:
        if pidfd >= 0:
            os.close(pidfd)
        return None
    cgroup = context.cgroup(record.id)
    life = Life(record.keeper_pid, pidfd, None, program=_find_program(record.keeper_pid))
    limit = record.spec.memory
    if limit is None:
        return life
    # Where it died just now, the pidfd tells; a host that counts no memory has no word of it.
    with contextlib.suppress(OSError, ThawboxError):
        life = replace(life, oom=cgroup.open_oom_events(), oom_kills=cgroup.oom_kills())
    if policy.checkpoint_on_pressure:
        with contextlib.suppress(OSError, ThawboxError):
            life = replace(life, pressure=open_pressure_events(cgroup, limit=limit))
    return life


_MAIN_PROGRAM = 3
"""Its pid inside: keeper and init come before it."""


def _find_program(keeper: int) -> tuple[int, int]:
    for init in children(keeper):
        for pid in children(init):
            if pid_inside(pid) == _MAIN_PROGRAM:
                return pid, start_time(pid) or 0
    return 0, 0
