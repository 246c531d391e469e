"""Real deaths under supervision: afterwards it is what the snapshot was made of, and nothing is left over."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from full_disk import full_disk
from hearing import Heard
from thawbox.errors import InvalidRequest, LockTimeout, ThawboxError
from thawbox.host.proc import children, command_name
from thawbox.model import Health, Mount, Net, Phase, Restart, Spec
from thawbox.node import Node
from thawbox.pool import PoolSpec
from thawbox.restart_plan import Outcome, Policy
from thawbox.sandbox import Sandbox, Snapshot
from thawbox.sandbox.recovering import attempts_of, forget_supervised, recoveries_of
from thawbox.supervisor import Event, State, Supervisor, ask_for_supervision, jobs
from thawbox.supervisor.jobs import Checkpointed
from thawbox.supervisor.supervisor import _ERRANDS
from traces import Traces

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(120)]

WORKLOADS = Path(__file__).parents[1] / "workloads"
Ask = Callable[..., dict[str, Any]]
RunWorkload = Callable[..., Sandbox]
HTTP = Health("http://127.0.0.1:8000/", interval=0.05, timeout=1.0, threshold=2)
PATIENT = Policy(settled_after=0)
"""Every death is the first: nothing waits."""


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervisor(node: Node, heard: Heard) -> Iterator[Supervisor]:
    with Supervisor(node.context, tell=heard) as running:
        yield running


@pytest.fixture
def mortal(workload: RunWorkload) -> Sandbox:
    return workload("python3", "mortal.py", memory=128 << 20)


def tell_to_die(sandbox: Sandbox, word: str) -> None:
    with sandbox.connect(8000, timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(word.encode())
        connection.recv(1)  # nothing comes: it dies


def main_program(sandbox: Sandbox) -> int:
    (init,) = children(sandbox.record.keeper_pid)
    return children(init)[0]


def damage(node: Node, snapshot: Snapshot) -> None:
    """Flip one bit of the memory in a snapshot."""
    images = node.context.store.layout.images(snapshot.id)
    pages = max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    content = bytearray(pages.read_bytes())
    content[len(content) // 2] ^= 1
    pages.chmod(0o600)
    pages.write_bytes(content)


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        pytest.param(lambda one: os.kill(main_program(one), signal.SIGKILL), "killed by SIGKILL", id="SIGKILL"),
        pytest.param(lambda one: tell_to_die(one, "segv"), "killed by SIGSEGV", id="SIGSEGV"),
        pytest.param(lambda one: tell_to_die(one, "eat"), "out of memory", id="out of memory"),
        pytest.param(lambda one: tell_to_die(one, "fail"), "exited with 1", id="MemoryError"),
        pytest.param(
            lambda one: os.kill(one.record.keeper_pid, signal.SIGKILL), "killed from outside", id="its pid 1 killed"
        ),
    ],
)
def test_what_died_goes_on_as_its_last_snapshot(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard,
    death: Callable[[Sandbox], None], cause: str,
) -> None:  # fmt: skip
    ask(mortal, "grow")
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    before, kept = mortal.record, ask(mortal)
    death(mortal)
    assert cause in str(heard.until("recover.complete").details["cause"])
    after = mortal.record
    assert ask(mortal) == kept
    assert after.phase is Phase.RUNNING
    assert (after.id, after.name, after.hostname, after.machine_id, after.spec) == (
        before.id, before.name, before.hostname, before.machine_id, before.spec
    )  # fmt: skip
    assert mortal.stats().memory_limit == 128 << 20
    (recovery,) = recoveries_of(node.context, mortal.id)
    assert cause in str(recovery["cause"])
    assert recovery["snapshot"] == after.parent_snapshot


def test_what_was_not_in_the_snapshot_is_gone_and_what_was_lost_is_told(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    kept = ask(mortal, "grow")
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    assert ask(mortal, "grow")["file"] != kept["file"]
    tell_to_die(mortal, "segv")
    told = heard.until("recover.complete").details
    assert ask(mortal) == kept
    assert isinstance(told["lost_s"], float)
    assert told["lost_s"] > 0


def test_a_deadlock_is_noticed_by_its_health_probe_and_ended(
    mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    supervisor.supervise(mortal, Policy(health=HTTP, settled_after=0))
    heard.until("supervise.watching")
    kept = ask(mortal, "hang")
    assert "it hung" in str(heard.until("recover.complete").details["cause"])
    assert ask(mortal) == kept


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Set when the test is over."""
    over = threading.Event()
    yield over
    over.set()


