"""The `node` back end, held over a real node and agent to what test_cluster_backends.py holds `gke` to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster_home import LEASE_SECONDS, NAMESPACE, Cluster, a_cluster
from thawbox.cluster.backends import Golden, NodeBackend, flip_readiness
from thawbox.cluster.capture import HeldElsewhere, Holds, ensure_golden, is_ready
from thawbox.cluster.crds import CLAIM_NAME, READINESS_GATE, SANDBOX, STATE_LABEL
from thawbox.cluster.dispatcher import Options, dispatching
from thawbox.cluster.fencing import HAND_OVER_SECONDS
from thawbox.cluster.kube import CLAIMS, PODS, POOLS, TEMPLATES, Kube, connected
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.reconcile import reconciling
from thawbox.cluster.state import LEASED, PARKED, State, state_of
from thawbox.config import load_settings
from thawbox.errors import NotFound, ThawboxError
from thawbox.node import Node

Json = dict[str, Any]
WORKLOADS = Path(__file__).parents[1] / "workloads"
PATIENCE = 90.0


@pytest.fixture
def cluster(tmp_path: Path, rootfs_cache: Path) -> Iterator[Cluster]:
    """One node with its agent, and no dispatcher."""
    with a_cluster(tmp_path, rootfs_cache) as made:
        made.add_node("n1")
        yield made
    with Node(load_settings(home=tmp_path / "n1")) as last:
        for sandbox in last.sandboxes():
            sandbox.remove(force=True)
        last.tidy()


@dataclass
class Counted:
    """A back end whose captures are counted."""

    backend: NodeBackend
    captures: int = 0

    async def capture(self, template: Json) -> Golden:
        self.captures += 1
        return await self.backend.capture(template)


@dataclass
class Bench:
    kube: Kube
    backend: NodeBackend
    state: State
    nodes: Nodes

    async def state_of(self, sandbox: str, wanted: str) -> None:
        """Return once the node says that a sandbox is in this state."""
        while wanted not in {
            one["state"] for one in await self.nodes.placed(self.state.urls["n1"]) if one["id"] == sandbox
        }:
            await asyncio.sleep(0.1)

    async def captured(self, holder: str = "one", by: Any = None) -> Json:
        return await ensure_golden(
            self.kube, "golden", lambda _: by or self.backend,
            holder=holder, holds=Holds(asyncio.get_running_loop().time), now=lambda: 1e9,
        )  # fmt: skip

    async def pod(self, wanted: str) -> Json:
        """The one pod of the pool, once it is in this state."""
        pods = self.state.pods

        def come() -> bool:
            return any(state_of(one) == wanted for one in pods.objects.values())

        assert await pods.wait(come, timeout=PATIENCE)
        return next(iter(pods.objects.values()))


def run(cluster: Cluster, command: list[str], act: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with a_bench(cluster, command) as bench:
            await act(bench)

    asyncio.run(asyncio.wait_for(whole(), 200))


@asynccontextmanager
async def a_bench(cluster: Cluster, command: list[str]) -> AsyncGenerator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(connected(namespace=NAMESPACE, server=cluster.server.url))
        nodes = await stack.enter_async_context(Nodes())
        state = State(kube, clock=asyncio.get_running_loop().time)
        for index in state.indexes:
            stack.callback(asyncio.create_task(index.run()).cancel)
        mounts = [{"source": str(WORKLOADS), "target": "/workloads", "read_only": True}]
        spec = {"sandbox": {"command": command, "mounts": mounts, "ready": "tcp:8000"}}
        await kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": spec})
        await kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden"}})
        assert await state.leases.wait(lambda: "n1" in state.fleet, timeout=PATIENCE)
        yield Bench(kube, NodeBackend(kube, nodes, state), state, nodes)


def test_of_many_that_would_capture_one_does_and_the_others_wait(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        counted = Counted(bench.backend)
        tries = [bench.captured(f"holder-{number}", counted) for number in range(5)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(one, HeldElsewhere) for one in done) == 4
        ready = next(one for one in done if isinstance(one, dict))
        assert is_ready(ready)
        assert ready["status"]["machine"]["kernel"]
        assert await bench.captured("late", counted) == await bench.kube.get(TEMPLATES, "golden")
        assert counted.captures == 1

    run(cluster, ["python3", "/workloads/tiny.py"], act)


def test_a_capture_that_fails_says_so_and_leaves_no_snapshot_and_no_sandbox(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        with pytest.raises(ThawboxError):
            await bench.captured()
        status = (await bench.kube.get(TEMPLATES, "golden"))["status"]
        assert (status["phase"], status.get("snapshot"), status.get("capture")) == ("Failed", None, None)
        assert status["conditions"][0]["message"]

    run(cluster, ["false"], act)
    with Node(load_settings(home=cluster.nodes["n1"].home)) as node:
        assert node.sandboxes() == []


def test_a_parked_clone_is_handed_over_running_and_is_not_handed_over_once_it_died(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        template = await bench.captured()
        pool = await bench.kube.get(POOLS, "web")
        await bench.kube.create(PODS, bench.backend.placeholder(pool, template))
        pod = await bench.pod(PARKED)
        assert bench.backend.look(pod).state == PARKED
        name = pod["metadata"]["name"]
        leased = await bench.kube.patch(PODS, name, {"metadata": {"labels": {STATE_LABEL: LEASED}}})
        assert bench.backend.look(leased).state == LEASED
        first, again = await bench.backend.acquire(leased), await bench.backend.acquire(leased)
        assert first == again
        await flip_readiness(bench.kube, leased, ready=True, now=0.0)
        found = await bench.kube.get(PODS, name)
        assert {one["type"]: one["status"] for one in found["status"]["conditions"]}[READINESS_GATE] == "True"
        with Node(load_settings(home=cluster.nodes["n1"].home)) as node:
            node.sandbox(first["id"]).remove(force=True)
        with pytest.raises(NotFound):
            await bench.backend.acquire(leased)

    run(cluster, ["python3", "/workloads/tiny.py"], act)


def test_a_clone_is_placed_once_however_often_its_pod_changes_meanwhile(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        template = await bench.captured()
        pool = await bench.kube.get(POOLS, "web")
        name = (await bench.kube.create(PODS, bench.backend.placeholder(pool, template)))["metadata"]["name"]

        async def probe() -> None:
            for number in itertools.count():
                await bench.kube.patch(PODS, name, {"metadata": {"annotations": {"probed": str(number)}}})
                await asyncio.sleep(0.02)

        probing = asyncio.create_task(probe())
        pod = await bench.pod(PARKED)
        probing.cancel()
        (placed,) = await bench.nodes.placed(bench.state.urls["n1"])
        assert (pod["metadata"]["annotations"][SANDBOX], placed["state"]) == (placed["id"], "frozen")

    run(cluster, ["python3", "/workloads/tiny.py"], act)


async def a_bound_clone(bench: Bench) -> str:
    """The id of a clone that is leased to a claim, and runs."""
    template = await bench.captured()
    pool = await bench.kube.get(POOLS, "web")
    await bench.kube.create(PODS, bench.backend.placeholder(pool, template))
    pod = await bench.pod(PARKED)
    name = pod["metadata"]["name"]
    await bench.kube.create(CLAIMS, {"metadata": {"name": "mine"}, "spec": {"pool": "web"}})
    bound = {"phase": "Bound", "pod": name}
    await bench.kube.patch(CLAIMS, "mine", {"status": bound}, sub="status")
    lease = {"labels": {STATE_LABEL: LEASED}, "annotations": {CLAIM_NAME: "mine"}}
    leased = await bench.kube.patch(PODS, name, {"metadata": lease})
    sandbox: str = (await bench.backend.acquire(leased))["id"]
    return sandbox


def test_a_node_that_cannot_renew_its_lease_freezes_what_is_leased_until_it_can(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        sandbox = await a_bound_clone(bench)
        cluster.server.is_away = True
        await bench.state_of(sandbox, "frozen")
        cluster.server.is_away = False
        await bench.state_of(sandbox, "running")

    run(cluster, ["python3", "/workloads/tiny.py"], act)


def test_what_is_leased_is_frozen_when_its_nodes_agent_died_and_runs_on_with_the_next_one(cluster: Cluster) -> None:
    async def act(bench: Bench) -> None:
        sandbox = await a_bound_clone(bench)
        await asyncio.to_thread(cluster.nodes["n1"].processes[-1].kill)
        await bench.state_of(sandbox, "frozen")
        await asyncio.to_thread(cluster.agent, cluster.nodes["n1"])
        await bench.state_of(sandbox, "running")

    run(cluster, ["python3", "/workloads/tiny.py"], act)


def test_an_agent_that_is_told_to_stop_leaves_what_is_leased_running_for_the_next_one(cluster: Cluster) -> None:
    def lease() -> Json:
        (found,) = (one["spec"] for one in cluster.objects("leases"))
        return found

    def told() -> float:
        """Until when the service lets run what is leased."""
        until: float = json.loads((cluster.nodes["n1"].home / "fence").read_text())["until"]
        return until

    async def act(bench: Bench) -> None:
        sandbox = await a_bound_clone(bench)
        assert lease()["leaseDurationSeconds"] == LEASE_SECONDS  # not the one by which it began
        before = told()
        agent = cluster.nodes["n1"].processes[-1]
        agent.process.terminate()
        await asyncio.to_thread(agent.process.wait)
        assert lease()["leaseDurationSeconds"] == HAND_OVER_SECONDS
        assert told() - before > HAND_OVER_SECONDS / 2
        await bench.state_of(sandbox, "running")
        await asyncio.to_thread(cluster.agent, cluster.nodes["n1"])
        while lease()["leaseDurationSeconds"] != LEASE_SECONDS:
            await asyncio.sleep(0.1)
        assert told() - time.monotonic() < LEASE_SECONDS
        await bench.state_of(sandbox, "running")

    run(cluster, ["python3", "/workloads/tiny.py"], act)


def test_a_template_that_changes_is_captured_anew_and_nothing_is_left_of_the_old_snapshot(cluster: Cluster) -> None:
    def kept() -> set[str]:
        with Node(load_settings(home=cluster.nodes["n1"].home)) as node:
            return set(node.context.store.catalog.ids())

    async def act(bench: Bench) -> None:
        templates = bench.state.templates

        def is_kept_alone(generation: int) -> bool:
            status = templates.objects.get("golden", {}).get("status", {})
            return status.get("observedGeneration") == generation and len(status["history"]) == 1

        await bench.kube.patch(TEMPLATES, "golden", {"spec": {"keep": 1}})
        async with (
            dispatching(bench.kube, bench.nodes, Options("one")) as dispatcher,
            reconciling(dispatcher, server=cluster.server.url, now=time.time),
        ):
            assert await templates.wait(lambda: is_kept_alone(2), timeout=PATIENCE)
            first = templates.objects["golden"]["status"]["snapshot"]
            assert await asyncio.to_thread(kept) == {first}
            await bench.kube.patch(TEMPLATES, "golden", {"spec": {"sandbox": {"environment": {"VERSION": "next"}}}})
            assert await templates.wait(lambda: is_kept_alone(3), timeout=PATIENCE)
            assert await asyncio.to_thread(kept) == {templates.objects["golden"]["status"]["snapshot"]}

    run(cluster, ["python3", "/workloads/tiny.py"], act)
