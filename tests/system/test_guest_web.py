"""Hooks as routes of a FastAPI application."""

from __future__ import annotations

import base64
import http.client
import json
from pathlib import Path
from typing import Any

import fastapi
import pytest

from guests import GUEST, WORKLOADS, files_with
from roads import on_both_roads
from thawbox.errors import InvalidRequest
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
    assert ask(sandbox, "GET", "/internal/checkpoint-ready") == (200, {"missing": [], "secrets": False})
    snapshot = sandbox.checkpoint(when_ready=True)
    found = []
    for clone in snapshot.clones(2):
        status, state = ask(clone, "GET", "/")
        assert status == 200
        assert state["told"][-1] == f"clone {clone.name} []"
        found.append(state["random"])
    assert len(set(found)) == 2
    if hooks != "auto":
        assert state["told"][0] == "before in _UnixSelectorEventLoop"


def test_a_fastapi_program_is_given_secrets_directly_and_they_are_in_no_later_snapshot(node: Node) -> None:
    secret = b"a-secret-that-stands-alone-8e1c"
    snapshot = server(node, "auto").checkpoint()
    clone = snapshot.clone(secrets={"KEY": secret}, environment={"WHO": "me"})
    assert ask(clone, "GET", "/given") == (200, {"secrets": {"KEY": len(secret)}, "who": "me"})
    later = clone.checkpoint()
    assert not files_with(node, secret, base64.b64encode(secret))
    assert ask(clone, "GET", "/given") == (200, {"secrets": {"KEY": len(secret)}, "who": "me"})
    assert ask(later.clone(), "GET", "/given") == (200, {"secrets": {}, "who": None})


def test_a_fastapi_program_told_by_http_is_sent_no_secrets_and_its_environment_is_its_own(node: Node) -> None:
    secret = b"a-secret-that-stands-alone-4b7d"
    snapshot = server(node, "http://127.0.0.1:8000").checkpoint()
    with pytest.raises(InvalidRequest, match="takes no secrets by HTTP") as refused:
        snapshot.clone(secrets={"KEY": secret})
    assert "--hooks auto" in refused.value.remediation
    assert len(node.sandboxes()) == 1
    clone = snapshot.clone(environment={"WHO": "me"})
    with pytest.raises(InvalidRequest, match="takes no secrets by HTTP"):
        clone.give(secrets={"KEY": secret})
    later = clone.checkpoint()
    assert not files_with(node, secret, base64.b64encode(secret))
    assert ask(clone, "GET", "/given") == (200, {"secrets": {}, "who": "me"})
    assert ask(later.clone(), "GET", "/given") == (200, {"secrets": {}, "who": None})
    body = json.dumps({"nonce": "", "what": "given", "secrets": {"KEY": "c2VzYW1l"}})
    assert ask(clone, "POST", "/internal/given", body)[0] == 500
