"""The README's example runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAN_UP = """
import thawbox
with thawbox.Node() as node:
    for sandbox in node.sandboxes():
        print("left:", sandbox)
        sandbox.remove(force=True)
    node.tidy()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")
def test_the_python_example_prints_three_clones_that_share_the_originals_nonce(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "THAWBOX_HOME": str(tmp_path / "home")}

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
        )

    done, cleaned = run(example), run(CLEAN_UP)
    assert done.returncode == 0, done.stderr
    assert (cleaned.stdout, cleaned.stderr) == ("", "")
    lines = re.findall(r"^<Sandbox (\S+) \(sb-[0-9a-f]{12}\), running> ([0-9a-f]{8}) (\d+)$", done.stdout, re.MULTILINE)
    assert len({name for name, _, _ in lines}) == 3
    assert len({nonce for _, nonce, _ in lines}) == 1
    assert all(int(count) >= 3 for _, _, count in lines)
