"""The Node example: hooks by HTTP, and generators of its own in every clone."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from roads import on_both_roads
from thawbox.errors import HookFailed
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

EXAMPLE = Path(__file__).parents[2] / "examples" / "node-hooks"
pytestmark = [pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="needs node in /usr"), on_both_roads]


def agent(node: Node, directory: Path) -> Sandbox:
    return node.run(
        Spec(
            ("node", "/agent/agent.js"),
            mounts=(Mount(str(directory), "/agent", read_only=True),),
            hooks="http://127.0.0.1:8000",
            ready="http://127.0.0.1:8000/internal/checkpoint-ready",
        )
    )


def fetch(sandbox: Sandbox) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.sock = sandbox.connect(8000, timeout=60)
    try:
        connection.request("GET", "/")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the addon")
def test_clones_of_a_node_program_are_told_and_draw_numbers_of_their_own(node: Node, tmp_path: Path) -> None:
    example = tmp_path / "agent"
    shutil.copytree(EXAMPLE, example)
    flags = ["-shared", "-fPIC", "-nostdlib", "-O2", "-Wall", "-Werror"]
    subprocess.run(["cc", *flags, "-o", "reseed.node", "reseed.c"], cwd=example, check=True)
    sandbox = agent(node, example)
    before = fetch(sandbox)
    snapshot = sandbox.checkpoint(when_ready=True)
    assert fetch(sandbox)["told"] == ["before", "checkpoint"]
    drawn = []
    for clone in snapshot.clones(100):
        found = fetch(clone)
        assert found["nonce"] == before["nonce"]
        assert (found["told"], found["name"], found["key"]) == (["before", "clone"], clone.name, 0)
        drawn.append(found["drawn"])
        clone.remove(force=True)
    for source in drawn[0]:
        assert len({str(one[source]) for one in drawn}) == len(drawn), f"two clones drew the same from {source}"
    clone = snapshot.clone(secrets={"KEY": b"sesame"}, environment={"WHO": "me"})
    assert (fetch(clone)["key"], fetch(clone)["who"]) == (6, "me")
    later = clone.checkpoint()
    assert fetch(clone)["who"] == "me"
    assert "who" not in fetch(later.clone())


def test_a_clone_whose_openssl_cannot_be_seeded_is_not_handed_out(node: Node, tmp_path: Path) -> None:
    example = tmp_path / "agent"
    shutil.copytree(EXAMPLE, example, ignore=shutil.ignore_patterns("*.node"))
    snapshot = agent(node, example).checkpoint()
    with pytest.raises(HookFailed, match="clones would share their keys"):
        snapshot.clone()
