"""Workflows in real sandboxes: what a completed step did stays, what a broken one did is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawbox.errors import HookFailed, InvalidRequest, LockTimeout
from thawbox.host.init_client import Completed, Exited, Output
from thawbox.model import Phase, SnapshotKind, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from thawbox.workflow import PlannedStep, StepFailed, Workflow, read_plan, run_plan

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(120)]

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def sandbox(node: Node) -> Sandbox:
    return node.run(Spec(("sleep", "infinity")))


def shell(sandbox: Sandbox, line: str) -> str:
    done = sandbox.run("sh", "-c", line)
    assert isinstance(done, Completed)
    assert isinstance(done.outcome, Exited)
    assert done.outcome.exit_status == 0, done
    return done.stdout.decode().strip()


def written(sandbox: Sandbox) -> list[str]:
    return shell(sandbox, "cat /log 2>/dev/null || true").split()


def test_a_key_step_takes_a_full_snapshot_and_a_routine_one_a_delta_only_if_something_changed(
    node: Node, sandbox: Sandbox
) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        with workflow.step("first", kind="key"):
            shell(sandbox, "echo first >> /log")
        with workflow.step("second", kind="routine"):
            shell(sandbox, "echo second >> /log")
        with workflow.step("idle", kind="routine"):
            pass
        first, second, idle = (node.snapshot(one.snapshot).stored for one in workflow.progress.steps)
    assert first.manifest.kind is SnapshotKind.FULL
    assert second.manifest.kind is SnapshotKind.DELTA
    assert idle.id == second.id
    assert dict(second.facts.labels) == {"workflow": "build", "step": "second"}
    assert all(one.facts.pinned for one in (first, second))


def test_memory_goes_back_with_the_files(node: Node, workload: Callable[..., Sandbox], ask: Ask) -> None:
    sandbox = workload("python3", "mortal.py")
    with Workflow(node.context, "agent") as workflow:
        workflow.begin(sandbox)
        with workflow.step("grow"):
            kept = ask(sandbox, "grow")
        with pytest.raises(ZeroDivisionError), workflow.step("break", roll_back=True):
            ask(sandbox, "grow")
            raise ZeroDivisionError
        assert ask(workflow.sandbox) == kept
        assert workflow.is_pending("break")


def test_without_roll_back_a_failed_step_leaves_the_sandbox_as_it_is_and_no_snapshot(
    node: Node, sandbox: Sandbox
) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        before = len(node.snapshots())
        with pytest.raises(ZeroDivisionError), workflow.step("break"):
            shell(sandbox, "echo half >> /log")
            raise ZeroDivisionError
        assert written(sandbox) == ["half"]
        assert len(node.snapshots()) == before


@pytest.mark.parametrize("end", ["lives", "killed", "removed"])
def test_resuming_goes_on_from_the_last_completed_step_and_says_which(node: Node, sandbox: Sandbox, end: str) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        with workflow.step("one"):
            shell(sandbox, "echo one >> /log")
        with workflow.step("two", kind="routine"):
            shell(sandbox, "echo two >> /log")
        shell(sandbox, "echo three-half-done >> /log")
    if end == "killed":
        os.kill(sandbox.record.keeper_pid, signal.SIGKILL)
    elif end == "removed":
        sandbox.remove(force=True)
    with Workflow(node.context, "build") as workflow:
        assert workflow.is_begun
        assert workflow.resume() == "two"
        assert workflow.sandbox.state is Phase.RUNNING
        assert workflow.sandbox.id == sandbox.id
        assert written(workflow.sandbox) == ["one", "two"]
        assert [workflow.is_pending(name) for name in ("one", "two", "three")] == [False, False, True]
        with pytest.raises(InvalidRequest, match="two steps"), workflow.step("two"):
            pass


def test_a_workflow_with_no_completed_step_resumes_at_its_beginning(node: Node, sandbox: Sandbox) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        shell(sandbox, "echo half >> /log")
    with Workflow(node.context, "build") as workflow:
        assert workflow.resume() == ""
        assert written(workflow.sandbox) == []


def test_a_forgotten_workflow_can_begin_anew_and_its_snapshots_can_be_removed(node: Node, sandbox: Sandbox) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        with pytest.raises(InvalidRequest, match="begun before"):
            workflow.begin(sandbox)
        begun_from = workflow.progress.begun_from
        workflow.forget()
        assert not workflow.is_begun
        node.context.store.remove(begun_from)
        workflow.begin(sandbox)


def test_a_workflow_is_open_in_one_place_at_a_time(node: Node) -> None:
    with Workflow(node.context, "build"), pytest.raises(LockTimeout, match="workflow build"):
        Workflow(node.context, "build").__enter__()


PLAN = """
name = "build"

[[step]]
name = "one"
run = "echo one >> /log; echo said"

