"""Sandboxes outlive the process that made them, and what became of them is told rightly by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from thawbox.errors import InvalidRequest, InvalidTransition, SandboxNotFound
from thawbox.host.proc import children, wait_gone
from thawbox.model import Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from traces import Traces
from views import host_pid

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

Ask = Callable[..., dict[str, Any]]
OpenNode = Callable[..., Node]
Unchanged = Callable[[], AbstractContextManager[None]]

WAIT = "mkfifo /tmp/go; echo waiting; read -r _ < /tmp/go"
"""Begins a program that goes on when somebody writes a line to /tmp/go."""
WORKLOADS = Path(__file__).parents[1] / "workloads"
PRELUDE = f"""
import sys
from pathlib import Path
from thawbox.config import load_settings
from thawbox.model import Mount, Spec
from thawbox.node import Node
node = Node(load_settings(home=Path(sys.argv[1])))
spec = Spec(("python3", "agent.py"), name="agent", workdir="/workloads", ready="tcp:8000",
            mounts=(Mount({str(WORKLOADS)!r}, "/workloads", read_only=True),), env={{"PYTHONDONTWRITEBYTECODE": "1"}})
"""


@contextmanager
def other_process(home: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` with a `node` on `home` and a `spec` of an agent; killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(home)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_ended(node: Node, sandbox: Sandbox) -> None:
    record = node.context.journal.find(sandbox.id)
    assert wait_gone(record.keeper_pid, started=record.keeper_started, timeout=60)


def test_a_sandbox_runs_on_when_the_process_that_made_it_is_killed_and_the_next_node_adopts_it(
    home: Path, open_node: OpenNode, ask: Ask
) -> None:
    with other_process(home, "sandbox = node.run(spec); print(sandbox.id, flush=True); sys.stdin.read()") as process:
        made = heard(process)
        process.kill()
    node = open_node()
    assert node.adoption.adopted == (made,)
    assert not node.adoption.settled
    assert not node.adoption.removed
    sandbox = node.sandbox("agent")
    begun = ask(sandbox)["kept"]
    assert ask(sandbox, "move")["kept"] == begun
    snapshot = sandbox.checkpoint(stop=True)
    snapshot.restore()
    assert ask(sandbox)["kept"] == begun
    assert sandbox.run("cat", "/etc/hostname").stdout == b"agent\n"


def test_two_nodes_on_one_home_see_the_same_sandboxes(open_node: OpenNode) -> None:
    first, second = open_node(), open_node()
    sandbox = first.run(Spec(("sleep", "infinity"), name="shared"))
    assert second.sandbox("shared").state is Phase.RUNNING
    second.sandbox("shared").freeze()
    assert sandbox.state is Phase.FROZEN
    sandbox.thaw()
    second.sandbox("shared").remove(force=True)
    with pytest.raises(SandboxNotFound):
        _ = sandbox.state


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        (("sh", "-c", "exit 0"), Phase.EXITED, "exited with 0"),
        (("sh", "-c", "exit 7"), Phase.EXITED, "exited with 7"),
        (("sh", "-c", "kill -KILL $$"), Phase.EXITED, "SIGKILL"),
        (("sh", "-c", "kill -SEGV $$"), Phase.EXITED, "SIGSEGV"),
    ],
)
def test_how_the_main_program_ended_is_recorded(node: Node, command: tuple[str, ...], status: Phase, why: str) -> None:
    sandbox = node.run(Spec(("sh", "-c", f'{WAIT}; exec "$@"', "sh", *command), ready="log:waiting"))
    sandbox.run("sh", "-c", "echo > /tmp/go")
    wait_ended(node, sandbox)
    assert sandbox.state is status
    assert why in sandbox.record.ended_why


def test_a_program_that_ends_while_no_node_lives_is_known_to_the_next(home: Path, open_node: OpenNode) -> None:
    code = (
        f"WAIT = {WAIT!r}"
        + """
