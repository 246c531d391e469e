"""The supervisor: notices that sandboxes died or hang, brings them back, and takes their periodic checkpoints.

Rule 1: `restart_plan` decides what is tried, `jobs` try it; here are only threads, clocks and order.
Rule 2: one thread owns every watch; work that takes time is done by others, which hand their results to that thread.
Rule 3: a death is noticed by the kernel's word (a pidfd), never by looking again; only probes poll, by their nature,
and a look each second finds what is held half dead by a dump.
Rule 4: what must outlive this process is in the journal before it counts.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from thawbox.errors import DumpFailed, InvalidRequest, LockTimeout, ThawboxError, Unavailable
from thawbox.host.files import locked, private_directory
from thawbox.host.memory_pressure import is_near
from thawbox.host.namespaces import reap
from thawbox.lifecycle import ALIVE
from thawbox.model import Restart, SandboxId
from thawbox.restart_plan import Policy, check_policy, policy_of
from thawbox.sandbox import Context, Record, Sandbox
from thawbox.sandbox.recovering import Supervised, all_supervised, forget_supervised, remember_supervised
from thawbox.supervisor import jobs
from thawbox.supervisor.jobs import Event, Tell
from thawbox.supervisor.watch import NEVER, State, Watch, open_life

_T = TypeVar("_T")
_RECOVERIES = max(2, os.cpu_count() or 1)
"""Restores at a time: each keeps one core busy."""
_ERRANDS = 4
"""Checkpoints and spares at a time: each keeps the disk or a core busy."""
_PROBES = 256
"""Probes at a time, in threads made as they are needed: each only waits, and none is to wait for another sandbox's."""
LOOK_AGAIN = 1.0
"""Seconds between two looks whether another command changed the journal: runs, restores and removals, never deaths."""
_BETWEEN_PRESSURES = 10.0
"""Seconds, at least, between two checkpoints for memory pressure: usage goes up and down around its threshold."""
_AFTER_FAILED_CHECKPOINT = 10.0
"""Seconds until a first checkpoint is tried again that failed."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor is doing about one sandbox, and `why` where it does nothing."""

    sandbox: SandboxId
    name: str
    policy: Policy
    state: State
    why: str = ""


def _nobody(_: Event) -> None:
    pass


def ask_for_supervision(
    context: Context, sandbox: Sandbox, policy: Policy | None = None, *, tell: Tell = _nobody,
    allow: jobs.Allow = jobs.anything,
) -> Policy:  # fmt: skip
    """Note for whoever supervises the node, now or later, that a sandbox is to be watched; returns its policy.

    When this returns there is a snapshot to recover from. Raises as `Supervisor.supervise` does.
    """
    chosen = policy or policy_of(sandbox.spec)
    if chosen is None:
        raise InvalidRequest(f"{sandbox.name} asks for no supervision", remediation="give a restart policy")
    check_policy(chosen)
    if chosen.restart is not Restart.NO and sandbox.state in ALIVE:
        made = jobs.first_checkpoint(context, sandbox.id, chosen, tell, allow=allow)
        if made.snapshot is None:
            raise DumpFailed(f"{sandbox.name} cannot be supervised: {made.failure}")
    remember_supervised(context, sandbox.id, Supervised(chosen))
    return chosen


