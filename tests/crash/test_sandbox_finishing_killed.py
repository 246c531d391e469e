"""Who finishes a snapshot is killed, at moments spread over the work: it is whole or not there; the sandbox goes on."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thawbox.cli.finish import PROGRAM
from thawbox.config import Settings
from thawbox.errors import SnapshotNotFound
from thawbox.host.proc import children
from thawbox.model import Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from thawbox.sandbox.checkpointing import Wish

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

AGENT = """
mkfifo /root/ask
nonce=$(head -c 16 /dev/urandom | od -An -tx1)
echo ready
while read -r _ < /root/ask; do echo $nonce > /root/answer; done
"""
"""Its nonce is only in its memory; what it answers is a file that it writes when it is asked."""


def nonce_of(sandbox: Sandbox) -> str:
    done = sandbox.run("sh", "-c", "rm -f /root/answer; mkfifo /root/answer; echo > /root/ask & cat /root/answer")
    return done.stdout.decode()  # type: ignore[union-attr]


@pytest.fixture
def agent(node: Node) -> Sandbox:
    sandbox = node.run(Spec(("sh", "-c", AGENT), name="agent", ready="log:ready"))
    sandbox.run("sh", "-c", "head -c 8000000 /dev/urandom > /root/content")
    return sandbox


def assert_all_is_well(home: Path, nonce: str) -> None:
    """As the next start finds it: nothing half made, every snapshot sound, the sandbox as it was."""
    with Node(Settings(home=home)) as node:
        left = [path.name for path in node.context.store.layout.snapshots.iterdir() if path.name.startswith(".")]
        assert left == []
        assert node.context.store.verify(deep=True) == ()
        sandbox = node.sandbox("agent")
        assert sandbox.state is Phase.RUNNING
        assert nonce_of(sandbox) == nonce
        if node.snapshots():
            with node.snapshots()[-1].clone() as clone:
                assert nonce_of(clone) == nonce


def killed_after(process: int, seconds: float) -> None:
    """Kill a child of ours unless it ends before."""
    descriptor = os.pidfd_open(process)
    try:
        select.select([descriptor], [], [], seconds)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)
        os.waitpid(process, 0)


@pytest.mark.parametrize("seed", range(6))
def test_a_finisher_that_is_killed_made_a_whole_snapshot_or_none(node: Node, agent: Sandbox, seed: int) -> None:
    rng = random.Random(seed)
    nonce = nonce_of(agent)
    before = agent.checkpoint() if seed % 2 else None
    agent.run("sh", "-c", "head -c 8000000 /dev/urandom > /root/content")
    others = set(children(os.getpid()))
    pending = agent.begin_checkpoint(Wish(name="later"), program=PROGRAM)
    (finisher,) = set(children(os.getpid())) - others
    killed_after(finisher, rng.uniform(0, 1.2))
    try:
        whole = node.wait(pending.token)
    except SnapshotNotFound:
        assert [one.id for one in node.snapshots()] == ([before.id] if before else [])
    else:
        assert node.snapshot("later").id == whole.id
    assert_all_is_well(node.settings.home, nonce)
    following = agent.checkpoint()
    assert following.stored.manifest.parent in {None, *(one.id for one in node.snapshots())}
    with following.clone() as clone:
        assert nonce_of(clone) == nonce


WORKER = """
import sys
from pathlib import Path
from thawbox.config import Settings
from thawbox.node import Node
from thawbox.sandbox.checkpointing import Wish
with Node(Settings(home=Path(sys.argv[1]))) as node:
    sandbox = node.sandbox("agent")
    print("ready", flush=True)
    while True:
        {action}
"""
ACTIONS = {
    "checkpoints in a row": "sandbox.checkpoint()",
    "checkpoints finished by threads": "sandbox.begin_checkpoint(Wish())",
    "checkpoints and flattenings": "sandbox.checkpoint().flatten()",
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("action", ACTIONS)
def test_a_node_killed_amid_checkpoints_leaves_whole_snapshots_and_the_sandbox(
    node: Node, agent: Sandbox, action: str, seed: int
) -> None:
    nonce = nonce_of(agent)
    home = node.settings.home
    with subprocess.Popen(
        [sys.executable, "-c", WORKER.format(action=ACTIONS[action]), str(home)], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(random.Random(f"{action}{seed}").uniform(0.1, 1.5))
        worker.kill()
    assert_all_is_well(home, nonce)
