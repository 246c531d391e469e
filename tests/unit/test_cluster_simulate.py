"""The simulation: repeatable, complete, and honest about what it lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from thawbox.cluster.simulate import Simulation
from thawbox.cluster.trace import Burst, Loss, Trace, read_trace
from thawbox.errors import InvalidRequest

SMALL = Trace(
    nodes=60, claims=6000, seconds=120, pools=3, hold=5, bursts=(Burst(30, 4, 8),),
    losses=(Loss(50, nodes=10), Loss(80, region="us-east", back=100)),
)  # fmt: skip


def test_equal_traces_have_equal_outcomes_and_another_seed_another() -> None:
    first, again = (Simulation(SMALL).run() for _ in range(2))
    other = Simulation(replace(SMALL, seed=2)).run()
    assert (first.latency_ms, first.refused, first.lost) == (again.latency_ms, again.refused, again.lost)
    assert first.latency_ms != other.latency_ms


def test_every_claim_is_bound_or_refused_and_every_lost_one_recovers_elsewhere() -> None:
    result = Simulation(SMALL).run()
    assert result.bound + sum(result.refused.values()) == SMALL.claims
    assert result.recovered == result.lost > 0
    assert result.recovery_ms["p50"] > 15_000  # a lease has to run out first
    assert result.warm <= result.bound


def test_a_trace_comes_from_a_file_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text('{"nodes": 12, "claims": 50, "losses": [], "bursts": [], "seconds": 10}')
    assert Simulation(read_trace(path)).run().bound == 50
    path.write_text('{"losses": [{"at": 1, "region": "moon"}]}')
    with pytest.raises(InvalidRequest, match="moon"):
        read_trace(path)
