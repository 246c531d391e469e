"""The service killed, or told to stop, in the midst of its work: nothing that it acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli_process import Cli
from serving import PATIENCE, SLEEP, TINY, Listener, Serving, made, problem

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


@pytest.fixture
def served(home: Path) -> Iterator[Serving]:
    serving = Serving(home).start()
    try:
        yield serving
    finally:
        serving.close()
        shutil.rmtree(home)


@dataclass(slots=True)
class Acknowledged:
    """What the service said was so, in the order in which it said it."""

    snapshots: set[str] = field(default_factory=set)
    living: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    claims: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def work(serving: Serving, pool: str, seen: Acknowledged, number: int, enough: Callable[[], None]) -> None:
    """One client: runs, checkpoints, clones, claims and removes until the service is gone."""
    chance = random.Random(number)
    client = serving.client()
    mine: list[str] = []
    try:
        while True:
            what = chance.choice(["run", "checkpoint", "clone", "claim", "remove", "freeze"])
            with seen.lock:
                snapshots = sorted(seen.snapshots)
            if what == "run" and len(mine) < 2:
                answer = client.post("/v1/sandboxes", json={"spec": SLEEP})
                if answer.status_code == 201:
                    mine.append(answer.json()["id"])
                    with seen.lock:
                        seen.living.add(mine[-1])
            elif what == "checkpoint" and mine:
                answer = client.post(f"/v1/sandboxes/{chance.choice(mine)}/checkpoint")
                if answer.status_code == 201:
                    with seen.lock:
                        seen.snapshots.add(answer.json()["id"])
            elif what == "clone" and snapshots and len(mine) < 2:
                answer = client.post(f"/v1/snapshots/{chance.choice(snapshots)}/clone")
                if answer.status_code == 201:
                    mine.append(answer.json()["sandboxes"][0]["id"])
                    with seen.lock:
                        seen.living.add(mine[-1])
            elif what == "claim":
                answer = client.post("/v1/claims", json={"pool": pool, "timeout": 0})
                if answer.status_code == 201:
                    with seen.lock:
                        seen.claims[answer.json()["id"]] = answer.json()["sandbox"]["id"]
            elif what == "remove" and len(mine) == 2:
                going = mine.pop()
                with seen.lock:  # from the asking on it may be gone
                    seen.living.discard(going)
                answer = client.delete(f"/v1/sandboxes/{going}", params={"force": "true"})
                if answer.status_code == 204:
                    with seen.lock:
                        seen.removed.add(going)
            elif what == "freeze" and mine:
                client.post(f"/v1/sandboxes/{mine[0]}/freeze")
                client.post(f"/v1/sandboxes/{mine[0]}/thaw")
            enough()
    except (httpx.TransportError, httpx.InvalidURL):
        return  # the service is gone


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_after_an_end_under_the_load_of_fifty_clients_all_that_was_acknowledged_is_there(
    served: Serving, end: signal.Signals
) -> None:
    root = served.client()
    made(root.post("/v1/templates", json={"name": "tiny", "spec": TINY}))
    made(root.post("/v1/pools", json={"name": "tiny", "template": "tiny", "low": 2, "high": 2, "limit": 8}))
    seen = Acknowledged()
    enough = threading.Event()

    def look() -> None:
        if len(seen.snapshots) >= 12 and len(seen.living) >= 20 and seen.claims:
            enough.set()

    with ThreadPoolExecutor(50) as threads:
        clients = [threads.submit(work, served, "tiny", seen, number, look) for number in range(50)]
        assert enough.wait(PATIENCE), (len(seen.snapshots), len(seen.living), len(seen.claims))
        status = served.end(end)
        for client in clients:
            client.result(PATIENCE)
    assert status == (-end if end == signal.SIGKILL else 0)
    served.start()
    root = served.client()
    there = {one["id"]: one for one in made(root.get("/v1/sandboxes?all=true&limit=1000"), 200)["sandboxes"]}
    for sandbox in seen.living:
        assert there[sandbox]["state"] in {"running", "frozen"}, (sandbox, there.get(sandbox))
        made(root.post(f"/v1/sandboxes/{sandbox}/thaw"), 200)
    assert not seen.removed & set(there)
    for snapshot in seen.snapshots:
        assert made(root.post(f"/v1/snapshots/{snapshot}/verify", json={"deep": True}), 200)["ok"]
    bound = {one["id"]: one["sandbox"]["id"] for one in made(root.get("/v1/claims?limit=1000"), 200)["claims"]}
    assert bound.items() >= seen.claims.items()
    for sandbox in seen.claims.values():
        assert there[sandbox]["state"] == "running"
    restored = made(root.post(f"/v1/snapshots/{min(seen.snapshots)}/clone", json={"count": 1}))
    assert restored["sandboxes"]


def test_what_is_under_way_ends_before_the_service_and_what_is_new_is_refused(served: Serving) -> None:
    root, other = served.client(), served.client()
    slow = {"command": ["sh", "-c", "sleep 3; echo ready; exec sleep 1000"], "name": "slow", "ready": "log:ready"}
    listener = Listener(other, kinds="node.")
    answers: list[Any] = []
    running = threading.Thread(
        target=lambda: answers.append(root.post("/v1/sandboxes", json={"spec": slow})), daemon=True
    )  # fmt: skip
    running.start()
    looking = served.client()
    while not made(looking.get("/v1/node"), 200)["sandboxes"]:
        pass  # each look is a request of its own
    assert served.process is not None
    served.process.send_signal(signal.SIGTERM)
    listener.wait_for("node.stopping", served.home.name)
    problem(looking.get("/readyz"), 503, "unavailable.busy")
    made(looking.get("/healthz"), 200)
    problem(looking.post("/v1/sandboxes", json={"spec": SLEEP}), 503, "unavailable.busy")
    running.join(PATIENCE)
    assert made(answers[0])["name"] == "slow"
    assert served.process.wait(PATIENCE) == 0
    served.process = None
    served.start()
    assert made(served.client().get("/v1/sandboxes/slow"), 200)["state"] == "running"


def test_what_does_not_end_in_time_is_left_as_by_a_kill(home: Path) -> None:
    served = Serving(home).start("--drain-timeout", "1s")
    try:
        stuck = {"command": ["sleep", "1000"], "ready": "log:never", "ready_timeout": 600}
        headers = {"Prefer": "respond-async"}
        begun = made(served.client().post("/v1/sandboxes", json={"spec": stuck}, headers=headers), 202)["id"]
        kept = made(served.client().post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
        assert served.end() == 1
        served.start()
        root = served.client()
        assert made(root.get(f"/v1/operations/{begun}"), 200)["state"] == "failed"
        assert made(root.get(f"/v1/sandboxes/{kept}"), 200)["state"] == "running"
    finally:
        served.close()


def test_systemd_is_told_when_it_answers_and_when_it_stops(home: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        address = f"\0thawbox-{uuid.uuid4().hex}"
        hearing.bind(address)
        hearing.settimeout(PATIENCE)
        cli = Cli(home, env=(("NOTIFY_SOCKET", "@" + address[1:]),))
        process = subprocess.Popen(cli.argv("serve"), env=cli.environment(), stdout=subprocess.DEVNULL)
        served = Serving(home, process=process)
        try:
            assert hearing.recv(4096).decode().splitlines()[0] == "READY=1"
            made(served.client().get("/readyz"), 200)
            process.terminate()
            assert hearing.recv(4096) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0
            served.process = None
        finally:
            served.close()
