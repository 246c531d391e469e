"""Hooks as routes of a FastAPI application."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import fastapi
import pytest

from guests import GUEST, WORKLOADS
from roads import on_both_roads
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = on_both_roads

PACKAGES = Mount(str(Path(fastapi.__file__).parents[1]), "/opt/packages", read_only=True)


def server(node: Node, hooks: str) -> Sandbox:
    command = (
        "python3",
        "-m",
        "uvicorn",
        "web_agent:app",
        "--port",
        "8000",
        "--log-level",
        "warning",
        "--loop",
        "asyncio",
    )
    env = {"PYTHONPATH": "/opt/packages:/workloads", "PYTHONDONTWRITEBYTECODE": "1"}
    mounts = (GUEST, WORKLOADS, PACKAGES)
    return node.run(
        Spec(command, mounts=mounts, env=env, hooks=hooks, ready="http://127.0.0.1:8000/", ready_timeout=60)
    )


def ask(sandbox: Sandbox, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.sock = sandbox.connect(8000, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("hooks", ["http://127.0.0.1:8000", "auto"])
def test_a_fastapi_program_is_told_by_its_own_routes_or_directly(node: Node, hooks: str) -> None:
    sandbox = server(node, hooks)
    assert ask(sandbox, "GET", "/internal/checkpoint-ready")[0] == 503
    ask(sandbox, "POST", "/loaded")
    assert ask(sandbox, "GET", "/internal/checkpoint-ready") == (200, {"missing": []})
    snapshot = sandbox.checkpoint(when_ready=True)
    found = []
    for clone in snapshot.clones(2):
        status, state = ask(clone, "GET", "/")
        assert status == 200
        assert state["told"][-1] == f"clone {clone.name} []"
        found.append(state["random"])
    assert len(set(found)) == 2
    clone = snapshot.clone(secrets={"KEY": b"sesame"})
    told = ask(clone, "GET", "/")[1]["told"]
    assert told == [told[0], f"clone {clone.name} ['sesame']"]
    if hooks != "auto":
        assert told[0] == "before in _UnixSelectorEventLoop"
