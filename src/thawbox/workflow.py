"""Workflows: steps in one sandbox, a snapshot after each that is worth one, and going on after any crash.

Rule 1: a step counts as completed when its snapshot and its line in the record are durable, in this order.
Rule 2: a workflow goes on from the snapshot of its last completed step: what a broken step left behind is gone.
Rule 3: `step_policy` decides which snapshot is taken and where to go on; here it is done.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import msgspec

from thawbox.errors import DumpFailed, EngineError, HookFailed, InvalidRequest, NotFound, SnapshotNotFound
from thawbox.host.files import locked, private_directory, write_durably
from thawbox.host.init_client import ExecRefused, ExecSession, Interrupted, Output
from thawbox.lifecycle import ALIVE
from thawbox.model import SandboxId, SnapshotId, checked_name
from thawbox.sandbox import Context, Sandbox, Snapshot
from thawbox.sandbox.checkpointing import Mode
from thawbox.step_policy import StepKind, Take, after_step, check_names, may_retry, remaining

_TAIL_BYTES = 4096
"""How much of a failed command's last words its error keeps."""


class StepFailed(EngineError):
    """A step's command failed; the workflow stands where its last completed step left it."""

    code = "engine.step"
    default_remediation = "mend the step, then go on with `thawbox workflow run FILE --resume`"


