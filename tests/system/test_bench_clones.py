"""The benchmark of clones measures what it says, and every sample is proven."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from thawbox.bench import phases
from thawbox.bench.clones import Clones, clone_row
from thawbox.bench.rounds import run_rounds
from thawbox.bench.samples import summarise
from thawbox.config import load_settings
from thawbox.node import Node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


def test_every_scenario_of_clones_gives_its_rows_proven(node: Node, tmp_path: Path) -> None:

    with Clones(node, tmp_path, sizes=(8,), many=4) as clones:
        scenarios = clones.scenarios()
        samples = run_rounds(scenarios, rounds=1, warmups=0, rng=random.Random(1))
    assert {sample.row for sample in samples} == {row for one in scenarios for row in one.rows}
    assert all(sample.proof for sample in samples if not sample.row.startswith("MiB:"))
    assert clone_row(8) in summarise(samples)


def test_the_parts_of_a_clone_are_told_for_every_road_and_drawn(home: Path, node: Node, tmp_path: Path) -> None:

    assert node.settings.home == home
    with phases.Phases(load_settings(home=home), mib=8) as told:
        samples = run_rounds(told.scenarios(), rounds=1, warmups=0, rng=random.Random(1))
    found = summarise(samples)
    assert {row.split(" · ")[0] for row in found} == set(phases.ROADS)
    assert all(row.proven or name.startswith(phases.CREATE) for name, row in found.items())
    assert phases.table(found).count("\n") == 1 + len(found) // len(phases.ROADS)
    assert phases.plot(found, tmp_path / "clones")
    assert (tmp_path / "clones.svg").stat().st_size > 1000
