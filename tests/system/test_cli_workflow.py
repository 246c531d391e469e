"""`thawbox workflow` and `thawbox supervise` as their users call them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cli_process import Cli
from hearing import Heard
from thawbox.host.init_client import Completed
from thawbox.node import Node
from thawbox.restart_plan import Policy
from thawbox.sandbox.recovering import all_supervised
from thawbox.supervisor import Supervisor

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(120)]

PLAN = """
name = "build"
[sandbox]
memory = "256M"
[[step]]
name = "one"
run = "echo one | tee -a /log"
[[step]]
name = "two"
kind = "routine"
run = "{}; echo two >> /log"
"""


@pytest.fixture
def cli(node: Node, home: Path) -> Cli:
    """The command on a home that `node` cleans up."""
    assert node.settings.home == home
    return Cli(home)


def test_a_workflow_that_failed_goes_on_where_it_stood(cli: Cli, node: Node, tmp_path: Path) -> None:
    file = tmp_path / "build.toml"
    file.write_text(PLAN.format("exit 3"))
    failed = cli("workflow", "run", str(file), "--json")
    assert failed.status == 107
    assert b"completed  one" in failed.err
    assert node.sandbox("build").stats().memory_limit == 256 << 20
    again = cli("workflow", "run", str(file), "--json")
    assert again.status == 102
    assert "was begun before" in again.error()["cause"]
    os.kill(node.sandbox("build").record.keeper_pid, signal.SIGKILL)
    file.write_text(PLAN.format("true"))
    assert cli("workflow", "run", str(file), "--resume", "--json").json() == {
        "workflow": "build", "sandbox": "build", "resumed_after": "one", "completed": ["two"], "skipped": ["one"],
    }  # fmt: skip
    printed = node.sandbox("build").run("cat", "/log")
    assert isinstance(printed, Completed)
    assert printed.stdout == b"one\ntwo\n"
    shown = cli("workflow", "show", "build", "--json").json()
    assert [(one["step"], one["kind"]) for one in shown["steps"]] == [("one", "key"), ("two", "routine")]
    assert cli("workflow", "forget", "build", "--json").json() == {"workflow": "build"}
    assert cli("workflow", "show", "build", "--json").status == 102


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "x"\n[sandbox]\ncolour = 1\n[[step]]\nname = "a"\nrun = "y"\n', "colour"),
        ('name = "x"\n[sandbox]\nmemory = "1K"\n[[step]]\nname = "a"\nrun = "y"\n', "too small"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_file_that_is_no_workflow_starts_nothing(
    cli: Cli, node: Node, tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    done = cli("workflow", "run", str(file), "--json")
    assert done.status == 102
    assert complaint in done.error()["cause"]
    assert node.sandboxes() == []


def test_a_sandbox_that_runs_can_be_put_under_supervision_and_taken_out_again(cli: Cli, node: Node) -> None:
    heard = Heard()
    cli.run("--name", "agent")
    asked = cli("supervise", "agent", "--checkpoint-every", "1h", "--keep", "5", "--json").json()
    sandbox = node.sandbox("agent")
    assert asked == {"id": sandbox.id, "name": "agent", "restart": "on-failure", "is_watched": False}
    assert all_supervised(node.context)[sandbox.id].policy == Policy(checkpoint_every=3600, keep=5)
    with Supervisor(node.context, tell=heard) as supervisor:
        heard.until("supervise.watching")
        os.kill(sandbox.record.keeper_pid, signal.SIGKILL)
        heard.until("recover.complete")
        (recovery,) = cli("inspect", "agent", "--json").json()["recoveries"]
        assert set(recovery) == {"at", "cause", "snapshot", "lost_s", "detect_ms", "restore_ms", "healthy_ms"}
        assert cli("supervise", "agent", "--off").status == 0
        supervisor.refresh()
        assert supervisor.statuses() == []


def test_what_its_spec_asks_for_can_be_taken_back(cli: Cli, node: Node) -> None:
    cli.run("--name", "agent", "--restart", "always")
    assert cli("supervise", "agent", "--off").status == 0
    heard = Heard()
    with Supervisor(node.context, tell=heard):
        heard.until("supervise.watching")
        os.kill(node.sandbox("agent").record.keeper_pid, signal.SIGKILL)
        heard.until("supervise.ended")
    assert "recover.started" not in heard.kinds()
