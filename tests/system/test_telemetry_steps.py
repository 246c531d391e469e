"""What a node tells of its work: which steps, in which order, down to CRIU's own phases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from roads import needs_templates
from thawbox.config import load_settings
from thawbox.errors import ThawboxError
from thawbox.host.proc import children, command_name
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.telemetry import Step, Telemetry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Watched = tuple[Node, list[Step]]


@pytest.fixture
def watched(node: Node, home: Path) -> Iterator[Watched]:
    """A node on the test's home, and every step of it that has ended; `node` cleans up."""
    assert node.settings.home == home
    ended: list[Step] = []

    def observe(step: Step) -> Callable[[], None]:
        return lambda: ended.append(step)

    with ExitStack() as stack:
        yield stack.enter_context(Node(load_settings(home=home), telemetry=Telemetry(observe))), ended


def parts(ended: list[Step], whole: str) -> list[str]:
    """The names of the steps that the only step of this name has as its parts."""
    (step,) = [one for one in ended if one.name == whole]
    return [one.name for one in ended if one.parent is step]


def test_a_checkpoint_is_told_down_to_what_criu_does(watched: Watched) -> None:
    node, ended = watched
    sandbox = node.run(Spec(("sleep", "1000")))
    made = sandbox.checkpoint()
    assert parts(ended, "run") == ["shell", "ready"]
    assert parts(ended, "checkpoint") == ["engine.dump", "engine.shrink", "store.put"]
    assert "criu.on-post-dump" in parts(ended, "engine.dump")
    (checkpoint,) = [one for one in ended if one.name == "checkpoint"]
    assert made.report is not None
    assert checkpoint.fields["snapshot"] == made.id
    assert checkpoint.fields["frozen_ms"] == made.report.frozen_ms
    assert 0 < sum(one.seconds for one in ended if one.parent is checkpoint) <= checkpoint.seconds


def test_clones_of_a_fork_are_steps_of_their_own_whichever_thread_makes_them(watched: Watched) -> None:
    node, ended = watched
    sandbox = node.run(Spec(("sleep", "1000")))
    with node.context.telemetry.step("request"):
        sandbox.fork(3)
    (request,) = [one for one in ended if one.name == "request"]
    clones = [one for one in ended if one.name == "clone"]
    assert [one.parent for one in clones] == [request] * 3
    for clone in clones:
        restored = [one for one in ended if one.parent is clone and one.name == "engine.restore"]
        assert {one.name for one in ended if one.parent in restored} >= {"criu.until-pre-resume", "criu.until-end"}


@needs_templates
def test_a_clone_by_a_template_server_is_told_from_the_servers_first_phase_on(watched: Watched) -> None:
    node, ended = watched
    snapshot = node.run(Spec(("sleep", "1000"))).checkpoint()
    assert snapshot.warm(shells=0)
    servers = {pid for pid in children(os.getpid()) if command_name(pid) == "criu-template"}
    ended.clear()
    clone = snapshot.clone()
    (restored,) = [one for one in ended if one.name == "engine.restore"]
    told = [one for one in ended if one.parent is restored]
    phases = ["template.fork", "template.cgroups", "template.namespaces"]
    assert [one.name for one in told][:4] == ["template.until-fork", *phases]
    assert [one.name for one in told][-1] == "criu.until-end"
    assert all(one.seconds > 0 for one in told if one.name in phases)
    assert sum(one.seconds for one in told) <= restored.seconds
    (pid,) = {one.fields["pid"] for one in told if one.name in phases}
    assert pid not in {0, os.getpid(), clone.record.keeper_pid, *servers}
    ended.clear()
    snapshot.clone(eager=True)
    assert not [one.name for one in ended if one.name.startswith("template.")]


def test_what_fails_is_told_with_its_code_at_every_level(watched: Watched) -> None:
    node, ended = watched
    sandbox = node.run(Spec(("sleep", "1000")))
    sandbox.stop()
    with pytest.raises(ThawboxError):
        sandbox.checkpoint()
    assert ended[-1].name == "checkpoint"
    assert ended[-1].failure == "invalid.transition"
