"""The example in docs/client.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_process import Cli
from service import start
from thawbox.node import Node

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")
def test_the_examples_print_what_the_page_says_and_leave_no_sandbox(node: Node, home: Path) -> None:
    assert node.settings.home == home
    (page,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/client.md").read_text(), re.MULTILINE | re.DOTALL)
    script = (ROOT / "examples/client/fan_out.py").read_text()
    cli = Cli(home)
    process, _ = start(cli)

    def run(program: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program], env=cli.environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    try:
        assert run(page) == ["6", "14", "36", "3 0", "IndexError"]
        ways = dict(line.split(" ", 1) for line in run(script))
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
    assert ways["mistake"] == "failed: list index out of range"
    assert 9 < float(ways["mean"]) < 11
    assert 9 < float(ways["median"]) < 11
    assert node.sandboxes() == []