@pytest.mark.parametrize("slow", ["probes", "checkpoints"])
def test_a_deadlock_is_noticed_however_slow_the_others_are(
    workload: RunWorkload, ask: Ask, supervisor: Supervisor, heard: Heard, held: threading.Event,
    monkeypatch: pytest.MonkeyPatch, slow: str,
) -> None:  # fmt: skip
    others = [workload("python3", "mortal.py") for _ in range(_ERRANDS)]
    wanted = workload("python3", "mortal.py")
    hurried = Policy(health=HTTP, settled_after=0)
    if slow == "probes":
        patient = Policy(health=replace(HTTP, timeout=1000.0))
        for one in others:
            supervisor.supervise(one, patient)
            ask(one, "hang")
        supervisor.supervise(wanted, hurried)
    else:
        for one in (wanted, *others):
            supervisor.supervise(one, hurried)
        begun = threading.Semaphore(0)
        monkeypatch.setattr(
            "thawbox.supervisor.jobs.checkpoint",
            lambda *_, **__: (begun.release(), held.wait(), Checkpointed(None))[2],
        )
        for one in others:
            supervisor.supervise(one, replace(hurried, checkpoint_every=0.01))
        for _ in others:
            begun.acquire()
        supervisor.supervise(wanted, replace(hurried, checkpoint_every=0.01))
    kept = ask(wanted, "hang")
    heard.until("recover.complete", sandbox=wanted.id)
    assert ask(wanted) == kept
    for one in others:
        supervisor.forget(one)
        if slow == "probes":
            one.remove(force=True)


def test_a_command_that_never_ends_is_an_unhealthy_answer(
    mortal: Sandbox, supervisor: Supervisor, heard: Heard
) -> None:
    health = Health("cmd:test -e /healthy || sleep 1000", interval=0.05, timeout=0.5, threshold=2)
    assert mortal.run("touch", "/healthy").outcome.exit_status == 0  # type: ignore[union-attr]
    supervisor.supervise(mortal, Policy(health=health, settled_after=0))
    heard.until("supervise.watching")
    mortal.run("rm", "/healthy")
    heard.until("recover.complete")
    assert mortal.run("test", "-e", "/healthy").outcome.exit_status == 0  # type: ignore[union-attr]