class Supervisor:
    """Watches over sandboxes of one node while it is open; a context manager. At most one for a node at a time.

    Sandboxes that were supervised before, and those whose spec asks for it, are watched from the start. Closing lets
    them run on unwatched; the next supervisor goes on. `tell` hears of every event; `allow` is asked before each
    snapshot.
    """

    def __init__(self, context: Context, *, tell: Tell = _nobody, allow: jobs.Allow = jobs.anything) -> None:
        self._context = context
        self._tell = tell
        self._allow = allow
        self._watches: dict[SandboxId, Watch] = {}
        self._sources: dict[int, Callable[[], None]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ending = False
        self._errands_free = _ERRANDS
        self._clearing: set[SandboxId] = set()
        self._failure: BaseException | None = None
        self._look_at = 0.0
        self._journal_seen: object = None

    def start(self) -> None:
        """Begin; raises LockTimeout when another process supervises this node."""
        with ExitStack() as undo:
            lock = private_directory(self._context.home / "locks") / "supervisor"
            undo.enter_context(locked(lock, timeout=0, what="the supervision of this node"))
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._wake)
            self._listen(self._wake, select.EPOLLIN, self._read_inbox)
            undo.callback(self._close_lives)
            self._recoveries = undo.enter_context(ThreadPoolExecutor(_RECOVERIES, "thawbox-recover"))
            self._errands = undo.enter_context(ThreadPoolExecutor(_ERRANDS, "thawbox-errand"))
            self._probes = undo.enter_context(ThreadPoolExecutor(_PROBES, "thawbox-probe"))
            self._thread = threading.Thread(target=self._run, name="thawbox-supervisor")
            self._thread.start()
            undo.callback(self._end_thread)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Let go of every sandbox, once what is under way has ended; raises what went wrong in the background."""
        self._undo.close()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what is asked of it, in any thread -------------------------------------------------------------------

    def supervise(self, sandbox: Sandbox, policy: Policy | None = None) -> None:
        """Watch over a sandbox, by default as its spec asks. When this returns there is a snapshot to recover from.

        Raises InvalidRequest for a policy that cannot be followed or when there is none, DumpFailed for a sandbox that
        cannot be checkpointed.
        """
        chosen = ask_for_supervision(self._context, sandbox, policy, tell=self._tell, allow=self._allow)
        self._call(partial(self._adopt, sandbox.id, chosen))

    def forget(self, sandbox: Sandbox) -> None:
        """Watch over it no longer; it runs on. What was recovered is forgotten too."""
        self._call(partial(self._drop, sandbox.id))
        forget_supervised(self._context, sandbox.id)

    def statuses(self) -> list[Status]:
        """Every supervised sandbox, by name."""
        found = self._call(lambda: [
            Status(watch.id, watch.name, watch.policy, watch.state, watch.why) for watch in self._watches.values()
        ])  # fmt: skip
        return sorted(found, key=lambda one: one.name)

    def refresh(self) -> None:
        """Look at once at what other commands did; it happens by itself within a second."""
        self._call(self._look)

    def checkpoint_before_drain(self, *, timeout: float) -> bool:
        """Take a checkpoint of every watched sandbox whose policy asks for one now; False if one was not made within
        `timeout` seconds. What failed is told as ever."""
        wanted = [one for one in self.statuses() if one.state is State.WATCHING and one.policy.checkpoint_on_drain]
        making = [
            self._errands.submit(
                jobs.checkpoint, self._context, one.sandbox, one.policy, self._tell, why="drain", allow=self._allow
            )
            for one in wanted
        ]
        return not wait(making, timeout).not_done

    def _call(self, action: Callable[[], _T]) -> _T:
        """Run `action` in the supervisor's thread and return what it does."""
        answer: Future[_T] = Future()

        def act() -> None:
            try:
                answer.set_result(action())
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                answer.set_exception(error)

        self._post(act)
        while True:
            try:
                return answer.result(timeout=1.0)
            except TimeoutError:
                if answer.done():
                    raise
                if not self._thread.is_alive():
                    raise Unavailable("the supervisor has ended", remediation="start it again") from self._failure

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        os.eventfd_write(self._wake, 1)

    # --- the thread that owns the watches ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending:
                for fd, _ in self._epoll.poll(self._seconds_to_next()):
                    source = self._sources.get(fd)
                    if source is not None:  # one before it in this round may have ended that watch
                        source()
                self._begin_what_is_due()
        except BaseException as error:  # noqa: BLE001 - raised by `close`
            self._failure = self._failure or error

    def _end_thread(self) -> None:
        def end() -> None:
            self._ending = True

        self._post(end)
        self._thread.join()

    def _seconds_to_next(self) -> float:
        due = min((watch.next_due(errands=self._errands_free > 0) for watch in self._watches.values()), default=NEVER)
        return max(0.0, min(due, self._look_at) - time.monotonic())

    def _read_inbox(self) -> None:
        os.eventfd_read(self._wake)
        while True:
            try:
                action = self._inbox.get_nowait()
            except queue.Empty:
                return
            action()

    def _begin_what_is_due(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN
            self._end_stuck()
            with contextlib.suppress(OSError, LockTimeout):  # our own disk, perhaps full: the next look does it
                seen = self._context.journal.version()
                if seen != self._journal_seen:
                    self._look()
                    self._journal_seen = seen
        for watch in sorted(self._watches.values(), key=Watch.next_due):
            has_room = self._errands_free > 0
            if watch.next_due(errands=has_room) > now:
                continue
            if watch.state is State.RECOVERING:
                self._begin_recovery(watch)
            elif has_room and watch.checkpoint_at <= now:
                self._begin_checkpoint(watch)
            elif has_room and watch.spare_at <= now:
                self._begin_spare(watch)
            else:
                self._begin_probe(watch)

    def _listen(self, fd: int, mask: int, source: Callable[[], None]) -> None:
        self._sources[fd] = source
        self._epoll.register(fd, mask)

    def _say(self, watch: Watch, what: str, **details: object) -> None:
        self._tell(Event(self._context.now(), watch.id, watch.name, what, details))

    # --- which sandboxes there are ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Bring the watches into agreement with the journal."""
        records = {record.id: record for record in self._context.journal.all()}
        known = all_supervised(self._context)
        for sandbox in set(known) - set(records) - self._clearing:
            self._clear(sandbox, known[sandbox].policy)
        for sandbox in set(self._watches) - (set(known) & set(records)):
            self._drop(sandbox)
        for record in records.values():
            supervised = known.get(record.id)
            is_parked = bool(record.owner) and not record.lease  # its pool sees to it
            if supervised is None and not is_parked and (policy := policy_of(record.spec)) is not None:
                supervised = Supervised(policy)
                remember_supervised(self._context, record.id, supervised)
            if supervised is not None:
                self._look_at_one(record, supervised)

    def _clear(self, sandbox: SandboxId, policy: Policy) -> None:
        """Have another thread remove what was kept for a sandbox that is gone."""

        def finish(finished: Future[None]) -> None:
            self._clearing.discard(sandbox)
            self._failure = self._failure or finished.exception()

        self._clearing.add(sandbox)
        job = self._errands.submit(jobs.clear, self._context, sandbox, policy)
        job.add_done_callback(lambda finished: self._post(partial(finish, finished)))

    def _look_at_one(self, record: Record, supervised: Supervised) -> None:
        watch = self._watches.get(record.id)
        if watch is not None and _is_overruled(watch, supervised):
            self._drop(record.id)
            watch = None
        if watch is None:
            watch = self._watches[record.id] = Watch(record.id, record.name, supervised.policy)
            if supervised.gave_up:
                watch.state, watch.why = State.GAVE_UP, supervised.gave_up
            elif record.phase not in ALIVE:
                self._notice_death(watch)
        if watch.state in (State.ENDED, State.GAVE_UP) and record.phase in ALIVE and record.keeper_pid:
            self._attach(watch, record)
        if watch.policy.spare and record.parent_snapshot != watch.spare.snapshot:
            watch.spare_at = 0.0

    def _adopt(self, sandbox: SandboxId, policy: Policy) -> None:
        """Watch a sandbox under this policy from now on, and as if nothing had been given up."""
        self._drop(sandbox)
        self._look_at_one(self._context.journal.find(sandbox), Supervised(policy))

    def _drop(self, sandbox: SandboxId) -> None:
        watch = self._watches.pop(sandbox, None)
        if watch is not None:
            self._detach(watch)
            jobs.drop_spare(self._context, watch.id, watch.spare)

    def _attach(self, watch: Watch, record: Record) -> None:
        """Watch this life of the sandbox; one that is over already is a death."""
        self._detach(watch)
        if watch.state is State.GAVE_UP:
            remember_supervised(self._context, watch.id, Supervised(watch.policy))
        watch.state, watch.why, watch.hanging, watch.refusals = State.WATCHING, "", None, 0
        watch.seems_stuck = False
        life = watch.life = open_life(self._context, record, watch.policy)
        if life is None:
            self._notice_death(watch)
            return
        self._listen(life.pidfd, select.EPOLLIN, partial(self._notice_death, watch))
        if life.oom is not None:
            self._listen(life.oom.fd, life.oom.mask, partial(self._notice_want_of_memory, watch))
        if life.pressure is not None:
            self._listen(life.pressure.fd, life.pressure.mask, partial(self._notice_pressure, watch))
        now = time.monotonic()
        health, every = watch.policy.health, watch.policy.checkpoint_every
        watch.probe_at = now + health.interval if health is not None else NEVER
        watch.checkpoint_at = now + every if every else NEVER
        if not watch.has_first and watch.policy.restart is not Restart.NO:
            watch.checkpoint_at = now
        self._say(watch, "supervise.watching", keeper=record.keeper_pid)

    def _detach(self, watch: Watch) -> None:
        life, watch.life = watch.life, None
        if life is None:
            return
        for fd in life.fds():
            if self._sources.pop(fd, None) is not None:
                self._epoll.unregister(fd)
        life.close()

    def _close_lives(self) -> None:
        for watch in self._watches.values():
            self._detach(watch)
            jobs.drop_spare(self._context, watch.id, watch.spare)

    # --- deaths -----------------------------------------------------------------------------------------------

    def _notice_death(self, watch: Watch) -> None:
        watch.noticed_at = self._context.now()
        life = watch.life
        self._detach(watch)
        if life is not None and watch.hanging is None:
            reap(life.keeper, block=False)  # ours, if we started it; another command may have seen to all else
        self._begin_recovery(watch)

    def _end_stuck(self) -> None:
        """End sandboxes whose main program was over at the last look already, and that are still there.

        A program that dies while it is dumped leaves criu waiting for it (wait4 in compel_stop_on_syscall), with init
        stopped and the sandbox locked, until the engine's timeout; no pidfd tells, since criu has not collected all
        its threads. The death of pid 1 ends them all.
        """
        for watch in self._watches.values():
            if watch.state is not State.WATCHING or watch.life is None:
                continue
            is_over = watch.life.is_program_over()
            if is_over and watch.seems_stuck:
                self._say(watch, "supervise.unstuck")
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(watch.life.pidfd, signal.SIGKILL)
            watch.seems_stuck = is_over

    def _notice_want_of_memory(self, watch: Watch) -> None:
        """The kernel killed a process of the sandbox, maybe not the main one: then its health is asked at once."""
        life = watch.life
        if life is None or life.oom is None:
            return
        life.oom.drain()
        try:
            kills = self._context.cgroup(watch.id).oom_kills()
        except OSError:
            return  # the group is gone with the sandbox, which the pidfd tells
        if kills > life.oom_kills:
            watch.life = replace(life, oom_kills=kills)
            self._say(watch, "memory.killed", kills=kills - life.oom_kills)
            if watch.policy.health is not None:
                watch.probe_at = 0.0

    def _notice_pressure(self, watch: Watch) -> None:
        """The sandbox came near its memory limit, or went away from it: near it, what it has is worth keeping."""
        if watch.life is None or watch.life.pressure is None:
            return
        watch.life.pressure.drain()
        now = time.monotonic()
        with contextlib.suppress(OSError, ThawboxError):  # gone: the pidfd tells
            limit = self._context.journal.find(watch.id).spec.memory
            is_far = limit is None or not is_near(self._context.cgroup(watch.id), limit=limit)
            if now - watch.pressed_at >= _BETWEEN_PRESSURES and not is_far:
                watch.pressed_at, watch.checkpoint_at, watch.why_checkpoint = now, now, "memory pressure"

    def _begin_recovery(self, watch: Watch) -> None:
        watch.state, watch.recover_at = State.RECOVERING, NEVER
        wanted = jobs.Recovery(watch.id, watch.policy, watch.noticed_at, watch.hanging, watch.has_waited)
        watch.has_waited = False
        self._hand_out(
            self._recoveries, partial(jobs.recover, self._context, wanted, self._tell),
            watch, partial(self._end_recovery, watch),
        )  # fmt: skip

    def _end_recovery(self, watch: Watch, found: jobs.Recovered) -> None:
        if self._watches.get(watch.id) is not watch:
            return  # it was forgotten, or is supervised anew
        if isinstance(found, jobs.Alive):
            self._attach(watch, found.record)
        elif isinstance(found, jobs.Later):
            watch.recover_at, watch.has_waited = time.monotonic() + found.seconds, found.is_planned
            if found.is_planned:
                self._say(watch, "recover.waits", seconds=found.seconds)
        elif isinstance(found, jobs.Gone):
            self._drop(watch.id)
        elif isinstance(found, jobs.Ended):
            watch.state, watch.why = State.ENDED, found.why
            self._say(watch, "supervise.ended", why=found.why)
        else:
            self._give_up(watch, found.why)

    def _give_up(self, watch: Watch, why: str) -> None:
        """Try nothing more, and say so, once that is written down."""
        try:
            remember_supervised(self._context, watch.id, Supervised(watch.policy, gave_up=why))
        except (OSError, LockTimeout):  # our own disk: till then it is not given up, and looked at again
            watch.recover_at = time.monotonic() + jobs.DISK_SECONDS
            return
        watch.state, watch.why = State.GAVE_UP, why
        self._say(watch, "recover.gave_up", why=why)

    # --- errands ----------------------------------------------------------------------------------------------

    def _begin_probe(self, watch: Watch) -> None:
        health, life = watch.policy.health, watch.life
        if health is None or life is None:
            return
        watch.is_busy = True
        watch.probe_at = time.monotonic() + health.interval
        self._hand_out(
            self._probes, partial(jobs.ask, self._context, watch.id, health),
            watch, partial(self._end_probe, watch, life.keeper, health.threshold),
        )  # fmt: skip

    def _end_probe(self, watch: Watch, keeper: int, threshold: int, asked: jobs.Asked) -> None:
        watch.is_busy = False
        if watch.state is not State.WATCHING or watch.life is None or watch.life.keeper != keeper:
            return  # that life is over
        if asked.refusal is None or not asked.refusal:
            watch.refusals = 0
            return
        watch.refusals += 1
        self._say(watch, "health.refused", refusal=asked.refusal, times=watch.refusals)
        if watch.refusals >= threshold:
            watch.hanging = (keeper, f"it hung: {asked.refusal}")
            self._notice_death(watch)

    def _begin_checkpoint(self, watch: Watch) -> None:
        watch.is_busy = True
        every = watch.policy.checkpoint_every
        watch.checkpoint_at = time.monotonic() + every if every else NEVER
        make = partial(jobs.checkpoint, why=watch.why_checkpoint) if watch.has_first else jobs.first_checkpoint
        job = partial(make, self._context, watch.id, watch.policy, self._tell, allow=self._allow)
        watch.why_checkpoint = "periodic"
        self._hand_out(self._errands, job, watch, partial(self._end_checkpoint, watch))

    def _end_checkpoint(self, watch: Watch, made: jobs.Checkpointed) -> None:
        watch.is_busy = False
        watch.has_first = watch.has_first or made.snapshot is not None
        if not watch.has_first:
            watch.checkpoint_at = time.monotonic() + _AFTER_FAILED_CHECKPOINT

    def _begin_spare(self, watch: Watch) -> None:
        watch.is_busy, watch.spare_at = True, NEVER
        job = partial(jobs.renew_spare, self._context, watch.id, watch.spare)
        self._hand_out(self._errands, job, watch, partial(self._end_spare, watch))

    def _end_spare(self, watch: Watch, spare: jobs.Spare) -> None:
        watch.is_busy = False
        if self._watches.get(watch.id) is not watch:
            jobs.drop_spare(self._context, watch.id, spare)
        elif spare != watch.spare:
            watch.spare = spare
            self._say(watch, "spare.ready" if spare.is_held else "spare.refused", snapshot=spare.snapshot)

    def _hand_out(
        self, threads: ThreadPoolExecutor, job: Callable[[], _T], watch: Watch, end: Callable[[_T], None]
    ) -> None:
        """Do a job in another thread, then `end` it in this one."""
        is_errand = threads is self._errands
        self._errands_free -= is_errand

        def finish(finished: Future[_T]) -> None:
            self._errands_free += is_errand
            failure = finished.exception()
            if failure is None:
                end(finished.result())
            else:
                self._fail(watch, failure)

        threads.submit(job).add_done_callback(lambda finished: self._post(partial(finish, finished)))

    def _fail(self, watch: Watch, failure: BaseException) -> None:
        """What nobody foresaw: that sandbox is given up, the others are not, and `close` raises it."""
        self._failure = self._failure or failure
        self._detach(watch)
        watch.state = State.RECOVERING
        self._give_up(watch, f"a defect of thawbox: {failure!r}")


def _is_overruled(watch: Watch, supervised: Supervised) -> bool:
    """Whether another command has asked for something else since; what is under way is ended first."""
    if watch.state is State.RECOVERING:
        return False
    return watch.policy != supervised.policy or (watch.state is State.GAVE_UP and not supervised.gave_up)
