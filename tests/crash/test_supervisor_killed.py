"""The process that supervises is killed while it recovers or checkpoints: the next one brings the sandbox back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hearing import Heard
from thawbox.host.proc import children
from thawbox.model import Phase
from thawbox.node import Node
from thawbox.restart_plan import Policy
from thawbox.sandbox import Sandbox
from thawbox.supervisor import Supervisor, ask_for_supervision
from thawbox.workflow import Workflow
from traces import Traces

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(120)]

WORKLOADS = Path(__file__).parents[1] / "workloads"
PROGRAM = Path(__file__).parent / "supervising.py"


def start(home: Path, *command: str) -> str:
    """Run a sandbox that is no descendant of this process, which would have to collect its dead; returns its name."""
    options = ["--mount", f"{WORKLOADS}:/workloads:ro", "-e", "PYTHONDONTWRITEBYTECODE=1"]
    done = subprocess.run(
        [sys.executable, "-m", "thawbox.cli", "run", *options, *command],
        env={**os.environ, "THAWBOX_HOME": str(home)}, stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


MORTAL = ("--ready", "tcp:8000", "--", "python3", "/workloads/mortal.py")


def ask(sandbox: Sandbox, word: str = "state") -> bytes:
    with sandbox.connect(8000, timeout=60) as connection:
        connection.sendall(word.encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def main_program(sandbox: Sandbox) -> int:
    (init,) = children(sandbox.record.keeper_pid)
    return children(init)[0]


@pytest.mark.parametrize(
    "when",
    ["supervise.watching", "recover.started", "criu:recover.started", "recover.complete"],
)
def test_the_next_supervisor_brings_back_what_a_killed_one_did_not(
    open_node: Callable[..., Node], home: Path, traces: Callable[[], Traces], when: str
) -> None:
    name = start(home, *MORTAL)
    with open_node() as node:
        sandbox = node.sandbox(name)
        ask_for_supervision(node.context, sandbox, Policy(settled_after=0))
        kept, program = ask(sandbox), main_program(sandbox)
        before = traces()
    with subprocess.Popen(
        [sys.executable, PROGRAM, home, when], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "supervise.watching\n"
        os.kill(program, signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    heard = Heard()
    with open_node() as node, Supervisor(node.context, tell=heard):
        heard.until("supervise.watching")
        again = node.sandbox(sandbox.id)
        assert again.state is Phase.RUNNING
        assert ask(again) == kept
        after = traces()
        assert len(after.cgroups) == len(before.cgroups)
        assert len(after.processes) == len(before.processes)
        assert after.mounts == before.mounts


def test_a_supervisor_killed_while_it_checkpoints_leaves_the_sandbox_running_and_the_snapshots_whole(
    open_node: Callable[..., Node], home: Path
) -> None:
    name = start(home, *MORTAL)
    with open_node() as node:
        sandbox = node.sandbox(name)
        ask_for_supervision(node.context, sandbox, Policy(checkpoint_every=0.01))
        kept = ask(sandbox)
    with subprocess.Popen(
        [sys.executable, PROGRAM, home, "criu:supervise.watching"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as child:
        assert child.wait(60) == -signal.SIGKILL
    heard = Heard()
    with open_node() as node:
        assert node.sandbox(sandbox.id).state is Phase.RUNNING
        assert ask(node.sandbox(sandbox.id)) == kept
        assert node.context.store.verify(deep=True) == ()
        with Supervisor(node.context, tell=heard):
            heard.until("checkpoint.complete")
            os.kill(main_program(node.sandbox(sandbox.id)), signal.SIGKILL)
            heard.until("recover.complete")
            assert ask(node.sandbox(sandbox.id)) == kept


STEPS = """
import os, signal, sys
from pathlib import Path
from thawbox.config import Settings
from thawbox.node import Node
from thawbox.workflow import Workflow
home, name, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
WRITES = {"write", "fsync", "rename", "mkdir", "unlink", "execute", "link", "setxattr", "flock", "recv"}
seen = 0
def count(frame, event, function):
    global seen
    if event == "c_call" and getattr(function, "__name__", "") in WRITES:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
with Node(Settings(home=home)) as node, Workflow(node.context, "build") as workflow:
    workflow.resume() if workflow.is_begun else workflow.begin(node.sandbox(name))
    sys.setprofile(count)
    for number in range(3):
        if workflow.is_pending(f"step-{number}"):
            with workflow.step(f"step-{number}", kind="routine"):
                workflow.sandbox.run("sh", "-c", f"echo {number} >> /log")
"""


def test_a_workflow_killed_again_and_again_does_every_step_once(open_node: Callable[..., Node], home: Path) -> None:
    name = start(home, "--", "sleep", "infinity")
    for at in (5, 40, 80, 120, 160, 200, 1 << 30):
        done = subprocess.run([sys.executable, "-c", STEPS, home, name, str(at)], timeout=100)
        assert done.returncode in (0, -signal.SIGKILL)
        with open_node() as node:
            assert node.context.store.verify(deep=True) == ()
    assert done.returncode == 0
    with open_node() as node, Workflow(node.context, "build") as workflow:
        assert workflow.progress.names == ("step-0", "step-1", "step-2")
        printed = workflow.sandbox.run("cat", "/log")
        assert printed.stdout == b"0\n1\n2\n"  # type: ignore[union-attr]
        assert workflow.resume() == "step-2"
        assert workflow.sandbox.run("cat", "/log") == printed
