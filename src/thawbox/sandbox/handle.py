"""`Sandbox` and `Snapshot`: what a caller holds. Each verb locks, looks, acts, and brings the journal up to date."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from thawbox.errors import InvalidRequest, InvalidTransition, SandboxNotFound
from thawbox.host.cgroup import Stats
from thawbox.host.identity import lookup_user
from thawbox.host.init_client import Completed, ExecRefused, ExecSession
from thawbox.host.init_log import LogCursor, LogRecord, follow_log, read_log
from thawbox.host.init_wire import ExecRequest, SessionId, Terminal
from thawbox.host.memory_use import MemoryUse, memory_use
from thawbox.host.preflight import Finding
from thawbox.host.reach import connect_within
from thawbox.lifecycle import ALIVE, Verb, next_phase
from thawbox.model import Phase, SandboxId, SnapshotId, Spec
from thawbox.sandbox import background, checkpointing, cloning, ending, interpreter, restoring, warming
from thawbox.sandbox.checkpointing import CheckpointReport, Mode, Wish
from thawbox.sandbox.commands import Command
from thawbox.sandbox.context import Context
from thawbox.sandbox.files import Files
from thawbox.sandbox.flattening import flatten
from thawbox.sandbox.hooks import Injection, give
from thawbox.sandbox.interpreter import CodeRun
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link
from thawbox.sandbox.observe import observe
from thawbox.sandbox.preflight import preflight
from thawbox.sandbox.reserve import PER_SNAPSHOT
from thawbox.sandbox.reviving import RestoreTimes
from thawbox.sandbox.shells import open_log, root_layers
from thawbox.sandbox.threads import Making
from thawbox.store import Record as Stored
from thawbox.telemetry import Step, carried

PARALLEL_RESTORES = max(2, os.cpu_count() or 1)
"""Clones made at a time: a restore keeps one core busy, and waits little."""
PARALLEL_CLONES = 2 * PARALLEL_RESTORES
"""The same where they share a template's memory: such a clone waits for other processes half of its time."""


