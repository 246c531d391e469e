"""A real dispatcher in this process over nodes with agents; these and the API server are simulated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kube.server import Server
from node_world import COMPAT, NodeWorld
from thawbox.cluster.crds import crds
from thawbox.cluster.dispatcher import Dispatcher, Options, dispatching
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, POOLS, TEMPLATES, Kube, connected

Json = dict[str, Any]
PATIENCE = 60.0
GOLDEN, KEPT = "a" * 64, "b" * 64


@dataclass
class World:
    """A cluster of simulated nodes; `dispatch` starts one more dispatcher."""

    server: Server
    kube: Kube
    stack: AsyncExitStack
    nodes: NodeWorld

    async def dispatch(self, identity: str = "one", *, lead_seconds: float = 15) -> Dispatcher:
        options = Options(identity, look_every=0.05, lead_seconds=lead_seconds)
        kube = await self.stack.enter_async_context(connected(namespace="default", server=self.server.url))
        return await self.stack.enter_async_context(dispatching(kube, self.nodes, options))

    async def make_pool(self, **marks: int) -> None:
        """A template that is captured, and a pool of it."""
        await self.kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": {"sandbox": {}}})
        status = {"phase": "Ready", "snapshot": GOLDEN, "observedGeneration": 1, "machine": COMPAT}
        await self.kube.patch(TEMPLATES, "golden", {"status": status}, sub="status")
        await self.kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden", **marks}})

    async def bound(self, dispatcher: Dispatcher, name: str, *, kept: str = KEPT) -> Json:
        """The status of a new claim that is bound, with a replicated snapshot."""
        await self.kube.create(CLAIMS, {"metadata": {"name": name}, "spec": {"pool": "web", "timeout": 300}})
        await until(dispatcher, name, lambda status: status.get("phase") == "Bound")
        if kept:
            snapshot = {"id": kept, "url": "", "at": "2026-01-01T00:00:00Z"}
            await self.kube.patch(CLAIMS, name, {"status": {"snapshot": snapshot}}, sub="status")
        return await until(dispatcher, name, lambda status: status.get("snapshot", {}).get("id", "") == kept)


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
        nodes = NodeWorld(kube)
        stack.push_async_callback(end, asyncio.create_task(nodes.run()))
        yield World(server, kube, stack, nodes)


async def end(playing: asyncio.Task[None]) -> None:
    """Cancel it, and raise what it ended with before."""
    playing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await playing


async def until(dispatcher: Dispatcher, name: str, come: Callable[[Json], bool]) -> Json:
    """The status of a claim once `come` is true of it."""
    claims = dispatcher.state.claims
    assert await claims.wait(
        lambda: name in claims.objects and come(claims.objects[name].get("status", {})), timeout=PATIENCE
    ), claims.objects.get(name)
    found: Json = claims.objects[name]["status"]
    return found
