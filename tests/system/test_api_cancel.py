"""Long work that nobody wants any more: it ends, and nothing of it is left; or it is done, and says so."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import PATIENCE, SLEEP, Serving, made, problem
from thawbox.host.files import locked

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]
ASYNC = {"Prefer": "respond-async"}


class Gate:
    """A directory that sandboxes see as /gate: what is done in them comes to it, and goes on when it is opened."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o777)
        self._directory = directory
        self.mounts = [{"source": str(directory), "target": "/gate"}]

    def passage(self, when: str = "") -> str:
        """A shell command that comes to the gate, where its argument is `when` if that is given."""
        wait = "touch /gate/came; while [ ! -e /gate/open ]; do sleep 0.02; done"
        return f'f() {{ [ "$1" != {when} ] || {{ {wait}; }}; }}; f' if when else wait

    def wait(self, root: httpx.Client) -> None:
        """Until something came."""
        while not (self._directory / "came").exists():
            made(root.get("/healthz"), 200)

    def open(self) -> None:
        (self._directory / "open").touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_is_left(root: httpx.Client) -> Iterator[None]:
    yield
    for one in sandboxes(root):
        made(root.delete(f"/v1/sandboxes/{one}", params={"force": "true"}), 204)
    for one in snapshots(root):
        root.patch(f"/v1/snapshots/{one}", json={"pinned": False})
        root.delete(f"/v1/snapshots/{one}", params={"cascade": "true"})


def sandboxes(root: httpx.Client) -> dict[str, Any]:
    return {one["name"]: one for one in made(root.get("/v1/sandboxes?all=true&limit=1000"), 200)["sandboxes"]}


def snapshots(root: httpx.Client) -> dict[str, Any]:
    return {one["id"]: one for one in made(root.get("/v1/snapshots?limit=1000"), 200)["snapshots"]}


def begin(root: httpx.Client, path: str, **wish: Any) -> str:
    return str(made(root.post(path, json=wish, headers=ASYNC), 202)["id"])


def cancel(root: httpx.Client, operation: str) -> None:
    assert made(root.delete(f"/v1/operations/{operation}"), 200)["state"] in ("pending", "running", "cancelled")


def ended(root: httpx.Client, operation: str) -> Any:
    return made(root.get(f"/v1/operations/{operation}", params={"wait": PATIENCE}), 200)


def was_cancelled(root: httpx.Client, operation: str) -> None:
    told = ended(root, operation)
    assert (told["state"], told["error"] and told["error"]["code"]) == ("cancelled", "unavailable.cancelled"), told


def run(root: httpx.Client, gate: Gate, moment: str) -> str:
    """A sandbox whose program comes to the gate at this moment."""
    spec = {**SLEEP, "mounts": gate.mounts, "hooks": f"cmd:{gate.passage(moment)}"}
    return str(made(root.post("/v1/sandboxes", json={"spec": spec}))["name"])


def test_a_template_that_is_cancelled_while_it_boots_is_not_made(root: httpx.Client, gate: Gate) -> None:
    spec = {**SLEEP, "mounts": gate.mounts, "ready": f"cmd:{gate.passage()}"}
    name = f"unwanted-{uuid.uuid4().hex[:6]}"
    operation = begin(root, "/v1/templates", name=name, spec=spec)
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    was_cancelled(root, operation)
    problem(root.get(f"/v1/templates/{name}"), 404, "not_found")
    assert not snapshots(root)
    assert not sandboxes(root)


def test_a_template_whose_rebuild_is_cancelled_stays_as_it_was(root: httpx.Client, gate: Gate) -> None:
    again = "[ ! -e /gate/again ] || { " + gate.passage() + "; }"
    name = f"kept-{uuid.uuid4().hex[:6]}"
    spec = {**SLEEP, "mounts": gate.mounts, "ready": f"cmd:{again}"}
    before = made(root.post("/v1/templates", json={"name": name, "spec": spec}))
    Path(gate.mounts[0]["source"], "again").touch()
    operation = begin(root, f"/v1/templates/{name}/rebuild")
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    was_cancelled(root, operation)
    assert made(root.get(f"/v1/templates/{name}"), 200) == before
    assert set(snapshots(root)) == {before["snapshot"]}
    made(root.delete(f"/v1/templates/{name}"), 204)


def test_a_checkpoint_that_is_cancelled_leaves_no_snapshot_and_takes_no_name(root: httpx.Client, gate: Gate) -> None:
    other = str(made(root.post("/v1/sandboxes", json={"spec": SLEEP}))["name"])
    first = made(root.post(f"/v1/sandboxes/{other}/checkpoint", json={"name": "kept"}))["id"]
    name = run(root, gate, "before-checkpoint")
    operation = begin(root, f"/v1/sandboxes/{name}/checkpoint", name="kept")
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    was_cancelled(root, operation)
    assert {one: told["names"] for one, told in snapshots(root).items()} == {first: ["kept"]}
    assert sandboxes(root)[name]["state"] == "running"
    made(root.post(f"/v1/sandboxes/{name}/checkpoint"))  # full: what it would be a delta of is not there


