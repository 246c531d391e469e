"""The dispatcher: the parts joined, and run until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from thawbox.cluster.backends import PLACEHOLDER_IMAGE, Backend, NodeBackend
from thawbox.cluster.binding import Binding
from thawbox.cluster.crds import Json
from thawbox.cluster.gke import GkeBackend
from thawbox.cluster.holding import Hold
from thawbox.cluster.keeping import Keeping
from thawbox.cluster.kube import Conflict, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.recovery import Recovery
from thawbox.cluster.scaling import Scaling
from thawbox.cluster.state import State, is_gke
from thawbox.errors import NotFound, Unavailable

LEADER = "thawbox-dispatcher"


@dataclass(frozen=True, slots=True)
class Options:
    """How a dispatcher behaves. Times are seconds."""

    identity: str
    look_every: float = 0.5
    lead_seconds: float = 15.0
    image: str = PLACEHOLDER_IMAGE
    watch_seconds: int = 300


class Dispatcher:
    """Binds claims; while it leads, also scales pools and recovers what was lost. Any number may run."""

    def __init__(self, kube: Kube, nodes: Nodes, options: Options, tasks: asyncio.TaskGroup) -> None:
        self.kube = kube
        self.options = options
        self.state = State(kube, clock=time.monotonic, watch_seconds=options.watch_seconds)
        self._node = NodeBackend(kube, nodes, self.state, image=options.image)
        self._gke = GkeBackend(kube)
        self._tasks = tasks
        self.binding = Binding(kube, self.state, self.backend_of, tasks)
        self._scaling = Scaling(kube, self.state, self.binding, self.backend_of, now=time.time)
        self._recovery = Recovery(kube, self.state, self.binding, self.backend_of, tasks, now=time.time)
        self._keeping = Keeping(kube, self.state, self._gke, tasks, clock=time.monotonic, now=time.time)
        self._hold = Hold(
            kube, LEADER, options.identity, seconds=options.lead_seconds, clock=time.monotonic, now=time.time
        )
        self.ready = asyncio.Event()

    def backend_of(self, found: Json) -> Backend:
        """The back end of a template, or of the template of a claim."""
        pool = found["spec"].get("pool")
        template = self.state.template_of(pool) if pool else found
        return self._gke if is_gke(template) else self._node

    async def run(self) -> None:
        """Bind, and while leading scale and recover, for ever."""
        await self.state.run(self._tasks)
        self.binding.resume()
        self.ready.set()
        while True:
            await self._recovery.lose_silent()
            if await self._leads():
                self._recovery.look()
                self._keeping.look()
                with contextlib.suppress(Conflict, NotFound, Unavailable):  # the next look has newer facts
                    await self._scaling.look()
                    await self._recovery.forget_gone()
            await asyncio.sleep(self.options.look_every)

    async def _leads(self) -> bool:
        third = self._hold.seconds / 3
        if time.monotonic() - self._hold.renewed < third:
            return True
        with contextlib.suppress(Unavailable):
            return await self._hold.take()
        return self._hold.is_held


@contextlib.asynccontextmanager
async def dispatching(kube: Kube, nodes: Nodes, options: Options) -> AsyncGenerator[Dispatcher]:
    """A dispatcher that runs until the end of the block; whatever ends it is raised there."""
    try:
        async with asyncio.TaskGroup() as tasks:
            dispatcher = Dispatcher(kube, nodes, options, tasks)
            tasks.create_task(dispatcher.run())
            yield dispatcher
            raise _Ended  # noqa: TRY301 - the way to cancel a group's tasks
    except* _Ended:
        pass


class _Ended(Exception):
    """The block is over."""