@dataclass(frozen=True, slots=True)
class Completed:
    """A completed step, and the snapshot that holds what it did. `at` is seconds since the epoch."""

    step: str
    kind: StepKind
    snapshot: SnapshotId
    at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a workflow got; `begun_from` is the snapshot before its first step."""

    sandbox: SandboxId
    begun_from: SnapshotId
    steps: tuple[Completed, ...] = ()

    @property
    def last_good(self) -> SnapshotId:
        return self.steps[-1].snapshot if self.steps else self.begun_from

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.step for one in self.steps)


class Workflow:
    """A named workflow of this node; a context manager, open in one process at a time (LockTimeout otherwise).

    with Workflow(node.context, "build") as workflow:
        workflow.resume() if workflow.is_begun else workflow.begin(sandbox)
        if workflow.is_pending("fetch"):
            with workflow.step("fetch", kind="key"):
                workflow.sandbox.run("fetch-everything")
    """

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self.name = checked_name(name, "workflow name")
        self._path = private_directory(context.home / "workflows") / f"{name}.json"
        self._progress: Progress | None = None
        self._undo = ExitStack()

    def __repr__(self) -> str:
        return f"<Workflow {self.name}>"

    def __enter__(self) -> Self:
        lock = private_directory(self._context.home / "locks") / f"workflow.{self.name}"
        with ExitStack() as undo:
            undo.enter_context(locked(lock, timeout=0, what=f"workflow {self.name}"))
            with contextlib.suppress(FileNotFoundError):
                self._progress = msgspec.json.decode(self._path.read_bytes(), type=Progress)
                self._pin(pinned=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def is_begun(self) -> bool:
        """Whether there is something to resume."""
        return self._progress is not None

    @property
    def progress(self) -> Progress:
        """How far it got; raises InvalidRequest before it was begun."""
        if self._progress is None:
            raise InvalidRequest(f"workflow {self.name} was not begun", remediation="begin it with a sandbox")
        return self._progress

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox that its steps run in; raises SandboxNotFound while only a snapshot of it is left."""
        return Sandbox(self._context, self._context.journal.find(self.progress.sandbox))

    def begin(self, sandbox: Sandbox) -> None:
        """Begin in this sandbox, with a snapshot to go back to before the first step.

        Raises InvalidRequest when the workflow was begun before: `resume` or `forget` it.
        """
        if self._progress is not None:
            raise InvalidRequest(f"workflow {self.name} was begun before", remediation="resume it, or forget it first")
        self._write(Progress(sandbox.id, self._checkpoint(sandbox, Take.FULL, step="")))

    def resume(self) -> str:
        """Bring the sandbox to where its last completed step left it; returns that step's name, empty if there is none.

        Whatever ran in it since then is undone. Raises what a restore raises.
        """
        self.roll_back()
        return self.progress.names[-1] if self.progress.steps else ""

    def roll_back(self) -> None:
        """End the sandbox as it is now and restore it as the last completed step left it."""
        with contextlib.suppress(NotFound):
            sandbox = self.sandbox
            if sandbox.state in ALIVE:
                sandbox.stop(timeout=0)
        Snapshot(self._context, self.progress.last_good).restore()

    def is_pending(self, step: str) -> bool:
        """Whether this step is still to be done."""
        return step not in self.progress.names

    @contextlib.contextmanager
    def step(self, name: str, *, kind: str = StepKind.KEY.value, roll_back: bool = False) -> Generator[None]:
        """The block does the step. When it succeeds, it is completed once this returns: the snapshot is durable.

        `kind` is `key` or `routine`. When the block raises or no snapshot can be taken, nothing is recorded, with
        `roll_back` the sandbox goes back to the last completed step, and the error goes on. Raises InvalidRequest for a
        step that is completed.
        """
        chosen = _kind_of(kind)
        check_names([*self.progress.names, name])
        try:
            yield
            self._complete(name, chosen)
        except BaseException:
            if after_step(chosen, succeeded=False, roll_back=roll_back).roll_back:
                self.roll_back()
            raise

    def _complete(self, step: str, kind: StepKind) -> None:
        take = after_step(kind, succeeded=True, roll_back=False).take
        snapshot = self._checkpoint(self.sandbox, take, step=step)
        done = Completed(step, kind, snapshot, self._context.now())
        self._write(replace(self.progress, steps=(*self.progress.steps, done)))

    def forget(self) -> None:
        """Forget how far it got. The sandbox stays; its snapshots stay too, until gc takes them."""
        self._pin(pinned=False)
        self._path.unlink()
        self._progress = None

    def _checkpoint(self, sandbox: Sandbox, take: Take, *, step: str) -> SnapshotId:
        made = sandbox.checkpoint(
            mode=Mode.FULL if take is Take.FULL else Mode.AUTO, skip_if_clean=take is Take.DELTA_IF_CHANGED
        )
        if made.report is None or not made.report.skipped:  # one that was there before keeps its own labels
            for key, value in {"workflow": self.name, **({"step": step} if step else {})}.items():
                self._context.store.label(made.id, key, value)
        return made.id

    def _write(self, progress: Progress) -> None:
        write_durably(self._path, msgspec.json.encode(progress))
        self._progress = progress
        self._pin(pinned=True)

    def _pin(self, *, pinned: bool) -> None:
        """Keep what may be gone back to; done after the record, so that a crash leaves nothing pinned for ever."""
        for snapshot in {self.progress.begun_from, *(one.snapshot for one in self.progress.steps)}:
            with contextlib.suppress(SnapshotNotFound):  # somebody removed it by hand
                self._context.store.pin(snapshot, pinned=pinned)


def _kind_of(word: str) -> StepKind:
    try:
        return StepKind(word)
    except ValueError:
        raise InvalidRequest(f"a step cannot be {word!r}", remediation="make it key or routine") from None


# Workflows of commands, as a file describes them (docs/workflows.md)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A command as a step. `timeout` is seconds, 0: as long as it takes; `retries` count beside the first try.

    Before each retry the sandbox goes back to the last completed step; with `roll_back` also after the last failure.
    """

    name: str
    argv: tuple[str, ...]
    kind: StepKind = StepKind.KEY
    roll_back: bool = False
    retries: int = 0
    timeout: float = 0.0
    user: str = ""
    workdir: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole workflow. `sandbox` holds the fields of a spec as they were written."""

    name: str
    steps: tuple[PlannedStep, ...]
    sandbox: dict[str, object]


