"""The boot benchmark measures what it says, and takes nothing for a restore that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from golden_agent import ROWS, build, golden_spec
from thawbox.bench.boot import Boot, Question, WrongAnswer
from thawbox.node import Node

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("boot") / "matrix"
    build(directory, rows=ROWS)
    return directory


def test_a_run_proves_every_sample_and_writes_its_report(matrix: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/benchmark_boot.py", "--samples", "1", "--quiet", "0", "--json"]
    where = ["--rows", str(ROWS), "--matrix", matrix, "--out", tmp_path]
    done = subprocess.run([*command, *where], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert set(said) == {"ratios", "cold_ms", "restore_ms", "acquire_ms", "fork_ms", "proofs"}
    assert set(said["ratios"]) == {"restore", "acquire", "fork"}
    assert all(ratio > 0 for ratio in said["ratios"].values())
    assert all((proof["proven"], proof["of"], len(proof["nonces"])) == (1, 1, 1) for proof in said["proofs"].values())
    assert {path.name for path in tmp_path.glob("boot.*")} == {"boot.md", "boot.csv", "boot.svg", "boot.png"}
    report = (tmp_path / "boot.md").read_text()
    assert "7 times faster" in report
    assert "100 times faster" in report
    assert len((tmp_path / "boot.csv").read_text().splitlines()) == 5


def test_a_wrong_answer_ends_the_run(node: Node, matrix: Path) -> None:
    with pytest.raises(WrongAnswer, match="was answered with"):
        Boot(node, golden_spec(matrix), [Question("Who built the lighthouse at Aladale Bay?", "Nobody.")])
    assert node.sandboxes() == []