class Sandbox:
    """A sandbox of this node. As a context manager it is removed, processes and files, at the end of the block."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context = context
        self._record = record
        self.id: SandboxId = record.id
        self.name: str = record.name

    def __repr__(self) -> str:
        return f"<Sandbox {self.name} ({self.id}), {self._record.phase.value}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(SandboxNotFound):
            self.remove(force=True)

    @property
    def record(self) -> Record:
        """The journal's record, brought up to date; raises SandboxNotFound once it was removed."""
        self._record = observe(self._context, self._context.journal.find(self.id))
        return self._record

    @property
    def state(self) -> Phase:
        """Where in its life the sandbox is, as seen now."""
        return self.record.phase

    @property
    def spec(self) -> Spec:
        return self._record.spec

    # --- what is done to it -----------------------------------------------------------------------------------

    def checkpoint(
        self, *, mode: Mode = Mode.AUTO, stop: bool = False, skip_if_clean: bool = False, name: str = "",
        labels: Mapping[str, str] | None = None, ttl: float | None = None, pinned: bool = False,
        when_ready: bool = False,
    ) -> Snapshot:  # fmt: skip
        """Make a durable snapshot; with `stop` the sandbox does not run on.

        AUTO makes a delta where this node has the snapshot that the sandbox came from. With `skip_if_clean` nothing is
        made when nothing changed, and the answer is the existing one. `ttl` is seconds. With `when_ready` it waits
        until the programs say that they may be checkpointed.
        Raises InvalidTransition, InvalidRequest, DumpFailed, HookFailed; the sandbox is then as it was.
        """
        wish = Wish(mode, stop, skip_if_clean, name, labels or {}, ttl, pinned, when_ready)
        checkpointing.wait_for_wish(self._context, self.record, wish)
        lock = background.take_finishing_lock(self._context, self.id)
        try:
            with self._step("checkpoint") as step, self._change() as record:
                self._record, report = checkpointing.checkpoint(self._context, record, wish)
                step.note(
                    snapshot=report.id, kind=report.kind.value, bytes=report.bytes, skipped=report.skipped,
                    frozen_ms=report.frozen_ms,
                )  # fmt: skip
        finally:
            background.release_finishing_lock(self._context, self.id, lock)
        return Snapshot(self._context, report.id, report=report)

    def begin_checkpoint(self, wish: Wish, *, program: Sequence[str] = ()) -> PendingSnapshot:
        """The same, but it returns when the sandbox runs again; the snapshot is listed when it is whole.

        A thread of this process finishes it, which `close` of the node waits for; or `program`, a command that does
        as `thawbox.cli.finish`, in a process of its own, so that this one may end. Raises InvalidRequest with `stop`.
        """
        checkpointing.wait_for_wish(self._context, self.record, wish)
        lock = background.take_finishing_lock(self._context, self.id)
        try:
            with self._step("checkpoint.begin") as step, self._change() as record:
                staging, unfinished = checkpointing.begin(self._context, record, wish)
                step.note(frozen_ms=unfinished.report.frozen_ms)
        except BaseException:
            background.release_finishing_lock(self._context, self.id, lock)
            raise
        if program:
            background.hand_over(self._context, staging, lock, program=program)
        else:
            background.finish_in_thread(self._context, staging, lock)
        return PendingSnapshot(self._context, staging.token, unfinished.report.frozen_ms)

    def fork(self, count: int = 1, *, name: str = "") -> list[Sandbox]:
        """Checkpoint and make `count` clones of it, which run beside the original."""
        return self.checkpoint().clones(count, name=name)

    def freeze(self) -> None:
        """Stop every task until `thaw`: memory is held, no CPU is used."""
        with self._step("freeze"), self._change() as record:
            after = next_phase(record.phase, Verb.FREEZE, who=record.name)
            if after is record.phase:
                return
            with checkpointing.without_connections(self._context, record):
                cgroup = self._context.cgroup(self.id)
                self._turn(replace(record, phase=after), by=cgroup.freeze, back=cgroup.thaw)

    def thaw(self) -> None:
        """Let every task run again."""
        with self._step("thaw"), self._change() as record:
            after = next_phase(record.phase, Verb.THAW, who=record.name)
            cgroup = self._context.cgroup(self.id)
            self._turn(replace(record, phase=after), by=cgroup.thaw, back=cgroup.freeze)

    def stop(self, *, timeout: float | None = None) -> None:
        """End the main program by SIGTERM, after `timeout` seconds (default: the setting) by SIGKILL."""
        seconds = self._context.settings.stop_timeout if timeout is None else timeout
        with self._step("stop"), self._change() as record:
            self._record = ending.stop(self._context, record, timeout=seconds)

    def remove(self, *, force: bool = False) -> None:
        """Remove an ended sandbox and its files; `force` kills a running one. Snapshots stay, but the supervisor's."""
        with self._step("remove"), self._change() as record:
            ending.remove(self._context, record, force=force)

    # --- what is done inside it -------------------------------------------------------------------------------

    def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, user: str = "", workdir: str = "",
        terminal: Terminal | None = None, stdin: bool = False, detach: bool = False,
    ) -> ExecSession | SessionId | ExecRefused:  # fmt: skip
        """Start a program inside. An ExecSession streams it; with `detach` it belongs to the sandbox alone.

        A program that cannot be started gives ExecRefused. Raises InvalidTransition when the sandbox does not run.
        """
        record = self.record
        next_phase(record.phase, Verb.EXEC, who=record.name)
        account = lookup_user(root_layers(self._context, record), user or record.spec.user)
        request = ExecRequest(
            argv=tuple(argv), env={"HOME": account.home, **(env or {})}, uid=account.uid, gid=account.gid,
            groups=account.groups, cwd=workdir or record.spec.workdir, terminal=terminal, stdin=stdin, detach=detach,
        )  # fmt: skip
        with self._step("exec"), open_link(self._context, record) as link:
            return link.exec(request)

    def command(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, user: str = "", workdir: str = "",
        terminal: Terminal | None = None, stdin: bool = False, timeout: float | None = None,
    ) -> Command | ExecRefused:  # fmt: skip
        """Start a program inside that one thread follows while others talk to it; `timeout` (seconds) kills it."""
        session = self.exec(argv, env=env, user=user, workdir=workdir, terminal=terminal, stdin=stdin)
        if isinstance(session, ExecSession):
            return Command(session, self._context.cgroup(self.id), timeout=timeout)
        assert isinstance(session, ExecRefused)  # noqa: S101 - a session id comes only with `detach`
        return session

    def run_code(self, code: str, *, context: str = "default", timeout: float | None = None) -> CodeRun:
        """Run Python code in an interpreter that stays in the sandbox, with its variables, under the context's name.

        Follow it by `events`, or wait for its `result`. Raises InvalidTransition, InvalidRequest, Unsupported where
        the sandbox has no python3.
        """
        record = self.record
        next_phase(record.phase, Verb.EXEC, who=record.name)
        return interpreter.begin(self._context, record, self.exec, code, name=context, timeout=timeout)

    def end_code(self, context: str = "default") -> None:
        """End the interpreter of that name with all it holds; nothing happens if there is none."""
        record = self.record
        next_phase(record.phase, Verb.EXEC, who=record.name)
        interpreter.end(self._context, record, name=context)

    @property
    def files(self) -> Files:
        """Its files, inside its own root alone."""
        return Files(self._context, self.id)

    def run(self, *argv: str, stdin: bytes = b"", user: str = "") -> Completed | ExecRefused:
        """Run a program inside to its end and collect what it prints."""
        session = self.exec(argv, stdin=True, user=user)
        if isinstance(session, ExecSession):
            with session:
                return session.communicate(stdin)
        assert isinstance(session, ExecRefused)  # noqa: S101 - a session id comes only with `detach`
        return session

    def give(self, *, secrets: Mapping[str, bytes] | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Give its programs secrets and environment now, as to a clone that waited in a pool; stored nowhere.

        Raises InvalidTransition when it does not run, InvalidRequest when nobody takes them, HookFailed.
        """
        with self._step("give"), self._change() as record:
            next_phase(record.phase, Verb.EXEC, who=record.name)
            injection = Injection(secrets or {}, environment or {})
            if injection and not record.given:
                self._update(replace(record, given=True))
            try:
                give(self._context, record, injection)
            except InvalidRequest:  # nobody was told
                self._update(record)
                raise

    def connect(self, port: int, *, timeout: float = 10.0) -> socket.socket:
        """A TCP connection to a port of the sandbox's loopback, whatever network it has."""
        record = self.record
        if record.phase not in ALIVE:
            raise InvalidTransition(f"{record.name} is {record.phase.value}: nothing listens in it")
        return connect_within(record.keeper_pid, port, timeout=timeout)

    def logs(self, *, after: LogCursor | None = None, follow: bool = False) -> Iterator[LogRecord]:
        """What the main program printed, oldest first, from `after` on; with `follow` until the sandbox ends."""
        directory = open_log(self._context, self.record)
        try:
            if follow:
                yield from follow_log(directory, after=after, stop=lambda: self.state not in ALIVE)
            else:
                yield from read_log(directory, after=after)
        finally:
            os.close(directory)

    # --- what is known of it ----------------------------------------------------------------------------------

    def preflight(self) -> tuple[Finding, ...]:
        """What in it cannot be frozen, or may not: each with process, descriptor, cause and remedy; empty is good."""
        return preflight(self._context, self.record)

    def stats(self) -> Stats:
        """Memory, CPU and tasks now; raises InvalidTransition when it does not run."""
        record = self.record
        if record.phase not in ALIVE:
            raise InvalidTransition(f"{record.name} is {record.phase.value}: it uses nothing")
        return self._context.cgroup(self.id).stats()

    def memory_use(self) -> MemoryUse:
        """What its processes have of their own and what they share, with a template's other clones among others.

        It takes the kernel a walk over their memory: a millisecond for a clone, more for gigabytes.
        """
        return memory_use(self._context.cgroup(self.id).pids())

    @contextlib.contextmanager
    def _change(self) -> Generator[Record]:
        with self._context.exclusive(self.id):
            try:
                record = self.record
            except SandboxNotFound:
                self._context.remove_locks(self.id)  # taking them has made them anew
                raise
            yield record

    def _step(self, what: str) -> Step:
        return self._context.telemetry.step(what, sandbox=self.id)

    def _turn(self, record: Record, *, by: Callable[[], None], back: Callable[[], None]) -> None:
        """Do something and write down what is so then; where that cannot be written, it is so no longer.

        A frozen tree that counts as running looks to a supervisor like one that hangs.
        """
        by()
        try:
            self._update(record)
        except BaseException:
            back()
            raise

    def _update(self, record: Record) -> None:
        self._context.journal.update(record)
        self._record = record


class PendingSnapshot:
    """A snapshot on its way. `token` names it to whoever waits for it; `frozen_ms` is how long the sandbox stood."""

    def __init__(self, context: Context, token: str, frozen_ms: float) -> None:
        self._context = context
        self.token = token
        self.frozen_ms = frozen_ms

    def __repr__(self) -> str:
        return f"<PendingSnapshot {self.token}>"

    def wait(self, *, timeout: float | None = None) -> Snapshot:
        """The snapshot, once it is whole; `timeout` is seconds (default: the engine's).

        Raises LockTimeout, DumpFailed when it could not be made, SnapshotNotFound when its process died.
        """
        return wait_for_snapshot(self._context, self.token, timeout=timeout)


def wait_for_snapshot(context: Context, token: str, *, timeout: float | None = None) -> Snapshot:
    """The snapshot of a token, once it is whole, whoever is finishing it; raises as `PendingSnapshot.wait` does."""
    seconds = context.settings.engine_timeout if timeout is None else timeout
    return Snapshot(context, background.wait_finished(context, token, timeout=seconds))


class Snapshot:
    """A snapshot of this node's store. `report` is there when this process has just made it."""

    def __init__(self, context: Context, snapshot: SnapshotId, *, report: CheckpointReport | None = None) -> None:
        self._context = context
        self.id: SnapshotId = snapshot
        self.report = report

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:12]}>"

    @property
    def stored(self) -> Stored:
        """Its manifest, names, labels and sizes; raises SnapshotNotFound once it was removed."""
        return self._context.store.record(self.id)

    def flatten(self, *, name: str = "") -> Snapshot:
        """A full snapshot equal to this link of a chain; this one stays. Raises IntegrityError for a damaged chain."""
        return Snapshot(self._context, flatten(self._context, self.id, name=name))

    def restore(
        self, *, secrets: Mapping[str, bytes] | None = None, environment: Mapping[str, str] | None = None,
        eager: bool = False,
    ) -> tuple[Sandbox, RestoreTimes]:  # fmt: skip
        """Bring the very sandbox back that this snapshot was made of. Raises InvalidTransition while it runs.

        `secrets` and `environment` are told to its hooks and stored nowhere. Raises HookFailed when a hook fails,
        StartFailed when it is not ready in time; nothing has changed then.
        With `eager` its memory is read from the files, though it may be held ready.
        """
        injection = Injection(secrets or {}, environment or {})
        record, times = restoring.restore(self._context, self.id, injection=injection, eager=eager)
        return Sandbox(self._context, record), times

    def clone(
        self, *, name: str = "", secrets: Mapping[str, bytes] | None = None,
        environment: Mapping[str, str] | None = None, eager: bool = False,
    ) -> Sandbox:  # fmt: skip
        """A new sandbox, with a new identity, that goes on from this snapshot.

        `secrets` and `environment` are told to its hooks and stored nowhere. Raises HookFailed when a hook fails.
        Its memory is shared, copy on write, where it is held ready, as it is once clones are asked for again and
        again; with `eager` it is read from the files.
        """
        return self.clone_timed(name=name, secrets=secrets, environment=environment, eager=eager)[0]

    def clone_timed(
        self, *, name: str = "", secrets: Mapping[str, bytes] | None = None,
        environment: Mapping[str, str] | None = None, eager: bool = False,
    ) -> tuple[Sandbox, RestoreTimes]:  # fmt: skip
        if not eager:
            warming.note_clone(self._context, self.id)
        injection = Injection(secrets or {}, environment or {})
        record, times = cloning.clone(self._context, self.id, name=name, injection=injection, eager=eager)
        return Sandbox(self._context, record), times

    def warm(self, *, shells: int = PER_SNAPSHOT) -> bool:
        """Hold this snapshot's memory ready, so that clones and restores share it; False where that cannot be now.

        Besides, `shells` namespaces with all their mounts are kept ready for clones. Memory that gets short takes both
        away, until there is room again or `cool`. Raises IntegrityError, Incompatible.
        """
        return warming.hold(self._context, self.id, holder="caller", shells=shells)

    def cool(self) -> None:
        """Give up what `warm` holds, and what is held for demand alone; clones run on."""
        warming.release(self._context, self.id, holder="caller")

    def clones(self, count: int, *, name: str = "", eager: bool = False) -> list[Sandbox]:
        """`count` clones at once; if one fails, `progress` raises or Ctrl-C comes, all are removed and that is raised.

        Several share their memory, copy on write, where the engine can do that; `eager` reads it for each.
        """
        return [sandbox for sandbox, _ in self.clones_timed(count, name=name, eager=eager)]

    def clones_timed(
        self, count: int, *, name: str = "", eager: bool = False, progress: Callable[[], None] | None = None,
        secrets: Mapping[str, bytes] | None = None, environment: Mapping[str, str] | None = None,
    ) -> list[tuple[Sandbox, RestoreTimes]]:  # fmt: skip
        is_warm = not eager and warming.warm_for(self._context, self.id, count)
        at_once = PARALLEL_CLONES if is_warm else PARALLEL_RESTORES
        names = [name] if count == 1 else [f"{name}-{number}" if name else "" for number in range(1, count + 1)]
        making = Making[Sandbox]()

        def make(one: str) -> tuple[Sandbox, RestoreTimes]:
            with making.one() as note:
                clone = self.clone_timed(name=one, secrets=secrets, environment=environment, eager=eager)
                note(clone[0])
                return clone

        with ThreadPoolExecutor(at_once, "thawbox-clone") as threads:
            try:
                futures = [threads.submit(carried(make), one) for one in names]
                for future in futures:
                    future.result()
                    if progress is not None:
                        progress()
                return [future.result() for future in futures]
            except BaseException:
                with contextlib.ExitStack() as undo:
                    for sandbox in making.stop():
                        undo.callback(sandbox.remove, force=True)
                raise
