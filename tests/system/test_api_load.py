"""Many at once: nobody is kept waiting by another who is slow, or gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import pytest

from cli_process import Cli
from serving import PATIENCE, SLEEP, TINY, Listener, Serving, made, problem
from thawbox.api.crowd import MOST_CHANGES

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pool(root: httpx.Client) -> Iterator[str]:
    name = f"load-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/templates", json={"name": name, "spec": TINY}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 2, "high": 4, "limit": 6}))
    yield name
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)


def connect(home: Path) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(PATIENCE)
    connected.connect(str(home / "serve.sock"))
    return connected


def test_two_hundred_clients_at_once_are_each_answered(root: httpx.Client, serving: Serving, pool: str) -> None:
    gate = threading.Barrier(200)

    def ask(number: int) -> list[int]:
        client = serving.client()
        gate.wait(PATIENCE)
        seen = [client.get("/v1/node").status_code, client.get("/v1/sandboxes").status_code]
        if number % 4 == 0:  # 50 of them take a sandbox and give it back, six at a time
            claim = client.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE})
            seen.append(claim.status_code)
            seen.append(client.delete(f"/v1/claims/{claim.json()['id']}").status_code)
        return seen

    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(ask, range(200)))
    assert {status for seen in answers for status in seen} == {200, 201, 204}
    assert made(root.get(f"/v1/pools/{pool}"), 200)["leased"] == 0
    made(root.get("/healthz"), 200)


def test_clients_that_stall_hold_up_nobody(root: httpx.Client, serving: Serving) -> None:
    name = f"slow-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))
    stalled = [connect(serving.home) for _ in range(60)]
    for number, one in enumerate(stalled):
        if number % 3 == 0:
            one.sendall(b"GET /v1/sandb")  # never says the rest
        elif number % 3 == 1:
            one.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        else:
            one.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")  # never reads
    for _ in range(20):
        made(root.post(f"/v1/sandboxes/{name}/freeze"), 200)
        made(root.post(f"/v1/sandboxes/{name}/thaw"), 200)
    listener = Listener(serving.client(), after=0, kinds="sandbox.")
    listener.wait_for("sandbox.thawed", name)
    for one in stalled:
        one.close()
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


def test_a_busy_sandbox_holds_up_nobody_else(root: httpx.Client, serving: Serving) -> None:
    """While it is stopped its lock is held: who changes it waits, and threads do with him."""
    name, end = f"stub-{uuid.uuid4().hex[:6]}", "/tmp/end"
    stub = f"trap '' TERM; while [ ! -e {end} ]; do sleep 0.1; done"
    made(root.post("/v1/sandboxes", json={"spec": {"command": ["sh", "-c", stub], "name": name}}))
    other = made(root.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    wish, later = {"timeout": 3600}, {"Prefer": "respond-async"}
    stop = made(root.post(f"/v1/sandboxes/{name}/stop", json=wish, headers=later), 202)["id"]
    while made(root.get(f"/v1/operations/{stop}"), 200)["state"] == "pending":
        pass  # each look is a request of its own
    with ThreadPoolExecutor(45) as threads:
        freezes = [threads.submit(serving.client().post, f"/v1/sandboxes/{name}/freeze") for _ in range(45)]
        refused = [one.result() for _, one in zip(range(45 - MOST_CHANGES), as_completed(freezes), strict=False)]
        for one in refused:
            problem(one, 503, "unavailable.busy")
        made(root.get("/healthz"), 200)
        made(root.get("/v1/sandboxes"), 200)
        made(root.post(f"/v1/sandboxes/{other}/freeze"), 200)
        made(root.post(f"/v1/sandboxes/{other}/thaw"), 200)
        made(root.post(f"/v1/sandboxes/{other}/checkpoint"))
        assert made(root.get(f"/v1/operations/{stop}"), 200)["state"] == "running"
        made(root.put(f"/v1/sandboxes/{name}/files", params={"path": end}, content=b""), 200)
    assert made(root.get(f"/v1/operations/{stop}", params={"wait": PATIENCE}), 200)["state"] == "succeeded"
    for one in (name, other):
        made(root.delete(f"/v1/sandboxes/{one}", params={"force": "true"}), 204)


def test_a_caller_that_hung_up_keeps_no_clone(root: httpx.Client, serving: Serving, pool: str) -> None:
    held = [made(root.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE}))["id"] for _ in range(6)]
    waiting = [connect(serving.home) for _ in range(5)]
    wish, key = {"pool": pool, "timeout": 100}, uuid.uuid4().hex
    body = json.dumps(wish, separators=(",", ":")).encode()  # as httpx writes it: the same request
    for number, one in enumerate(waiting):
        one.sendall(b"POST /v1/claims HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        if number == 4:
            one.sendall(b"Idempotency-Key: %s\r\n" % key.encode())
        one.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    listener = Listener(serving.client(), kinds="pool.")
    while made(root.get(f"/v1/pools/{pool}"), 200)["waiting"] < 5:
        pass  # each look is a request of its own
    for one in waiting:
        one.close()
    for one in held:
        made(root.delete(f"/v1/claims/{one}"), 204)
    again = [made(root.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE}))["id"] for _ in range(5)]
    asked = root.post("/v1/claims", json=wish, headers={"Idempotency-Key": key})  # whose answer nobody saw
    again.append(made(asked)["id"])
    assert "idempotency-replayed" not in asked.headers
    assert made(root.get(f"/v1/pools/{pool}"), 200)["leased"] == 6
    assert not set(held) & set(again)
    for one in again:
        made(root.delete(f"/v1/claims/{one}"), 204)
    assert "pool.acquired" in [one.event for one in listener.heard]


def test_a_client_that_was_killed_while_it_waited_keeps_no_clone(
    root: httpx.Client, serving: Serving, pool: str
) -> None:
    """It sends a key with every request, so that it may ask again; a dead one never will."""
    held = [made(root.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE}))["id"] for _ in range(6)]
    waits = f"import thawbox; thawbox.Client().acquire({pool!r}, timeout=1000)"
    client = subprocess.Popen([sys.executable, "-c", waits], env=Cli(serving.home).environment())
    try:
        while made(root.get(f"/v1/pools/{pool}"), 200)["waiting"] < 1:
            assert client.poll() is None
    finally:
        client.kill()
        client.wait()
    for one in held:
        made(root.delete(f"/v1/claims/{one}"), 204)
    again = [made(root.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE}))["id"] for _ in range(6)]
    for one in again:
        made(root.delete(f"/v1/claims/{one}"), 204)


def test_an_empty_pool_answers_503_in_time(root: httpx.Client, pool: str) -> None:
    held = [made(root.post("/v1/claims", json={"pool": pool, "timeout": PATIENCE}))["id"] for _ in range(6)]
    problem(root.post("/v1/claims", json={"pool": pool, "timeout": 0}), 503, "unavailable.pool")
    problem(root.post(f"/v1/pools/{pool}/leases", json={"timeout": 0.05}), 503, "unavailable.pool")
    for one in held:
        made(root.delete(f"/v1/claims/{one}"), 204)


def test_a_full_lane_answers_503_at_once_and_holds_up_no_look(root: httpx.Client, serving: Serving) -> None:
    name = f"full-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/templates", json={"name": name, "spec": TINY}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 0, "high": 1, "limit": 1}))
    claim = made(root.post("/v1/claims", json={"pool": name, "timeout": PATIENCE}))["id"]
    begun: list[str] = []
    while True:  # each drain waits for the one lease
        answer = root.post(f"/v1/pools/{name}/drain", headers={"Prefer": "respond-async"})
        if answer.status_code != 202:
            break
        begun.append(answer.json()["id"])
        assert len(begun) <= 64 + 64
    problem(answer, 503, "unavailable.busy")
    assert len(begun) == 64 + 64
    made(root.get("/v1/node"), 200)
    for one in begun[64:]:
        assert made(root.delete(f"/v1/operations/{one}"), 200)["state"] == "cancelled"
    made(root.delete(f"/v1/claims/{claim}"), 204)
    for one in begun[:64]:
        assert made(root.get(f"/v1/operations/{one}", params={"wait": PATIENCE}), 200)["state"] == "succeeded"
    made(root.delete(f"/v1/pools/{name}"), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)
