"""What a node agent asks of a node: requests may come twice, and at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from placeholders import Placeholder, a_placeholder
from serving import TINY, Serving, made, problem
from thawbox.config import load_settings

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


@pytest.fixture
def leased(root: httpx.Client, serving: Serving) -> Iterator[Placeholder]:
    """A placeholder in which a clone runs; nothing of it, and no lease that ends, is left after the test."""
    golden = made(root.post("/v1/placeholders/golden", json={"name": "golden", "spec": TINY}))
    with a_placeholder("pod-1") as pod:
        wish = {"pid": pod.pid, "pod": pod.uid, "snapshot": golden["id"], "name": "agent"}
        made(root.post("/v1/placeholders", json=wish))
        made(root.post(f"/v1/placeholders/{pod.uid}/acquire", json={}), 200)
        yield pod
        last = serving.client()
        tell(last, time.monotonic() + 1e6)
        made(last.delete(f"/v1/placeholders/{pod.uid}"), 204)
        made(last.delete("/v1/placeholders/golden/golden"), 204)


def tell(root: httpx.Client, until: float) -> list[str]:
    """The pods that stand still for want of a lease, once another was told."""
    fenced: list[str] = made(root.put("/v1/placeholders/lease", json={"until": until}), 200)["fenced"]
    return fenced


def state_in(root: httpx.Client, pod: Placeholder) -> str:
    (held,) = (one for one in root.get("/v1/placeholders").json()["placeholders"] if one["pod"] == pod.uid)
    state: str = held["state"]
    return state


def test_what_is_leased_stands_still_when_its_time_is_over_and_runs_on_once_it_may(
    root: httpx.Client, leased: Placeholder
) -> None:
    assert tell(root, time.monotonic() + 1000) == []
    tell(root, time.monotonic())
    while state_in(root, leased) != "frozen":
        time.sleep(0.05)
    problem(root.post(f"/v1/placeholders/{leased.uid}/acquire", json={}), 503, "unavailable.busy")
    assert tell(root, time.monotonic() + 1000) == [leased.uid]
    ran = made(root.post(f"/v1/placeholders/{leased.uid}/acquire", json={}), 200)
    assert (ran["state"], tell(root, time.monotonic() + 1000)) == ("running", [])


def test_a_service_that_begins_after_the_time_freezes_before_it_answers(serving: Serving, leased: Placeholder) -> None:
    until = time.monotonic() + 3
    tell(serving.client(), until)
    serving.end(signal.SIGKILL)
    while time.monotonic() < until:
        time.sleep(0.05)
    root = serving.start().client()
    assert state_in(root, leased) == "frozen"
    assert tell(root, time.monotonic() + 1000) == [leased.uid]


def sent_of(root: httpx.Client) -> set[str]:
    """Ids of the node's snapshots that a store has too."""
    return {one["id"] for one in root.get("/v1/snapshots?label=made-by=node-agent").json()["snapshots"]}


def test_of_what_is_sent_to_a_store_the_newest_stay_here_and_none_when_the_pod_is_emptied(
    serving: Serving, leased: Placeholder, tmp_path: Path
) -> None:
    root, keep = serving.client(), {"url": f"file://{tmp_path}"}
    made_of = [made(root.post(f"/v1/placeholders/{leased.uid}/checkpoint", json=keep))["id"]
               for _ in range(load_settings().max_chain_length + 1)]  # fmt: skip
    assert sent_of(root) == set(made_of[-2:])  # the last but one is whole: nothing older is needed
    made(root.delete(f"/v1/placeholders/{leased.uid}"), 204)
    assert sent_of(root) == set()
    with a_placeholder("pod-2") as other:
        wish = {"pid": other.pid, "pod": other.uid, "snapshot": made_of[-1], "recover": True, **keep}
        assert made(root.post("/v1/placeholders", json=wish))["state"] == "running"
        assert sent_of(root) == set(made_of[-2:])
        made(root.delete(f"/v1/placeholders/{other.uid}"), 204)
    assert sent_of(root) == set()


def test_a_snapshot_that_was_sent_nowhere_stays(root: httpx.Client, leased: Placeholder) -> None:
    only = made(root.post(f"/v1/placeholders/{leased.uid}/checkpoint", json={}))["id"]
    made(root.delete(f"/v1/placeholders/{leased.uid}"), 204)
    made(root.delete(f"/v1/snapshots/{only}"), 200)
