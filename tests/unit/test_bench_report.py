"""What a benchmark says of its samples."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawbox.bench import (
    Requirement,
    Sample,
    Scenario,
    Timed,
    machine_facts,
    markdown,
    run_rounds,
    summarise,
    write_samples,
)
from thawbox.bench.samples import percentile


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0, 1, 50, 95, 99, 100]))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_summary_counts_the_proofs_of_its_row_alone() -> None:
    samples = [Sample("restore", 0, 3.0, "nonce"), Sample("create", 0, 9.0), Sample("restore", 1, 5.0)]
    found = summarise(samples)
    assert list(found) == ["restore", "create"]
    assert (found["restore"].n, found["restore"].p50, found["restore"].proven) == (2, 4.0, 1)
    assert (found["create"].n, found["create"].p50, found["create"].proven) == (1, 9.0, 0)


def counting(name: str, calls: list[str]) -> Scenario:
    def measure() -> Sequence[Timed]:
        calls.append(name)
        return (Timed(name, float(len(calls))),)

    return Scenario(name, {name: "nothing"}, measure)


def test_every_round_holds_every_scenario_once_and_the_order_changes() -> None:
    calls: list[str] = []
    scenarios = [counting(name, calls) for name in "abcd"]
    samples = run_rounds(scenarios, rounds=10, rng=random.Random(4), warmups=0)
    rounds = [tuple(calls[begin : begin + 4]) for begin in range(0, 40, 4)]
    assert all(Counter(one) == Counter("abcd") for one in rounds)
    assert len(set(rounds)) > 1
    assert [sample.row for sample in samples] == calls


def test_warmups_are_run_and_not_counted() -> None:
    calls: list[str] = []
    samples = run_rounds([counting("a", calls)], rounds=2, rng=random.Random(0), warmups=3)
    assert len(calls) == 5
    assert [sample.round for sample in samples] == [0, 1]


def test_a_scenario_that_gives_another_row_than_it_names_is_refused() -> None:
    liar = Scenario("liar", {"named": ""}, lambda: (Timed("other", 1.0),))
    with pytest.raises(ValueError, match="liar"):
        run_rounds([liar], rounds=1, rng=random.Random(0))


@pytest.mark.parametrize(("measured", "met"), [(1.19, True), (1.2, True), (1.21, False)])
def test_a_requirement_is_met_up_to_its_limit(measured: float, met: bool) -> None:
    assert Requirement("restore", measured, 1.2, "times").met is met


def test_a_report_says_of_each_requirement_whether_it_is_met_and_of_each_row_what_its_clock_covers() -> None:
    report = markdown(
        "Title", command="bench/x.py", facts={"cores": "2"}, summaries=summarise([Sample("restore", 0, 3.0, "nonce")]),
        clocks={"restore": "from here to there", "not measured": "nothing"},
        requirements=[Requirement("fast", 1.0, 2.0, "ms"), Requirement("slow", 3.0, 2.0, "ms")],
    )  # fmt: skip
    assert "| fast | 1.00 ms | 2.00 ms | met |" in report
    assert "| slow | 3.00 ms | 2.00 ms | **not met** |" in report
    assert "* **restore**: from here to there" in report
    assert "not measured" not in report
    assert "1 of 1" in report


def test_raw_samples_come_back_from_their_csv(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    write_samples(path, [Sample("a, with a comma", 3, 1.5, "nonce")])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "round", "value", "proof"],
            ["a, with a comma", "3", "1.500", "nonce"],
        ]


def test_the_facts_of_a_machine_name_no_host_and_no_path() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "memory", "kernel", "python", "load"} <= set(facts)
    assert not any("/" in fact for name, fact in facts.items() if name != "system")