def test_a_damaged_snapshot_gives_way_to_the_one_before_it(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    kept = ask(mortal)
    older = mortal.checkpoint()
    ask(mortal, "grow")
    damage(node, mortal.checkpoint())
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    os.kill(main_program(mortal), signal.SIGKILL)
    assert heard.until("recover.failed").details["outcome"] == Outcome.REFUSED.value
    assert heard.until("recover.complete").details["snapshot"] == older.id
    assert ask(mortal) == kept


def test_a_snapshot_of_a_deadlock_gives_way_to_the_one_before_it(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    healthy = mortal.checkpoint()
    kept = ask(mortal, "hang")
    mortal.checkpoint()
    supervisor.supervise(mortal, Policy(health=HTTP, healthy_within=0.5, settled_after=0))
    assert heard.until("recover.failed").details["outcome"] == Outcome.UNHEALTHY.value
    assert heard.until("recover.complete").details["snapshot"] == healthy.id
    assert ask(mortal) == kept
    assert [one.outcome for one in attempts_of(node.context, mortal.id)] == [Outcome.UNHEALTHY, Outcome.RECOVERED]


def test_a_snapshot_whose_ready_command_never_ends_gives_way_to_the_one_before_it(
    workload: RunWorkload, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    asks = "import socket; socket.create_connection(('127.0.0.1', 8000))"
    ready_command = f'cmd:test -e /stuck && sleep 1000; python3 -c "{asks}"'
    sandbox = workload("python3", "mortal.py", ready=ready_command, ready_timeout=5.0)
    kept = ask(sandbox)
    ready = sandbox.checkpoint()
    sandbox.run("touch", "/stuck")
    sandbox.checkpoint()
    supervisor.supervise(sandbox, PATIENT)
    heard.until("supervise.watching")
    os.kill(main_program(sandbox), signal.SIGKILL)
    assert heard.until("recover.failed").details["outcome"] == Outcome.UNHEALTHY.value
    assert heard.until("recover.complete").details["snapshot"] == ready.id
    assert ask(sandbox) == kept


def kill_the_next_criu() -> threading.Thread:
    """Kills, as soon as there is one, a criu that this process started."""

    def hunt() -> None:
        while True:
            for child in children(os.getpid()):
                for pid in (child, *children(child)):
                    if command_name(pid) == "criu":
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            return

    hunter = threading.Thread(target=hunt)
    hunter.start()
    return hunter


def test_a_criu_killed_in_the_restore_is_followed_by_another_try(
    open_node: Callable[..., Node], mortal: Sandbox, ask: Ask, traces: Callable[[], Traces]
) -> None:
    heard = Heard()
    hunters: list[threading.Thread] = []

    def tell(event: Event) -> None:
        if event.what == "recover.started" and not hunters:
            hunters.append(kill_the_next_criu())
        heard(event)

    node = open_node(engine_timeout=15.0)  # what was forked of a killed criu may keep its connection open that long
    with Supervisor(node.context, tell=tell) as supervisor:
        kept = ask(mortal, "grow")
        supervisor.supervise(mortal, PATIENT)
        heard.until("supervise.watching")
        before = traces()
        os.kill(main_program(mortal), signal.SIGKILL)
        assert heard.until("recover.failed").details["outcome"] == Outcome.FAILED.value
        heard.until("recover.complete")
        assert ask(mortal) == kept
        hunters[0].join()
        assert len(traces().cgroups) == len(before.cgroups)
        assert traces().mounts == before.mounts


def test_a_program_that_dies_while_it_is_dumped_is_brought_back(
    mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    ask(mortal, "fill")  # so that the dump takes a while
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    kept, program = ask(mortal), main_program(mortal)
    failures: list[Exception] = []

    def checkpoint() -> None:
        try:
            mortal.checkpoint()
        except ThawboxError as error:
            failures.append(error)

    dumping = threading.Thread(target=checkpoint)
    dumping.start()
    while tracer_of(program) == 0 and dumping.is_alive():
        pass
    os.kill(program, signal.SIGKILL)
    heard.until("recover.complete")
    dumping.join()
    assert ask(mortal) == kept


def tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


def test_when_no_snapshot_can_be_restored_it_gives_up_and_says_so(
    open_node: Callable[..., Node], node: Node, mortal: Sandbox, supervisor: Supervisor, heard: Heard
) -> None:
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    for snapshot in node.snapshots():
        damage(node, snapshot)
    os.kill(main_program(mortal), signal.SIGKILL)
    heard.until("recover.gave_up")
    (status,) = supervisor.statuses()
    assert status.state is State.GAVE_UP
    assert "killed by SIGKILL; none of its 1 snapshots could be brought to life" in status.why
    assert mortal.state is Phase.EXITED


def test_a_crash_loop_waits_and_ends(mortal: Sandbox, supervisor: Supervisor, heard: Heard) -> None:
    supervisor.supervise(mortal, Policy(attempts=3, tries_per_snapshot=9, backoff=0.01))
    heard.until("supervise.watching")
    for _ in range(3):
        os.kill(main_program(mortal), signal.SIGKILL)
        heard.until("supervise.watching")
    os.kill(main_program(mortal), signal.SIGKILL)
    heard.until("recover.gave_up")
    assert [event.details["seconds"] for event in heard.all if event.what == "recover.waits"] == [0.01, 0.02]


def test_a_spare_follows_the_newest_snapshot_and_what_comes_of_it_is_the_sandbox_itself(
    node: Node, mortal: Sandbox, ask: Ask, traces: Callable[[], Traces]
) -> None:
    before, heard = traces(), Heard()
    with Supervisor(node.context, tell=heard) as supervisor:
        supervisor.supervise(mortal, Policy(spare=True, settled_after=0))
        first = heard.until("spare.ready").details["snapshot"]
        for _ in range(3):
            kept = ask(mortal, "grow")
            newest = mortal.checkpoint()
            assert newest.id != first
            supervisor.refresh()
            assert heard.until("spare.ready").details["snapshot"] == newest.id
            os.kill(main_program(mortal), signal.SIGKILL)
            assert heard.until("recover.complete").details["snapshot"] == newest.id
            assert ask(mortal) == kept
            heard.until("supervise.watching")
    assert len(traces().processes) == len(before.processes)
    assert traces().threads == before.threads


def test_a_stop_is_no_death_and_a_restore_is_watched_again(
    mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    kept = ask(mortal)
    supervisor.supervise(mortal, Policy(restart=Restart.ALWAYS, settled_after=0))
    heard.until("supervise.watching")
    mortal.stop(timeout=0)
    heard.until("supervise.ended")
    assert mortal.state is Phase.EXITED
    snapshot = mortal.record.parent_snapshot
    assert snapshot is not None
    Snapshot(supervisor._context, snapshot).restore()
    supervisor.refresh()
    heard.until("supervise.watching")
    os.kill(main_program(mortal), signal.SIGKILL)
    heard.until("recover.complete")
    assert ask(mortal) == kept


@pytest.mark.parametrize("restart", [Restart.ON_FAILURE, Restart.ALWAYS])
def test_exit_status_0_is_answered_only_by_always(
    mortal: Sandbox, supervisor: Supervisor, heard: Heard, restart: Restart
) -> None:
    supervisor.supervise(mortal, Policy(restart=restart, settled_after=0))
    heard.until("supervise.watching")
    tell_to_die(mortal, "exit")
    heard.until("recover.complete" if restart is Restart.ALWAYS else "supervise.ended")
    assert mortal.state is (Phase.RUNNING if restart is Restart.ALWAYS else Phase.EXITED)


def test_periodic_checkpoints_are_what_a_recovery_goes_back_to_and_old_ones_go(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    supervisor.supervise(mortal, Policy(checkpoint_every=0.05, keep=2, settled_after=0))
    first = node.snapshots()[0].id
    while not heard.until("checkpoint.complete").details["skipped"]:
        pass
    for _ in range(12):
        heard.forget()  # it is idle, and what was taken till now is without what comes
        kept = ask(mortal, "grow")
        while heard.until("checkpoint.complete").details["skipped"]:
            pass
        while not heard.until("checkpoint.complete").details["skipped"]:
            pass
    os.kill(main_program(mortal), signal.SIGKILL)
    heard.until("recover.complete")
    assert ask(mortal) == kept
    left = [snapshot.id for snapshot in node.snapshots()]
    assert first not in left
    assert len(left) <= 2 + node.context.settings.max_chain_length


def test_a_snapshot_that_a_user_made_is_never_taken_for_one_of_ours(
    node: Node, mortal: Sandbox, supervisor: Supervisor, heard: Heard
) -> None:
    by_hand = mortal.checkpoint()
    supervisor.supervise(mortal, Policy(checkpoint_every=0.02, keep=1))
    while not heard.until("checkpoint.complete").details["skipped"]:
        pass
    assert dict(by_hand.stored.facts.labels) == {}


def test_near_its_memory_limit_a_checkpoint_saves_what_it_has(
    mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    supervisor.supervise(mortal, Policy(checkpoint_on_pressure=True, settled_after=0))
    heard.until("supervise.watching")
    nonce = ask(mortal, "fill")["nonce"]
    while heard.until("checkpoint.complete").details["why"] != "memory pressure":
        pass
    tell_to_die(mortal, "eat")
    assert "out of memory" in str(heard.until("recover.complete").details["cause"])
    assert ask(mortal)["nonce"] == nonce


def test_supervision_goes_on_with_the_next_supervisor(
    node: Node, mortal: Sandbox, ask: Ask, traces: Callable[[], Traces]
) -> None:
    before = traces()
    first, second = Heard(), Heard()
    with Supervisor(node.context, tell=first) as supervisor:
        supervisor.supervise(mortal, PATIENT)
        kept = ask(mortal)
    assert traces().threads == before.threads
    assert traces().descriptors == before.descriptors
    os.kill(main_program(mortal), signal.SIGKILL)
    with Supervisor(node.context, tell=second):
        second.until("recover.complete")
        assert ask(mortal) == kept


def test_a_sandbox_whose_spec_asks_for_it_is_supervised_by_itself(
    workload: RunWorkload, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    sandbox = workload("python3", "mortal.py", restart=Restart.ALWAYS)
    kept = ask(sandbox)
    supervisor.refresh()
    assert heard.until("checkpoint.complete").details["why"] == "first"
    os.kill(main_program(sandbox), signal.SIGKILL)
    heard.until("recover.complete")
    assert ask(sandbox) == kept


def test_a_leased_clone_whose_template_asks_for_it_is_supervised_until_it_is_given_back(
    node: Node, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    spec = Spec(
        ("python3", "-B", "mortal.py"), workdir="/workloads", ready="tcp:8000", restart=Restart.ALWAYS,
        mounts=(Mount(str(WORKLOADS), "/workloads", read_only=True),),
    )  # fmt: skip
    node.create_template("mortal", spec)
    golden = {snapshot.id for snapshot in node.snapshots()}
    node.create_pool(PoolSpec("p", "mortal", low=1, high=1, limit=2))
    with node.open_pool("p") as pool, pool.acquire() as leased:
        kept = ask(leased)
        supervisor.refresh()
        heard.until("supervise.watching", sandbox=leased.id)
        assert heard.until("checkpoint.complete").details["why"] == "first"
        assert [status.sandbox for status in supervisor.statuses()] == [leased.id], "what is parked is its pool's"
        os.kill(main_program(leased), signal.SIGKILL)
        heard.until("recover.complete", sandbox=leased.id)
        assert ask(leased) == kept
        (lease,) = pool._ledger._leases
        assert leased.record.lease == lease
    pool.close()
    node.remove_pool("p", force=True)
    supervisor.refresh()
    assert supervisor.statuses() == []
    supervisor.close()
    assert {snapshot.id for snapshot in node.snapshots()} == golden


def test_what_another_command_asks_for_is_done(
    open_node: Callable[..., Node], mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    with open_node() as other:
        ask_for_supervision(other.context, other.sandbox(mortal.name), Policy(attempts=1, settled_after=0))
        supervisor.refresh()
        heard.until("supervise.watching")
        ask_for_supervision(other.context, other.sandbox(mortal.name), PATIENT)
        supervisor.refresh()
        heard.until("supervise.watching")
        assert [status.policy for status in supervisor.statuses()] == [PATIENT]
        forget_supervised(other.context, mortal.id)
        supervisor.refresh()
        assert supervisor.statuses() == []


def test_several_that_die_together_all_come_back(
    workload: RunWorkload, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    sandboxes = [workload("python3", "mortal.py") for _ in range(4)]
    kept = [ask(one) for one in sandboxes]
    for one in sandboxes:
        supervisor.supervise(one, PATIENT)
    for pid in [main_program(one) for one in sandboxes]:
        os.kill(pid, signal.SIGKILL)
    for _ in sandboxes:
        heard.until("recover.complete")
    assert [ask(one) for one in sandboxes] == kept


def test_what_is_forgotten_or_removed_is_not_brought_back(
    mortal: Sandbox, workload: RunWorkload, supervisor: Supervisor, heard: Heard
) -> None:
    other = workload("python3", "mortal.py")
    for sandbox in (mortal, other):
        supervisor.supervise(sandbox, PATIENT)
        heard.until("supervise.watching")
    supervisor.forget(mortal)
    os.kill(main_program(mortal), signal.SIGKILL)
    other.remove(force=True)
    supervisor.refresh()
    assert supervisor.statuses() == []
    assert mortal.state is Phase.EXITED
    assert "recover.started" not in heard.kinds()


def test_with_a_sandbox_go_the_snapshots_that_nobody_but_the_supervisor_made(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor
) -> None:
    supervisor.supervise(mortal, PATIENT)
    (ours,) = node.snapshots()
    ask(mortal, "grow")
    delta = mortal.checkpoint(name="mine")
    assert delta.stored.manifest.parent == ours.id
    supervisor.supervise(mortal, replace(PATIENT, checkpoint_on_drain=True))
    ask(mortal, "grow")
    assert supervisor.checkpoint_before_drain(timeout=60)
    assert len(node.snapshots()) == 3
    mortal.remove(force=True)
    supervisor.refresh()
    supervisor.close()
    assert {snapshot.id for snapshot in node.snapshots()} == {ours.id, delta.id}, "not what the named one needs"
    assert node.context.journal.entries("supervised") == {}


def test_a_frozen_sandbox_is_not_taken_for_a_hanging_one(
    mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: queue.SimpleQueue[jobs.Asked] = queue.SimpleQueue()

    def asking(*given: Any) -> jobs.Asked:
        found = ask_once(*given)
        asked.put(found)
        return found

    ask_once = jobs.ask
    supervisor.supervise(mortal, Policy(health=Health(HTTP.probe, interval=0.02, timeout=1.0, threshold=1)))
    heard.until("supervise.watching")
    kept = ask(mortal)
    mortal.freeze()
    monkeypatch.setattr(jobs, "ask", asking)
    for _ in range(10):  # each falls due, and is not asked of who cannot answer
        assert asked.get(timeout=60) == jobs.Asked(None)
    mortal.thaw()
    assert ask(mortal) == kept
    while asked.get(timeout=60) != jobs.Asked(""):  # and is asked again
        pass
    heard.forget()
    assert "health.refused" not in heard.kinds()
    assert "recover.started" not in heard.kinds()


def test_what_is_frozen_while_it_is_asked_has_not_refused(
    node: Node, mortal: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        mortal.freeze()
        return "did not answer"

    monkeypatch.setattr(jobs, "ask_health", refuse)
    assert jobs.ask(node.context, mortal.id, HTTP) == jobs.Asked(None)


def test_what_comes_back_has_its_address(workload: RunWorkload, ask: Ask, supervisor: Supervisor, heard: Heard) -> None:
    sandbox = workload("python3", "mortal.py", net=Net.NAT)
    address = sandbox.record.address
    supervisor.supervise(sandbox, PATIENT)
    heard.until("supervise.watching")
    kept = ask(sandbox)
    os.kill(main_program(sandbox), signal.SIGKILL)
    heard.until("recover.complete")
    assert ask(sandbox) == kept
    assert address
    assert sandbox.record.address == address
    has_it = sandbox.run("grep", "-qw", address, "/proc/net/fib_trie")
    assert has_it.outcome.exit_status == 0  # type: ignore[union-attr]


def test_before_a_drain_is_checkpointed_what_asks_for_it(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard
) -> None:
    supervisor.supervise(mortal, PATIENT)
    before = len(node.snapshots())
    assert supervisor.checkpoint_before_drain(timeout=0)
    assert len(node.snapshots()) == before
    supervisor.supervise(mortal, replace(PATIENT, checkpoint_on_drain=True))
    kept = ask(mortal, "grow")
    assert supervisor.checkpoint_before_drain(timeout=60)
    os.kill(main_program(mortal), signal.SIGKILL)
    heard.until("recover.complete")
    assert ask(mortal) == kept


def test_a_full_disk_ends_no_supervision(
    node: Node, mortal: Sandbox, ask: Ask, supervisor: Supervisor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thawbox.supervisor.jobs.DISK_SECONDS", 0.05)
    supervisor.supervise(mortal, PATIENT)
    heard.until("supervise.watching")
    kept = ask(mortal)
    with full_disk(node) as refusals:
        os.kill(main_program(mortal), signal.SIGKILL)
        while refusals.count < 3:
            heard.until("recover.failed")
    heard.until("recover.complete")
    assert ask(mortal) == kept
    heard.until("supervise.watching")
    for snapshot in node.snapshots():
        damage(node, snapshot)
    with full_disk(node):
        os.kill(main_program(mortal), signal.SIGKILL)
        heard.until("recover.failed")
    heard.until("recover.gave_up")
    supervisor.close()


def test_a_node_has_one_supervisor_at_a_time(node: Node, supervisor: Supervisor) -> None:
    with pytest.raises(LockTimeout, match="supervision"):
        Supervisor(node.context).start()


def test_a_sandbox_that_asks_for_nothing_needs_a_policy(mortal: Sandbox, supervisor: Supervisor) -> None:
    with pytest.raises(InvalidRequest, match="asks for no supervision"):
        supervisor.supervise(mortal)
