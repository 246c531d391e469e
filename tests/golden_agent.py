"""The golden agent (examples/agent) for tests: its spec, a small Matrix, and how it is talked to."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from build_matrix import build
from golden import PORT, golden_spec
from thawbox.sandbox import Sandbox

EXAMPLE = Path(__file__).parents[1] / "examples" / "agent"
ROWS = 4000

__all__ = ["EXAMPLE", "PORT", "ROWS", "ask", "build", "golden_spec", "talk"]


def talk(sandbox: Sandbox, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request to the agent in a sandbox: status, and the JSON of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.sock = sandbox.connect(PORT, timeout=60)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ask(sandbox: Sandbox, question: str, *, conversation: str = "main") -> dict[str, Any]:
    """What the agent says to a question."""
    status, said = talk(sandbox, "POST", "/ask", {"question": question, "conversation": conversation})
    assert status == 200, said
    answer: dict[str, Any] = said
    return answer
