"""The golden agent comes back in other regions, whole and unchanged to the last pixel, whatever their stores do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from golden_agent import ROWS, build

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/lib/chromium/chromium")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed: `make setup-dev` installs it")
@pytest.mark.timeout(1200)  # a whole story, some forty commands, each a process of its own
def test_an_agent_survives_its_region_and_stores_that_are_down_empty_slow_or_corrupted(tmp_path: Path) -> None:
    build(tmp_path / "matrix", rows=ROWS)
    out = tmp_path / "regions"
    command = [sys.executable, ROOT / "scripts/run_visual_regression.py", "--json", "--rows", str(ROWS)]
    done = subprocess.run(
        [*command, "--matrix", tmp_path / "matrix", "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scenarios = json.loads(done.stdout)["scenarios"]
    assert {one["scenario"]: (one["restored_in"], one["faults"]) for one in scenarios} == {
        "another region": ("east", []),
        "store down": ("south", ["unreachable"]),
        "store empty": ("south", ["missing", "unreachable"]),
        "store slow": ("south", ["slow", "unreachable"]),
        "store corrupted": ("south", ["damaged", "unreachable"]),
    }
    wanted = {"identity", "conversation", "DNA", "Matrix", "nonce", "listening", "page"}
    assert all(set(one["equal"]) == wanted for one in scenarios)
    assert len({one["equal"]["nonce"] for one in scenarios}) == 1
    pictures = {f"{when}-{scheme}.png" for when in ("before", "after") for scheme in ("light", "dark")}
    assert {path.name for path in out.glob("*.png")} == pictures
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert "tbr" not in left
