"""What is taken from a lost node is ended there first, where anybody is left to do so; then it comes back elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from kube.server import Server
from thawbox.cluster import recovery
from thawbox.cluster.crds import (
    CLAIM,
    CLAIM_NAME,
    MACHINE,
    NODE_LABEL,
    POOL_LABEL,
    SANDBOX,
    SNAPSHOT,
    STATE_LABEL,
    WANTED,
    crds,
)
from thawbox.cluster.dispatcher import Dispatcher, Options, dispatching
from thawbox.cluster.holding import Hold
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, PODS, POOLS, TEMPLATES, Kube, connected
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import LEASED, PARKED, notes_of, state_of
from thawbox.store.compat import Compat

Json = dict[str, Any]
GOLDEN, KEPT = "a" * 64, "b" * 64
MACHINE_FACTS = msgspec.json.encode(Compat("x86_64", "6.8.0", "criu 4.2.1")).decode()
PATIENCE = 60.0


@dataclass
class World:
    """A dispatcher, and a claim that is bound to the pod `old` on the node n1, whose lease runs out; n2 has `heir`."""

    kube: Kube
    dispatcher: Dispatcher

    async def pod(self, name: str, come: Callable[[Json], bool]) -> Json:
        """A pod, once this is true of it ({}: it is gone)."""
        pods = self.dispatcher.state.pods
        assert await pods.wait(lambda: come(pods.objects.get(name, {})), timeout=PATIENCE)
        return pods.objects.get(name, {})

    async def come_back(self) -> Json:
        """The claim's status once it runs in the heir; the agent there is played here."""
        heir = await self.pod("heir", lambda pod: state_of(pod) == LEASED)
        wanted = json.loads(notes_of(heir)[WANTED])["id"]
        await self.kube.patch(PODS, "heir", {"metadata": {"annotations": {SNAPSHOT: wanted, SANDBOX: "sb-1"}}})
        claims = self.dispatcher.state.claims
        assert await claims.wait(lambda: claims.objects["mine"]["status"]["phase"] == "Bound", timeout=PATIENCE)
        status: Json = claims.objects["mine"]["status"]
        return status


def run(server: Server, act: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with a_world(server) as world:
            await act(world)

    asyncio.run(asyncio.wait_for(whole(), 120))


@asynccontextmanager
async def a_world(server: Server) -> AsyncGenerator[World]:
    async with connected(namespace="default", server=server.url) as kube, Nodes() as nodes:
        for one in crds():
            await kube.create(DEFINITIONS, one)
        await kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": {"sandbox": {"command": ["true"]}}})
        ready = {"phase": "Ready", "snapshot": GOLDEN, "observedGeneration": 1}
        await kube.patch(TEMPLATES, "golden", {"status": ready}, sub="status")
        marks = {"low": 1, "high": 1, "limit": 2}
        await kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden", **marks}})
        claim = await kube.create(CLAIMS, {"metadata": {"name": "mine"}, "spec": {"pool": "web"}})
        bound = {"phase": "Bound", "node": "n1", "pod": "old", "snapshot": {"id": KEPT}}
        await kube.patch(CLAIMS, "mine", {"status": bound}, sub="status")
        await _make_pod(kube, "old", "n1", LEASED, {CLAIM: claim["metadata"]["uid"], CLAIM_NAME: "mine"})
        await _make_pod(kube, "heir", "n2", PARKED, {SNAPSHOT: GOLDEN})
        for node, seconds in (("n1", 1.0), ("n2", 3600.0)):
            lease = Hold(kube, f"node-{node}", node, seconds=seconds, clock=lambda: 0.0, now=lambda: 0.0)
            assert await lease.take(labels={NODE_LABEL: "true"}, annotations={MACHINE: MACHINE_FACTS})
        async with dispatching(kube, nodes, Options("one", look_every=0.05)) as dispatcher:
            await dispatcher.ready.wait()
            yield World(kube, dispatcher)


async def _make_pod(kube: Kube, name: str, node: str, state: str, notes: Json) -> None:
    labels = {POOL_LABEL: "web", STATE_LABEL: state}
    spec = {"nodeName": node, "containers": [{"name": "placeholder", "image": "pause"}]}
    await kube.create(PODS, {"metadata": {"name": name, "labels": labels, "annotations": notes}, "spec": spec})
    await kube.patch(PODS, name, {"status": {"phase": "Running"}}, sub="status")


def test_a_claim_comes_back_once_the_kubelet_has_ended_its_old_pod(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "KUBELET_SECONDS", PATIENCE)

    async def act(world: World) -> None:
        old = await world.pod("old", lambda pod: "deletionTimestamp" in pod.get("metadata", {}))
        assert (state_of(old), state_of(await world.kube.get(PODS, "heir"))) == (LEASED, PARKED)
        await world.kube.delete(PODS, "old", grace=0)  # as a kubelet does, once it has ended
        assert (await world.come_back())["pod"] == "heir"

    run(server, act)


def test_a_claim_comes_back_although_no_kubelet_ends_its_old_pod(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "KUBELET_SECONDS", 0.1)

    async def act(world: World) -> None:
        assert (await world.come_back())["pod"] == "heir"
        assert await world.pod("old", lambda pod: not pod) == {}

    run(server, act)