from thawbox.model import Spec
sandbox = node.run(Spec(("sh", "-c", WAIT + "; exit 9"), name="short", ready="log:waiting"))
sandbox.exec(["sh", "-c", "sleep 0.5; echo > /tmp/go"], detach=True)
print(sandbox.record.keeper_pid, sandbox.record.keeper_started, flush=True)
sys.stdin.read()
"""
    )
    with other_process(home, code) as process:
        pid, started = map(int, heard(process).split())
        process.kill()
    assert wait_gone(pid, started=started, timeout=60)
    node = open_node()
    assert node.sandbox("short").state is Phase.EXITED
    assert "exited with 9" in node.sandbox("short").record.ended_why
    assert len(node.adoption.settled) == 1


@pytest.mark.parametrize("whom", ["the keeper", "init"])
def test_a_sandbox_that_is_killed_from_outside_is_lost_and_can_be_restored(
    node: Node, workload: Callable[..., Sandbox], ask: Ask, whom: str
) -> None:
    sandbox = workload("python3", "agent.py")
    begun = ask(sandbox)["kept"]
    snapshot = sandbox.checkpoint()
    keeper = sandbox.record.keeper_pid
    os.kill(keeper if whom == "the keeper" else children(keeper)[0], signal.SIGKILL)
    wait_ended(node, sandbox)
    assert sandbox.state is Phase.LOST
    assert sandbox.record.ended_why
    with pytest.raises(InvalidTransition, match="lost"):
        sandbox.exec(["true"])
    snapshot.restore()
    assert ask(sandbox)["kept"] == begun


def test_a_name_is_taken_until_its_sandbox_is_removed(node: Node, unchanged: Unchanged) -> None:
    first = node.run(Spec(("sleep", "infinity"), name="agent"))
    with unchanged(), pytest.raises(InvalidRequest, match="taken"):
        node.run(Spec(("sleep", "infinity"), name="agent"))
    first.stop(timeout=0)
    with unchanged(), pytest.raises(InvalidRequest, match="taken"):
        node.run(Spec(("sleep", "infinity"), name="agent"))
    first.remove()
    second = node.run(Spec(("sleep", "infinity"), name="agent"))
    assert second.id != first.id
    assert node.sandbox("agent").id == second.id


def test_what_an_ended_sandbox_printed_can_still_be_read(node: Node) -> None:
    sandbox = node.run(Spec(("sh", "-c", f"echo first; {WAIT}; echo last >&2"), ready="log:waiting"))
    sandbox.checkpoint(stop=True).restore()
    sandbox.run("sh", "-c", "echo > /tmp/go")
    wait_ended(node, sandbox)
    assert [record.content for record in sandbox.logs()] == [b"first\n", b"waiting\n", b"last\n"]


def test_a_stopped_program_gets_the_time_to_end_by_itself(node: Node) -> None:
    polite = "trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    sandbox = node.run(Spec(("sh", "-c", polite), ready="log:ready"))
    sandbox.stop(timeout=30)
    assert sandbox.state is Phase.EXITED
    assert b"".join(record.content for record in sandbox.logs()) == b"ready\nending\n"


def test_a_program_that_ignores_the_asking_is_killed(node: Node) -> None:
    sandbox = node.run(Spec(("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"), ready="log:ready"))
    sandbox.stop(timeout=0.2)
    assert sandbox.state is Phase.EXITED
    assert not node.context.cgroup(sandbox.id).pids()


def test_a_frozen_sandbox_is_frozen_for_the_next_node_too_and_can_be_stopped(
    open_node: OpenNode, ask: Ask, traces: Callable[[], Traces]
) -> None:
    sandbox = open_node().run(Spec(("sleep", "infinity"), name="cold"))
    sandbox.freeze()
    again = open_node().sandbox("cold")
    assert again.state is Phase.FROZEN
    with pytest.raises(InvalidTransition, match="frozen"):
        again.exec(["true"])
    again.stop(timeout=0)
    assert again.state is Phase.EXITED
    assert not traces().of_kernel().get("namespaces")


def test_a_frozen_sandbox_whose_pid_1_is_killed_ends_when_it_is_removed(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity")))
    sandbox.freeze()
    os.kill(sandbox.record.keeper_pid, signal.SIGKILL)
    sandbox.remove(force=True)
    assert not node.sandboxes()


def test_the_main_program_is_pid_3_and_everything_descends_from_init(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity")))
    listed = sandbox.run("ps", "-eo", "pid=,ppid=,comm=").stdout.decode().splitlines()
    assert [line.split() for line in listed][:3] == [["1", "0", "init"], ["2", "1", "init"], ["3", "2", "sleep"]]
    assert host_pid(node, sandbox, 2) in children(sandbox.record.keeper_pid)