def test_a_checkpoint_that_ended_its_sandbox_stays_though_it_was_cancelled(root: httpx.Client, gate: Gate) -> None:
    """It is all that is left of the sandbox."""
    name = run(root, gate, "before-checkpoint")
    operation = begin(root, f"/v1/sandboxes/{name}/checkpoint", stop=True)
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    assert ended(root, operation)["state"] == "succeeded"
    assert sandboxes(root)[name]["state"] == "suspended"
    assert len(snapshots(root)) == 1


def test_a_fork_that_is_cancelled_leaves_neither_clones_nor_snapshot(root: httpx.Client, gate: Gate) -> None:
    name = run(root, gate, "before-checkpoint")
    operation = begin(root, f"/v1/sandboxes/{name}/fork", count=2)
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    was_cancelled(root, operation)
    assert set(sandboxes(root)) == {name}
    assert not snapshots(root)


def test_a_cancelled_restore_of_a_sandbox_that_was_gone_leaves_none(root: httpx.Client, gate: Gate) -> None:
    name = run(root, gate, "after-restore")
    snapshot = made(root.post(f"/v1/sandboxes/{name}/checkpoint"))["id"]
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)
    operation = begin(root, f"/v1/snapshots/{snapshot}/restore")
    gate.wait(root)
    cancel(root, operation)
    gate.open()
    was_cancelled(root, operation)
    assert not sandboxes(root)
    assert set(snapshots(root)) == {snapshot}


def test_a_flattened_snapshot_that_nobody_wants_any_more_is_removed(root: httpx.Client, serving: Serving) -> None:
    sandbox = made(root.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    first = made(root.post(f"/v1/sandboxes/{sandbox}/checkpoint", json={"name": "flat"}))["id"]
    second = made(root.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    with locked(serving.home / "locks" / sandbox, timeout=0):  # it goes on in its place: that waits for the sandbox
        operation = begin(root, f"/v1/snapshots/{second}/flatten", name="flat")
        while len(snapshots(root)) < 3:
            pass  # each look is a request of its own
        cancel(root, operation)
    was_cancelled(root, operation)
    assert {one: told["names"] for one, told in snapshots(root).items()} == {first: ["flat"], second: []}


@pytest.fixture
def pool(root: httpx.Client) -> Iterator[str]:
    name = f"pool-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/templates", json={"name": name, "spec": SLEEP}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 0, "high": 1, "limit": 1}))
    yield name
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)


def test_a_pool_whose_drain_is_cancelled_is_open_again_with_its_leases(root: httpx.Client, pool: str) -> None:
    lease = made(root.post(f"/v1/pools/{pool}/leases", json={"timeout": PATIENCE}))["lease"]
    operation = begin(root, f"/v1/pools/{pool}/drain")
    while root.post(f"/v1/pools/{pool}/leases", json={"timeout": 0}).json()["code"] != "unavailable":
        pass  # it gives out nothing any more
    cancel(root, operation)
    was_cancelled(root, operation)
    assert made(root.get(f"/v1/pools/{pool}"), 200)["leased"] == 1
    made(root.delete(f"/v1/pools/{pool}/leases/{lease}"), 204)
    lease = made(root.post(f"/v1/pools/{pool}/leases", json={"timeout": PATIENCE}))["lease"]
    made(root.delete(f"/v1/pools/{pool}/leases/{lease}"), 204)


def test_a_roll_that_is_cancelled_is_waited_for_no_longer(root: httpx.Client, gate: Gate) -> None:
    name = f"rolled-{uuid.uuid4().hex[:6]}"
    later = "[ ! -e /gate/later ] || { " + gate.passage("after-restore") + ' "$1"; }; true'
    spec = {**SLEEP, "mounts": gate.mounts, "hooks": f"cmd:f() {{ {later}; }}; f"}
    made(root.post("/v1/templates", json={"name": name, "spec": spec}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 1, "high": 1, "limit": 4}))
    while made(root.get(f"/v1/pools/{name}"), 200)["parked"] < 1:
        pass  # each look is a request of its own
    Path(gate.mounts[0]["source"], "later").touch()
    made(root.post(f"/v1/templates/{name}/rebuild"), 200)
    operation = begin(root, f"/v1/pools/{name}/roll")
    gate.wait(root)  # the clone that is to be parked instead
    cancel(root, operation)
    was_cancelled(root, operation)
    gate.open()
    while (now := made(root.get(f"/v1/pools/{name}"), 200))["parked"] < 1 or now["stale"]:
        pass  # each look is a request of its own
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)


def test_a_service_that_is_told_to_stop_waits_for_no_drain(home: Path) -> None:
    serving = Serving(home).start()
    try:
        root = serving.client()
        made(root.post("/v1/templates", json={"name": "t", "spec": SLEEP}))
        made(root.post("/v1/pools", json={"name": "p", "template": "t", "low": 0, "high": 1, "limit": 1}))
        lease = made(root.post("/v1/pools/p/leases", json={"timeout": PATIENCE}))["lease"]
        operation = begin(root, "/v1/pools/p/drain")
        while made(root.get(f"/v1/operations/{operation}"), 200)["state"] != "running":
            pass  # each look is a request of its own
        assert serving.end(signal.SIGTERM) == 0  # 1 where it had to leave something unended
        root = serving.start().client()
        assert made(root.get(f"/v1/operations/{operation}"), 200)["state"] == "cancelled"
        made(root.delete(f"/v1/pools/p/leases/{lease}"), 204)
    finally:
        serving.close()