class _Step(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    run: str | list[str]
    kind: StepKind = StepKind.KEY
    roll_back: bool = False
    retries: int = 0
    timeout: float = 0.0
    user: str = ""
    workdir: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    step: list[_Step]
    sandbox: dict[str, object] = {}


def read_plan(text: str) -> Plan:
    """A plan from TOML; raises InvalidRequest, naming the field that is wrong."""
    try:
        found = msgspec.toml.decode(text, type=_File)
    except msgspec.DecodeError as error:  # also what does not fit the fields
        raise InvalidRequest(f"the workflow cannot be read: {error}", remediation="see docs/workflows.md") from None
    checked_name(found.name, "workflow name")
    check_names([step.name for step in found.step])
    if not found.step:
        raise InvalidRequest(f"workflow {found.name} has no step", remediation="add a [[step]]")
    return Plan(found.name, tuple(_planned(step) for step in found.step), found.sandbox)


def _planned(step: _Step) -> PlannedStep:
    argv = ("/bin/sh", "-c", step.run) if isinstance(step.run, str) else tuple(step.run)
    if not argv or not argv[-1 if isinstance(step.run, str) else 0]:
        raise InvalidRequest(f"step {step.name!r} runs nothing", remediation="give it a command as `run`")
    if step.retries < 0 or not 0 <= step.timeout < 1e9:
        raise InvalidRequest(f"step {step.name!r}: retries and timeout cannot be negative")
    return PlannedStep(
        step.name, argv, step.kind, step.roll_back, step.retries, step.timeout, step.user, step.workdir
    )  # fmt: skip


Say = Callable[[str, str], None]
"""Hears `(step, what)` as a plan is carried out: what is begun, retried, completed, skipped."""
Show = Callable[[Output], None]
"""Gets what the commands print."""


def run_plan(workflow: Workflow, steps: Sequence[PlannedStep], *, say: Say, show: Show) -> None:
    """Carry out the steps that remain of a begun workflow, in order.

    Raises StepFailed when a command fails as often as it may; DumpFailed or HookFailed when, as often, no snapshot can
    be taken of what it did; InvalidRequest when the completed steps are not how the plan begins.
    """
    left = set(remaining([step.name for step in steps], workflow.progress.names))
    for step in steps:
        if step.name not in left:
            say(step.name, "skipped")
            continue
        _run_step(workflow, step, say=say, show=show)


def _run_step(workflow: Workflow, step: PlannedStep, *, say: Say, show: Show) -> None:
    tries = 0
    while True:
        tries += 1
        say(step.name, "begun")
        has_another = may_retry(tries, retries=step.retries)
        try:
            with workflow.step(step.name, kind=step.kind.value, roll_back=step.roll_back or has_another):
                _run_command(workflow.sandbox, step, show=show)
        except (StepFailed, DumpFailed, HookFailed):
            say(step.name, "failed")
            if not has_another:
                raise
        else:
            say(step.name, "completed")
            return


def _run_command(sandbox: Sandbox, step: PlannedStep, *, show: Show) -> None:
    deadline = time.monotonic() + step.timeout if step.timeout else None
    session = sandbox.exec(step.argv, user=step.user, workdir=step.workdir)
    if isinstance(session, ExecRefused):
        raise StepFailed(f"step {step.name!r}: {step.argv[0]} could not be started: {session.message}")
    assert isinstance(session, ExecSession)  # noqa: S101 - a session id comes only with `detach`
    tail = b""
    with session:
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                session.signal(signal.SIGKILL)
                raise _failed(step, f"did not end within {step.timeout:g} s", tail)
            for event in session.poll(left):
                if isinstance(event, Output):
                    tail = (tail + event.content)[-_TAIL_BYTES:]
                    show(event)
                elif isinstance(event, Interrupted):
                    raise _failed(step, f"was interrupted: {event.cause}", tail)
                elif event.exit_status:
                    raise _failed(step, f"ended with {event.exit_status}", tail)
                else:
                    return


def _failed(step: PlannedStep, how: str, tail: bytes) -> StepFailed:
    return StepFailed(f"step {step.name!r} {how}", log=tail.decode(errors="replace"))