[[step]]
name = "two"
kind = "routine"
retries = 1
run = "echo two >> /log; test -e {}"

[[step]]
name = "three"
kind = "routine"
run = ["sh", "-c", "echo three >> /log"]
"""


def carry_out(workflow: Workflow, text: str) -> tuple[list[tuple[str, str]], bytes]:
    said: list[tuple[str, str]] = []
    shown: list[Output] = []
    try:
        run_plan(workflow, read_plan(text).steps, say=lambda *what: said.append(what), show=shown.append)
    except StepFailed:
        said.append(("", "gave up"))
    return said, b"".join(one.content for one in shown)


def test_a_plan_goes_on_after_a_failure_with_nothing_done_twice(node: Node, sandbox: Sandbox) -> None:
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        said, shown = carry_out(workflow, PLAN.format("/missing"))
        assert said == [
            ("one", "begun"), ("one", "completed"), ("two", "begun"), ("two", "failed"), ("two", "begun"),
            ("two", "failed"), ("", "gave up"),
        ]  # fmt: skip
        assert shown == b"said\n"
    with Workflow(node.context, "build") as workflow:
        assert workflow.resume() == "one"
        said, _ = carry_out(workflow, PLAN.format("/log"))
        assert said == [
            ("one", "skipped"), ("two", "begun"), ("two", "completed"), ("three", "begun"), ("three", "completed"),
        ]  # fmt: skip
        assert written(workflow.sandbox) == ["one", "two", "three"]
        with pytest.raises(InvalidRequest, match="was completed as"):
            carry_out(workflow, PLAN.replace('"one"', '"uno"').format("/log"))


UNWILLING = Spec(("sleep", "infinity"), hooks="cmd:test ! -e /unwilling #")
"""Cannot be checkpointed while there is that file."""


def test_a_step_without_a_snapshot_has_failed_and_is_undone(node: Node) -> None:
    sandbox = node.run(UNWILLING)
    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        with pytest.raises(HookFailed), workflow.step("refused", roll_back=True):
            shell(sandbox, "echo half >> /log; touch /unwilling")
        assert written(workflow.sandbox) == []
        assert workflow.is_pending("refused")


def test_a_step_without_a_snapshot_is_tried_again_as_often_as_it_may(node: Node) -> None:
    sandbox = node.run(UNWILLING)
    steps = [PlannedStep("once", ("sh", "-c", "echo one >> /log; test -e /again || touch /unwilling"), retries=1)]
    told: list[str] = []

    def say(_: str, what: str) -> None:
        told.append(what)
        if told == ["begun", "failed", "begun"]:
            shell(workflow.sandbox, "touch /again")

    with Workflow(node.context, "build") as workflow:
        workflow.begin(sandbox)
        run_plan(workflow, steps, say=say, show=lambda _: None)
        assert told == ["begun", "failed", "begun", "completed"]
        assert written(workflow.sandbox) == ["one"]


def test_a_step_that_takes_too_long_fails_and_is_undone(node: Node, sandbox: Sandbox) -> None:
    plan = 'name = "slow"\n[[step]]\nname = "a"\nrun = "touch /begun; sleep 1000"\ntimeout = 0.3\nroll_back = true\n'
    with Workflow(node.context, "slow") as workflow:
        workflow.begin(sandbox)
        with pytest.raises(StepFailed, match=r"did not end within 0\.3 s"):
            run_plan(workflow, read_plan(plan).steps, say=lambda *_: None, show=lambda _: None)
        assert shell(workflow.sandbox, "ls /begun 2>/dev/null; pidof sleep | wc -w") == "1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = [", "cannot be read"),
        ('name = "x"\n', "step"),
        ('name = "x"\nstep = []\n', "has no step"),
        ('name = "x"\n[[step]]\nname = "a"\nrun = "y"\ncolour = "red"\n', "colour"),
        ('name = "x"\n[[step]]\nname = "a"\nrun = "y"\nkind = "grand"\n', "grand"),
        ('name = "x"\n[[step]]\nname = "a"\nrun = []\n', "runs nothing"),
        ('name = "x"\n[[step]]\nname = "a"\nrun = "y"\nretries = -1\n', "negative"),
        ('name = "x"\n[[step]]\nname = "a"\nrun = "y"\n[[step]]\nname = "a"\nrun = "z"\n', "two steps"),
        ('name = "../x"\n[[step]]\nname = "a"\nrun = "y"\n', "not a legal name"),
    ],
)
def test_a_file_that_is_no_workflow_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        read_plan(text)


def test_the_example_of_the_docs_is_a_workflow() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
    text = page.split("```toml\n")[1].split("```")[0]
    assert [step.name for step in read_plan(text).steps] == ["dependencies", "tests", "report"]
