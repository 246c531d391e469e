"""Life with a CRIU that has none of our patches: all of it works, more slowly, and whoever looks is told why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hearing import Heard
from thawbox.engines import Freeze
from thawbox.host.proc import children, command_name
from thawbox.node import Node
from thawbox.pool import PoolSpec
from thawbox.restart_plan import Policy
from thawbox.sandbox import Sandbox, Snapshot
from thawbox.supervisor import Supervisor
from thawbox.telemetry import Step, Telemetry

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
MIB = 8
"""Of the workload's state: what a clone that shares it does not have of its own."""
SOON = 120.0

OpenNode = Callable[..., Node]
RunWorkload = Callable[..., Sandbox]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def upstream() -> str:
    """Upstream's program, built from the same source with the same settings: a minute, once in a checkout."""
    if (ROOT / "native/build/bin/criu").is_symlink():
        pytest.skip("set-up found a CRIU of the machine's own, and may not have installed what a build needs")
    build = subprocess.run(
        [ROOT / "native/criu/build", "--upstream"], stdout=subprocess.PIPE, text=True, check=True, timeout=540
    )
    return build.stdout.strip()


@pytest.fixture
def node(open_node: OpenNode, upstream: str) -> Node:
    return open_node(criu=upstream)


@pytest.fixture
def original(workload: RunWorkload) -> Sandbox:
    return workload("python3", "agent.py", str(MIB))


def snapshot_of(sandbox: Sandbox) -> Snapshot:
    """A snapshot, which says that it was made plainly and why."""
    made = sandbox.checkpoint()
    assert made.report is not None
    assert made.report.freeze is Freeze.PLAIN
    assert "lacks our patch 0008" in made.report.why_plain
    return made


def charged(sandbox: Sandbox) -> int:
    """Bytes: a clone of a template is not charged for the state that it shares."""
    return sandbox.stats().memory


def assert_no_server() -> None:
    assert [pid for pid in children(os.getpid()) if command_name(pid).startswith("criu")] == []


def test_the_doctor_says_what_is_absent_and_what_that_costs_and_that_the_main_job_runs(
    home: Path, upstream: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thawbox.cli", "doctor", "--json"],
        env={**os.environ, "THAWBOX_HOME": str(home), "THAWBOX_CRIU": upstream},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    said = json.loads(done.stdout)
    checks = {check["name"]: check for check in said["checks"]}
    assert (done.returncode, said["ok"]) == (0, True), checks["freeze and restore"]
    absent = {name: checks[name] for name in ("criu build", "short freezes", "shared clones")}
    assert {name: check["state"] for name, check in absent.items()} == dict.fromkeys(absent, "warn")
    assert all("THAWBOX_CRIU" in check["remedy"] for check in absent.values())
    assert "fixes" in absent["criu build"]["why"]
    assert "page tables, not memory" in absent["short freezes"]["why"]
    assert "each reads it from the files" in absent["shared clones"]["why"]


def test_a_checkpoint_is_a_plain_one_that_says_why_and_its_restore_goes_on(original: Sandbox, ask: Ask) -> None:
    snapshot_of(original)
    kept = ask(original, "grow")["kept"]
    delta = snapshot_of(original)
    assert delta.report is not None
    assert delta.report.bytes < MIB << 20
    original.stop(timeout=0)
    restored, _ = delta.restore()
    assert ask(restored)["kept"] == kept


def test_what_holds_memory_ready_answers_that_it_cannot_and_says_so(
    open_node: OpenNode, node: Node, original: Sandbox, upstream: str, ask: Ask
) -> None:
    told: list[Step] = []

    def observe(step: Step) -> Callable[[], None]:
        return lambda: told.append(step)

    snapshot, kept = snapshot_of(original), ask(original)["kept"]
    watched = Node(node.settings, telemetry=Telemetry(observe))
    with watched:
        assert not watched.snapshot(snapshot.id).warm()
        assert not watched.context.reserve.counts()
    assert [step.fields["code"] for step in told if step.name == "engine.warm-refused"] == ["unsupported"]
    assert [step.fields["is_held"] for step in told if step.name == "engine.warm"] == [False]
    assert ask(snapshot.clone())["kept"] == kept


def test_clones_and_forks_have_their_memory_each_to_itself(node: Node, original: Sandbox, ask: Ask) -> None:
    snapshot, kept = snapshot_of(original), ask(original)["kept"]
    clones = [*snapshot.clones(3), snapshot.clone(), *original.fork(3)]
    node.context.threads.close()  # what was begun in the background for a snapshot cloned so often has ended
    assert_no_server()
    assert [ask(clone)["kept"] for clone in clones] == [kept] * len(clones)
    assert min(charged(clone) for clone in clones) > MIB << 20
    assert ask(clones[0], "grow")["kept"] != kept == ask(clones[1])["kept"]


def test_a_template_is_made_and_a_pool_of_it_fills_and_hands_out(node: Node, original: Sandbox) -> None:
    node.create_template("golden", replace(original.record.spec, name=""))
    node.create_pool(PoolSpec("p", "golden", low=2, high=2, limit=3))
    with node.open_pool("p") as pool:
        pool.wait_warm(timeout=SOON)
        lease = pool.acquire(timeout=SOON)
        assert charged(lease.sandbox) > MIB << 20
        assert_no_server()
        lease.release()
        pool.drain(timeout=0)


def test_what_died_under_supervision_is_recovered_from_the_files(node: Node, original: Sandbox, ask: Ask) -> None:
    kept, heard = ask(original)["kept"], Heard()
    with Supervisor(node.context, tell=heard) as supervisor:
        supervisor.supervise(original, Policy(spare=True, settled_after=0))
        heard.until("supervise.watching")
        os.kill(original.record.keeper_pid, signal.SIGKILL)
        heard.until("recover.complete")
        assert_no_server()
    assert ask(original)["kept"] == kept
