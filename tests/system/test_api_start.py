"""How a service starts: with what others hold, and where it is told to listen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli_process import Cli
from serving import PATIENCE, SLEEP, Serving, made, problem
from thawbox.config import load_settings
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.pool import PoolSpec

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


def test_a_pool_that_another_process_keeps_is_taken_up_once_it_is_let_go_of(home: Path) -> None:
    serving = Serving(home)
    try:
        with Node(load_settings(home=home)) as node:
            node.create_template("t", Spec(tuple(SLEEP["command"])))
            for name in ("held", "free"):
                node.create_pool(PoolSpec(name, "t", low=0, high=1, limit=1))
            with node.open_pool("held"):
                root = serving.start().client()
                made(root.get("/readyz"), 200)
                assert not made(root.get("/v1/pools/held"), 200)["open"]
                refused = problem(root.post("/v1/claims", json={"pool": "held", "timeout": 0}), 503, "unavailable")
                assert "another process" in refused["cause"]
                made(root.delete(f"/v1/claims/{made(root.post('/v1/claims', json={'pool': 'free'}))['id']}"), 204)
        while not made(root.get("/v1/pools/held"), 200)["open"]:
            pass  # each look is a request of its own
        claim = made(root.post("/v1/claims", json={"pool": "held", "timeout": PATIENCE}))["id"]
        made(root.delete(f"/v1/claims/{claim}"), 204)
        made(root.get("/healthz"), 200)
    finally:
        serving.close()


def test_an_address_without_a_port_is_refused(home: Path) -> None:
    """It would be answered on nowhere, and nobody told."""
    refused = Cli(home)("serve", "--host", "0.0.0.0", "--json")
    assert refused.error()["code"] == "invalid"
    assert "--port" in refused.error()["remediation"]
