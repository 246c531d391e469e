"""What a comparison says of its rows: ratios within a workload, bars met or not, what moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from thawbox.bench.peers.report import bars, moved, ratios_of, read_ratios, write_report
from thawbox.bench.peers.run import Outcome, row_of
from thawbox.bench.samples import Sample, summarise
from thawbox.errors import NotFound

W = "Python, 64 MiB"
SAMPLES = [
    Sample(row_of(W, "bare criu", "restore"), 0, 50.0, "n"),
    Sample(row_of(W, "thawbox", "clone from a warm template"), 0, 10.0, "n"),
    Sample(row_of(W, "thawbox", "restore"), 0, 60.0, "n"),
    Sample(row_of(W, "runc", "restore"), 0, 200.0, "n"),
    Sample(row_of(W, "podman", "restore"), 0, 300.0, "n"),
    Sample(row_of("Node", "thawbox", "restore"), 0, 60.0, "n"),
]


def test_ratios_are_against_bare_criu_at_the_same_workload_and_absent_where_that_was_not_measured() -> None:
    ratios = ratios_of(summarise(SAMPLES))
    assert ratios[row_of(W, "runc", "restore")] == 4.0
    assert ratios[row_of(W, "bare criu", "restore")] == 1.0
    assert row_of("Node", "thawbox", "restore") not in ratios


def test_bars_compare_with_the_fastest_other_and_leave_out_what_was_not_measured() -> None:
    found = {one.what: one for one in bars(summarise(SAMPLES), W)}
    (restore,) = [one for what, one in found.items() if "fastest other" in what]
    assert "(runc)" in restore.what
    assert restore.measured == pytest.approx(0.3)
    assert restore.met
    assert not any("acquire" in what for what in found)
    assert bars(summarise(SAMPLES), "Node") == []


def test_only_what_moved_by_more_than_a_quarter_is_told_the_furthest_first() -> None:
    before = {"a": 1.0, "b": 1.0, "c": 1.0, "gone": 1.0}
    now = {"a": 1.2, "b": 2.0, "c": 0.7, "new": 9.0}
    assert [row for row, *_ in moved(now, before)] == ["b", "c"]


def test_a_report_names_what_is_missing_and_its_ratios_can_be_read_again(tmp_path: Path) -> None:
    outcome = Outcome(samples=list(SAMPLES), clocks={one.row: "clock" for one in SAMPLES}, missing={"crun": "too old"})
    text = write_report(tmp_path, outcome, command="thawbox bench", facts={"cores": "2"})
    assert "* **crun**: too old" in text
    assert "| **thawbox, clone from a warm template** | 10.0 ms | 0.20 |" in text
    assert read_ratios(tmp_path / "peers.json")[row_of(W, "runc", "restore")] == 4.0
    assert {path.name for path in tmp_path.iterdir()} >= {
        "peers.md",
        "peers.csv",
        "peers.json",
        "peers.svg",
        "peers.png",
    }
    with pytest.raises(NotFound):
        read_ratios(tmp_path / "nothing.json")
