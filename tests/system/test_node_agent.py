"""A real agent in this process; the API server is simulated, and the node's service is a stand-in that can be slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from kube.server import Server
from thawbox.cluster.agent import Agent, AgentOptions
from thawbox.cluster.crds import (
    CLAIM,
    CLAIM_NAME,
    POOL_LABEL,
    SANDBOX,
    SNAPSHOT,
    STATE_LABEL,
    WANTED,
    WHY,
    crds,
)
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, PODS, POOLS, TEMPLATES, Kube, connected
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, PARKED, notes_of, state_of
from thawbox.errors import EngineError, NotFound, ThawboxError, Unavailable

Json = dict[str, Any]
GOLDEN, KEPT = "a" * 64, "b" * 64
PATIENCE = 60.0


def _held(pod: str, sandbox: str, snapshot: str, state: str) -> Json:
    return {"pod": pod, "id": sandbox, "name": sandbox, "snapshot": snapshot, "state": state}


@dataclass
class Service(Nodes):
    """What `thawbox serve` answers an agent. `slow` are pods whose placing or checkpoint does not end before `go`."""

    held: dict[str, Json] = field(default_factory=dict[str, Json])
    slow: set[str] = field(default_factory=set[str])
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fails: list[ThawboxError] = field(default_factory=list[ThawboxError])
    under_way: list[str] = field(default_factory=list[str])

    async def tell_lease(self, url: str, *, until: float) -> list[str]:
        return []

    async def placed(self, url: str) -> list[Json]:
        if self.fails:
            raise self.fails.pop()
        return list(self.held.values())

    async def place(self, url: str, /, **wish: Any) -> Json:
        await self._take_time(wish["pod"])
        pod, state = wish["pod"], "running" if wish["recover"] else "frozen"
        self.held[pod] = _held(pod, f"sb-{pod[:8]}", wish["snapshot"], state)
        return self.held[pod]

    async def empty(self, url: str, pod: str) -> None:
        self.held.pop(pod, None)

    async def checkpoint(self, url: str, pod: str, *, to: str) -> Json:
        await self._take_time(pod)
        return {"id": KEPT, "url": to}

    async def _take_time(self, pod: str) -> None:
        self.under_way.append(pod)
        if pod in self.slow:
            await self.go.wait()


@dataclass
class World:
    kube: Kube
    service: Service
    pods: Index
    stack: AsyncExitStack

    async def begin(self) -> None:
        """Start the agent."""
        options = AgentOptions("n1", "http://n1", "unix:///n1", look_every=0.05)
        agent = Agent(self.kube, self.service, options, pid_of=lambda _: 4711)
        task = asyncio.create_task(agent.run())
        self.stack.push_async_callback(_end, task)

    async def make_pod(self, name: str, state: str = EMPTY, **notes: str) -> str:
        """A pod of this node; its uid."""
        labels, spec = {POOL_LABEL: "web", STATE_LABEL: state}, {"nodeName": "n1"}
        meta = {"name": name, "labels": labels, "annotations": notes}
        whole = {**spec, "containers": [{"name": "placeholder", "image": "pause"}]}
        uid: str = (await self.kube.create(PODS, {"metadata": meta, "spec": whole}))["metadata"]["uid"]
        return uid

    async def lease(self, name: str, **spec: Any) -> str:
        """A pod that is leased to a claim of its name, which is bound to it and whose clone runs; its uid."""
        claim = await self.kube.create(CLAIMS, {"metadata": {"name": name}, "spec": {"pool": "web", **spec}})
        bound = {"phase": "Bound", "node": "n1", "pod": name}
        await self.kube.patch(CLAIMS, name, {"status": bound}, sub="status")
        leased = {CLAIM: claim["metadata"]["uid"], CLAIM_NAME: name, SNAPSHOT: GOLDEN, SANDBOX: "sb-1"}
        uid = await self.make_pod(name, LEASED, **leased)
        self.service.held[uid] = _held(uid, "sb-1", GOLDEN, "running")
        return uid

    async def pod(self, name: str, state: str) -> Json:
        """A pod once it is in this state."""

        def come() -> bool:
            return name in self.pods.objects and state_of(self.pods.objects[name]) == state

        assert await self.pods.wait(come, timeout=PATIENCE)
        return self.pods.objects[name]


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def run(server: Server, act: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with a_world(server) as world:
            await act(world)

    asyncio.run(asyncio.wait_for(whole(), 120))


@asynccontextmanager
async def a_world(server: Server) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(connected(namespace="default", server=server.url))
        for one in crds():
            await kube.create(DEFINITIONS, one)
        spec = {"sandbox": {"command": ["true"]}, "store": "file:///store"}
        await kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": spec})
        ready = {"phase": "Ready", "snapshot": GOLDEN, "observedGeneration": 1}
        await kube.patch(TEMPLATES, "golden", {"status": ready}, sub="status")
        await kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden"}})
        pods = Index(kube, PODS)
        stack.callback(asyncio.create_task(pods.run()).cancel)
        yield World(kube, Service(), pods, stack)


async def until(come: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not come():
            await asyncio.sleep(0.01)


def test_who_takes_long_holds_nobody_else_up(server: Server) -> None:
    async def act(world: World) -> None:
        sent = await world.lease("sent", checkpointEvery=3600)
        stuck = await world.make_pod("stuck")
        world.service.slow = {sent, stuck}
        await world.begin()
        await until(lambda: set(world.service.under_way) >= {sent, stuck})
        await world.make_pod("next")
        await world.pod("next", PARKED)
        assert state_of(await world.kube.get(PODS, "stuck")) == EMPTY
        assert sorted(pod for pod in world.service.under_way if pod in (sent, stuck)) == sorted((sent, stuck))
        world.service.go.set()
        await world.pod("stuck", PARKED)
        claims = Index(world.kube, CLAIMS)
        world.stack.callback(asyncio.create_task(claims.run()).cancel)
        assert await claims.wait(
            lambda: claims.objects.get("sent", {}).get("status", {}).get("snapshot", {}).get("id") == KEPT,
            timeout=PATIENCE,
        )

    run(server, act)


def test_a_snapshot_of_a_clone_whose_claim_was_moved_meanwhile_is_not_the_claims(server: Server) -> None:
    async def act(world: World) -> None:
        sent = await world.lease("sent", checkpointEvery=3600)
        world.service.slow = {sent}
        await world.begin()
        await until(lambda: sent in world.service.under_way)
        moved = {"phase": "Bound", "node": "n2", "pod": "elsewhere", "snapshot": {"id": GOLDEN}}
        await world.kube.patch(CLAIMS, "sent", {"status": moved}, sub="status")
        with capture_logs() as told:
            world.service.go.set()
            await until(lambda: "replicate.failed" in {one["event"] for one in told})
        assert (await world.kube.get(CLAIMS, "sent"))["status"]["snapshot"] == {"id": GOLDEN}

    run(server, act)


@pytest.mark.parametrize("state", ["exited", "lost", ""])
def test_a_leased_clone_that_died_is_said_to_be_broken(server: Server, state: str) -> None:
    async def act(world: World) -> None:
        dead, alive = await world.lease("dead"), await world.lease("alive")
        await world.begin()
        if state:
            world.service.held[dead] |= {"state": state}
        else:
            del world.service.held[dead]
        pod = await world.pod("dead", BROKEN)
        assert notes_of(pod)[WHY] == f"its clone is {state or 'gone'}"
        world.service.held[alive] |= {"state": "frozen"}
        await world.make_pod("next")
        await world.pod("next", PARKED)
        assert state_of(await world.kube.get(PODS, "alive")) == LEASED

    run(server, act)


def test_a_leased_pod_in_which_a_snapshot_is_to_come_back_is_not_broken_before(server: Server) -> None:
    async def act(world: World) -> None:
        wanted = json.dumps({"id": KEPT})
        slow = await world.make_pod("heir", LEASED, **{SNAPSHOT: GOLDEN, WANTED: wanted, CLAIM_NAME: "mine"})
        world.service.slow = {slow}
        await world.begin()
        await until(lambda: slow in world.service.under_way)
        await world.make_pod("next")
        await world.pod("next", PARKED)
        assert state_of(await world.kube.get(PODS, "heir")) == LEASED
        world.service.go.set()
        assert await world.pods.wait(lambda: notes_of(world.pods.objects["heir"])[SNAPSHOT] == KEPT, timeout=PATIENCE)
        assert state_of(world.pods.objects["heir"]) == LEASED

    run(server, act)


def test_an_agent_outlives_whatever_its_service_answers(server: Server) -> None:
    async def act(world: World) -> None:
        world.service.fails = [NotFound("a sandbox went"), Unavailable("nobody answers"), EngineError("a defect")]
        await world.begin()
        await world.make_pod("next")
        await world.pod("next", PARKED)
        assert world.service.fails == []

    run(server, act)
