"""What a node agent asks of a node: requests may come twice, and at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from placeholders import a_placeholder
from serving import TINY, made, problem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_of_two_placings_at_once_one_clone_stays_and_it_leaves_nothing(root: httpx.Client) -> None:
    golden = made(root.post("/v1/placeholders/golden", json={"name": "golden", "spec": TINY}))
    assert made(root.post("/v1/placeholders/golden", json={"name": "golden", "spec": TINY}))["id"] == golden["id"]
    with a_placeholder("pod-0") as pod:
        wish = {"pid": pod.pid, "pod": pod.uid, "snapshot": golden["id"], "name": "agent"}
        with ThreadPoolExecutor(2) as threads:
            placed = list(threads.map(lambda _: made(root.post("/v1/placeholders", json=wish)), range(2)))
        assert len({one["id"] for one in placed}) == 2
        (left,) = root.get("/v1/placeholders").json()["placeholders"]
        assert left["id"] in {one["id"] for one in placed}
        ran = root.post(f"/v1/placeholders/{pod.uid}/acquire", json={})
        assert (ran.json()["id"], ran.json()["state"]) == (left["id"], "running")
        assert root.delete(f"/v1/placeholders/{pod.uid}").status_code == 204
        assert root.delete(f"/v1/placeholders/{pod.uid}").status_code == 204
        assert root.get("/v1/placeholders").json()["placeholders"] == []
        assert pod.members() == {pod.pid}
    assert root.delete("/v1/placeholders/golden/golden").status_code == 204


def test_a_pod_by_no_name_is_refused(root: httpx.Client) -> None:
    wish = {"pid": os.getpid(), "pod": "../pod", "snapshot": "0" * 64}
    problem(root.post("/v1/placeholders", json=wish), 400, "invalid.spec")
