"""Copy-on-write dumps: what they take is one moment, what they do is seen by nobody, and nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thawbox.engines import INIT_PID, Engine, Freeze, Place
from thawbox.errors import DumpFailed, ThawboxError
from thawbox.host.proc import children, pid_inside
from thawbox.model import Phase
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

RunWorkload = Callable[..., Sandbox]
OpenNode = Callable[..., Node]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def dumps(request: pytest.FixtureRequest) -> int:
    count: int = request.config.getoption("--dumps")
    return count


def freeze_of(sandbox: Sandbox, **wish: Any) -> tuple[Freeze, str]:
    """How a checkpoint held the sandbox, and why not shorter."""
    report = sandbox.checkpoint(**wish).report
    assert report is not None
    return report.freeze, report.why_plain


def tree(pid: int) -> set[int]:
    """A process and all below it, the dead among them that nobody has taken note of."""
    return {pid}.union(*(tree(child) for child in children(pid)))


def assert_nothing_stays(sandbox: Sandbox, processes: set[int]) -> None:
    """The kernel ends what criu held when criu ends, and the keeper takes note of it: both as soon as they run."""
    deadline = time.monotonic() + 30
    while (found := tree(sandbox.record.keeper_pid)) != processes:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/stat").read_text() for pid in found - processes]
        time.sleep(0.005)


@pytest.mark.timeout(7200)  # by --dumps there may be thousands
def test_memory_that_is_written_all_the_time_is_taken_in_one_moment(
    workload: RunWorkload, ask: Ask, dumps: int
) -> None:
    sandbox = workload("python3", "stamps.py")
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    assert begun["torn"] == [0, 0, 0, 0]
    for _ in range(dumps):
        snapshot = sandbox.checkpoint()
        assert snapshot.report is not None
        assert snapshot.report.freeze is Freeze.COW, snapshot.report.why_plain
        sandbox.freeze()  # two busy groups on one processor: kernel 6.18 may give one of them none for a minute
        clone = snapshot.clone()
        assert ask(clone, "move")["kept"] == begun
        clone.remove(force=True)
        sandbox.thaw()
    assert ask(sandbox, "move")["kept"] == begun
    assert_nothing_stays(sandbox, processes)


@pytest.mark.parametrize("kind", ["ordinary", "subreaper"])
def test_a_program_that_watches_its_children_signals_and_descriptors_sees_nothing_of_it(
    workload: RunWorkload, ask: Ask, kind: str
) -> None:
    sandbox = workload("python3", "watchful.py", kind)
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    for _ in range(5):
        assert freeze_of(sandbox) == (Freeze.COW, "")
        now = ask(sandbox, "move")["kept"]
        assert now["told"] == []
        assert now == begun
    assert_nothing_stays(sandbox, processes)


@pytest.mark.parametrize("kind", ["ordinary", "filter"])
def test_memory_that_a_fork_does_not_copy_comes_back_too(workload: RunWorkload, ask: Ask, kind: str) -> None:
    """With `filter`: a program that would be killed for what copying it takes."""
    sandbox = workload("python3", "odd_memory.py", kind)
    begun, processes = ask(sandbox)["kept"], tree(sandbox.record.keeper_pid)
    snapshot = sandbox.checkpoint()
    assert snapshot.report is not None
    assert (snapshot.report.freeze, snapshot.report.why_plain) == (Freeze.COW, "")
    assert ask(sandbox)["kept"] == begun
    assert ask(snapshot.clone())["kept"] == begun
    assert ask(sandbox.checkpoint().clone())["kept"] == begun
    assert_nothing_stays(sandbox, processes)


def test_what_would_show_in_system_v_shared_memory_is_not_done(workload: RunWorkload, ask: Ask) -> None:
    sandbox = workload("python3", "odd_memory.py", "sysv")
    begun, processes = ask(sandbox)["kept"], tree(sandbox.record.keeper_pid)
    snapshot = sandbox.checkpoint()
    assert snapshot.report is not None
    assert snapshot.report.freeze is Freeze.PLAIN
    assert "System V shared memory" in snapshot.report.why_plain
    assert ask(snapshot.clone())["kept"] == begun
    assert_nothing_stays(sandbox, processes)


def test_without_pids_to_spare_the_dump_is_a_plain_one_and_says_so(workload: RunWorkload, ask: Ask) -> None:
    sandbox = workload("python3", "agent.py", "4", pids=64)
    begun, processes = ask(sandbox)["kept"], tree(sandbox.record.keeper_pid)
    used = sandbox.stats().pids
    cgroup = sandbox._context.cgroup(sandbox.id)
    snapshots = []
    for spare in range(4):
        (cgroup._group(cgroup.layout.seat("pids")) / "pids.max").write_text(str(used + spare))
        snapshot = sandbox.checkpoint()
        assert snapshot.report is not None
        snapshots.append((snapshot.report.freeze, snapshot.report.why_plain))
        assert_nothing_stays(sandbox, processes)
        assert sandbox.stats().pids == used
    assert {freeze for freeze, _ in snapshots} == {Freeze.PLAIN}
    assert all("cloned" in why or "copied" in why for _, why in snapshots), snapshots
    assert ask(sandbox, "move")["kept"] == begun
    assert ask(snapshot.clone(), "move")["kept"]["memory"] == begun["memory"]


def test_a_memory_limit_that_is_no_number_of_whole_pages_is_put_back_too(workload: RunWorkload, ask: Ask) -> None:
    sandbox = workload("python3", "stamps.py", "1000", memory=500_000_000)
    before = sandbox.stats().memory_limit
    assert sandbox.checkpoint().report is not None
    assert sandbox.stats().memory_limit == before
    assert before is not None and 500_000_000 - 4096 < before <= 500_000_000


def test_a_tight_memory_limit_neither_kills_the_program_nor_stays_raised(workload: RunWorkload, ask: Ask) -> None:
    limit = 72 << 20
    sandbox = workload("python3", "stamps.py", "4000", memory=limit)  # 4 writers of 16 MiB each
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    for _ in range(3):
        assert freeze_of(sandbox) == (Freeze.COW, "")
        assert sandbox.stats().memory_limit == limit
        assert ask(sandbox, "move")["kept"] == begun
    assert sandbox.stats().oom_kills == 0
    assert_nothing_stays(sandbox, processes)


class Killing:
    """The real engine, whose criu is killed at one moment of a dump."""

    def __init__(self, engine: Engine, moment: str) -> None:
        self._engine, self._moment = engine, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def dump(self, place: Place, images: Path, **options: Any) -> Any:
        then = options[self._moment]

        def kill() -> None:
            then()
            for pid in criu_processes():
                os.kill(pid, signal.SIGKILL)

        options[self._moment] = kill
        return self._engine.dump(place, images, **options)


def criu_processes() -> list[int]:
    """The criu that this process has had started; a launcher waits for it."""
    return [pid for child in children(os.getpid()) if _launches_criu(child) for pid in children(child)]


def _launches_criu(pid: int) -> bool:
    try:
        return b"swrk" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_when_criu_is_killed_while_it_holds_the_tree_and_its_copies_nothing_of_it_stays(
    open_node: OpenNode, node: Node, workload: RunWorkload, ask: Ask
) -> None:
    sandbox = workload("python3", "stamps.py")
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    harmed = open_node(engine=Killing(node.context.engine, "while_stopped"))  # type: ignore[arg-type]
    with pytest.raises(DumpFailed) as failed:
        harmed.sandbox(sandbox.id).checkpoint()
    assert failed.value.remediation
    assert_nothing_stays(sandbox, processes)
    assert not list(node.snapshots())
    assert node.sandbox(sandbox.id).state is Phase.RUNNING
    assert ask(sandbox, "move")["kept"] == begun
    assert freeze_of(sandbox) == (Freeze.COW, "")


def test_when_criu_is_killed_before_its_copies_are_read_the_sandbox_is_dumped_again_plainly(
    open_node: OpenNode, node: Node, workload: RunWorkload, ask: Ask
) -> None:
    sandbox = workload("python3", "stamps.py")
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    harmed = open_node(engine=Killing(node.context.engine, "when_running"))  # type: ignore[arg-type]
    snapshot = harmed.sandbox(sandbox.id).checkpoint()
    assert snapshot.report is not None
    assert snapshot.report.freeze is Freeze.PLAIN
    assert_nothing_stays(sandbox, processes)
    assert ask(sandbox, "move")["kept"] == begun
    assert ask(snapshot.clone(), "move")["kept"] == begun


def test_when_criu_is_killed_at_any_moment_no_copy_stays(workload: RunWorkload, ask: Ask) -> None:
    """Moments are spread over the time that a dump takes: before the freeze, in it, and while copies are read.

    While CRIU makes a task run its own code, the task may not outlive it, in plain dumps as in these: then all is gone.
    """
    sandbox = workload("python3", "stamps.py", "2000")
    begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    started = time.monotonic()
    assert freeze_of(sandbox) == (Freeze.COW, "")
    took, killed = time.monotonic() - started, 0
    for moment in range(10):
        with killing_after(took * moment / 10) as was_killed, contextlib.suppress(ThawboxError):
            sandbox.checkpoint()
        killed += was_killed.is_set()
        with contextlib.suppress(OSError, ThawboxError):
            assert ask(sandbox, "move")["kept"] == begun
            assert_nothing_stays(sandbox, processes)
            continue
        sandbox.remove(force=True)
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
        sandbox = workload("python3", "stamps.py", "2000")
        begun, processes = ask(sandbox, "move")["kept"], tree(sandbox.record.keeper_pid)
    assert killed


@contextlib.contextmanager
def killing_after(seconds: float) -> Iterator[threading.Event]:
    """In the block, the first criu that is seen is killed after so many seconds; the event says if one was."""
    over, killed = threading.Event(), threading.Event()

    def kill() -> None:
        while not over.is_set():
            if found := criu_processes():
                over.wait(seconds)
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.set()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


class Meddling(Killing):
    """The real engine; when copies are about to be read, one has been ended by somebody."""

    def dump(self, place: Place, images: Path, **options: Any) -> Any:
        then = options["when_running"]

        def meddle() -> None:
            then()
            for pid in children(place.keeper):
                if pid_inside(pid) != INIT_PID:
                    os.kill(pid, signal.SIGKILL)

        options["when_running"] = meddle
        return self._engine.dump(place, images, **options)


def test_a_copy_that_is_ended_before_it_is_read_costs_a_longer_freeze_and_nothing_else(
    open_node: OpenNode, node: Node, workload: RunWorkload, ask: Ask
) -> None:
    sandbox = workload("python3", "agent.py", "4")
    begun, processes = ask(sandbox)["kept"], tree(sandbox.record.keeper_pid)
    meddled = open_node(engine=Meddling(node.context.engine, ""))  # type: ignore[arg-type]
    snapshot = meddled.sandbox(sandbox.id).checkpoint()
    assert snapshot.report is not None
    assert snapshot.report.freeze is Freeze.PLAIN
    assert "ended before its memory was read" in snapshot.report.why_plain
    assert_nothing_stays(sandbox, processes)
    assert ask(sandbox, "move")["kept"] == begun
    assert ask(snapshot.clone(), "move")["kept"]["memory"] == begun["memory"]


def test_what_fails_in_the_frozen_moment_leaves_no_copy(
    open_node: OpenNode, node: Node, workload: RunWorkload, ask: Ask
) -> None:
    class Failing(Killing):
        def dump(self, place: Place, images: Path, **options: Any) -> Any:
            def refuse() -> None:
                raise OSError(28, "no space left")

            return self._engine.dump(place, images, **{**options, self._moment: refuse})

    sandbox = workload("python3", "agent.py", "4")
    begun, processes = ask(sandbox)["kept"], tree(sandbox.record.keeper_pid)
    for moment in ("while_stopped", "when_running"):
        failing = open_node(engine=Failing(node.context.engine, moment))  # type: ignore[arg-type]
        with pytest.raises(OSError, match="no space left"):
            failing.sandbox(sandbox.id).checkpoint()
        assert_nothing_stays(sandbox, processes)
        assert ask(sandbox, "move")["kept"] == begun
    assert not list(node.snapshots())


def test_a_frozen_sandbox_and_one_that_stops_are_dumped_plainly(workload: RunWorkload, ask: Ask) -> None:
    sandbox = workload("python3", "agent.py", "1")
    begun = ask(sandbox)["kept"]
    sandbox.freeze()
    assert freeze_of(sandbox) == (Freeze.PLAIN, "the sandbox is frozen anyway")
    sandbox.thaw()
    stopped = sandbox.checkpoint(stop=True)
    assert stopped.report is not None
    assert (stopped.report.freeze, stopped.report.why_plain) == (Freeze.PLAIN, "the sandbox does not run on")
    stopped.restore()
    assert ask(sandbox, "move")["kept"] == begun


def test_by_setting_every_dump_is_a_plain_one(open_node: OpenNode, workload: RunWorkload) -> None:
    sandbox = workload("python3", "agent.py", "1")
    plain = open_node(short_freezes=False)
    assert freeze_of(plain.sandbox(sandbox.id)) == (Freeze.PLAIN, "short freezes are switched off")


def test_unchanged_pages_are_never_written(workload: RunWorkload) -> None:
    sandbox = workload("python3", "agent.py", "32")
    full = sandbox.checkpoint()
    delta = sandbox.checkpoint()
    assert full.report is not None
    assert delta.report is not None
    assert json.dumps([full.report.freeze.value, delta.report.freeze.value]) == '["cow", "cow"]'
    assert full.report.bytes > 32 << 20
    assert delta.report.bytes < 4 << 20
