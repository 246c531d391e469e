"""The comparison runs everyone who is installed, proves every restore, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from thawbox.bench.peers import workloads
from thawbox.bench.peers.contender import Measured
from thawbox.bench.peers.ours import Thawbox
from thawbox.bench.peers.run import RESTORES, Outcome, Plan, run_plan, scenario_of
from thawbox.model import Spec
from thawbox.node import Node


def test_every_contender_that_is_here_gives_its_rows_proven_and_leaves_nothing(
    node: Node, unchanged: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with node.run(Spec(("sleep", "60"))) as first:  # what a node keeps from its first sandbox on
        kept = first.checkpoint()
        kept.warm()
        kept.cool()
        node.context.store.remove(kept.id)
    with unchanged():
        outcome = run_plan(node, scratch, Plan(((workloads.python(4), 1),), patience=0))
    rows = {sample.row: sample for sample in outcome.samples}
    assert set(rows) == set(outcome.clocks)
    assert all(sample.value > 0 for sample in outcome.samples)
    assert all(sample.proof for row, sample in rows.items() if row.rsplit(" · ", 1)[1] in RESTORES)
    for name in ("runc", "podman", "crun", "gVisor runsc"):
        assert outcome.missing.get(name) or any(f" · {name} · " in row for row in rows)
    assert not [path for path in Path("/run/netns").glob("thawbox-bench-*")]


def test_a_cold_start_is_never_taken_for_a_restore(node: Node) -> None:
    workload = workloads.python(1)
    ours = Thawbox(workload, node)
    try:
        with pytest.raises(AssertionError, match="not a restore"):
            scenario_of(workload, Lying(ours), "restore", Outcome()).measure()
    finally:
        ours.close()


class Lying:
    """Calls its cold starts restores."""

    name = "lying"

    def __init__(self, honest: Thawbox) -> None:
        self.nonce, self.clocks, self._honest = honest.nonce, honest.clocks, honest

    def measure(self, verb: str) -> Measured:
        return self._honest.measure("cold start")

    def close(self) -> None:
        pass
