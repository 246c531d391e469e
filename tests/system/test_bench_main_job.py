"""The benchmark of the main job measures what it says, and takes nothing for a restore that is none."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from thawbox.bench import agent, run_rounds
from thawbox.bench.main_job import MainJob
from thawbox.model import Spec
from thawbox.node import Node


def test_every_scenario_gives_its_rows_every_restore_is_proven_and_nothing_is_left(
    node: Node, unchanged: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with node.run(Spec(("sleep", "60"))) as first:  # what a node keeps from its first sandbox on
        kept = first.checkpoint()
        kept.warm()
        kept.cool()
        node.context.store.remove(kept.id)
    with unchanged(), MainJob(node, scratch, mib=8, clones=3) as job:
        scenarios = job.scenarios()
        samples = run_rounds(scenarios, rounds=1, rng=random.Random(1), warmups=0)
    assert {sample.row for sample in samples} == {row for scenario in scenarios for row in scenario.rows}
    assert all(sample.value > 0 for sample in samples)
    unproven = {sample.row for sample in samples if not sample.proof}
    assert not any("restore" in row or "clone" in row for row in unproven)


def test_a_cold_start_never_passes_for_a_restore(node: Node) -> None:
    with node.run(Spec(agent.command(1))) as one, node.run(Spec(agent.command(1))) as other:
        original = agent.ask(one.record.keeper_pid, whole=True)
        assert agent.prove(one.record.keeper_pid, original) == original.nonce
        with pytest.raises(AssertionError, match="not a restore"):
            agent.prove(other.record.keeper_pid, original)
