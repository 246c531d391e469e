"""Snapshots of leased pods where no agent of ours makes them: as often as their claims ask (`checkpointEvery`).

The newest is in the claim's status and belongs to the claim: the API server drops it when the claim goes. One
dispatcher does it at a time. Of a node with an agent, the agent does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from thawbox.cluster.crds import Json
from thawbox.cluster.gke import GkeBackend
from thawbox.cluster.kube import CLAIMS, Conflict, Kube
from thawbox.cluster.state import State, is_gke, is_there
from thawbox.cluster.times import read, written
from thawbox.errors import NotFound, ThawboxError

RETRY_SECONDS = 10.0
"""After a snapshot failed, until it is tried once more."""
_log = structlog.get_logger()


class Keeping:
    """Looks which claims are due."""

    def __init__(
        self, kube: Kube, state: State, backend: GkeBackend, tasks: asyncio.TaskGroup, *,
        clock: Callable[[], float], now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._kube = kube
        self._state = state
        self._backend = backend
        self._tasks = tasks
        self._clock = clock
        self._now = now
        self._at_work: set[str] = set()
        self._not_before: dict[str, float] = {}

    def look(self) -> None:
        """Begin a snapshot for every claim that is due."""
        for name, claim in self._state.claims.objects.items():
            if name not in self._at_work and self._is_due(claim):
                self._at_work.add(name)
                self._tasks.create_task(self._guarded(name, claim))

    def _is_due(self, claim: Json) -> bool:
        every, status = claim["spec"].get("checkpointEvery"), claim.get("status", {})
        if not every or status.get("phase") != "Bound" or not is_gke(self._state.template_of(claim["spec"]["pool"])):
            return False
        pod = self._state.pods.objects.get(status.get("pod", ""))
        if pod is None or not is_there(pod) or self._clock() < self._not_before.get(claim["metadata"]["uid"], 0.0):
            return False
        last = read(status["snapshot"]["at"]) if status.get("snapshot") else 0.0
        return self._now() - last >= float(every)

    async def _guarded(self, name: str, claim: Json) -> None:
        uid = claim["metadata"]["uid"]
        try:
            await self._keep(claim)
        except ThawboxError as error:
            self._not_before[uid] = self._clock() + RETRY_SECONDS
            _log.warning("replicate.failed", claim=name, code=error.code, why=str(error))
        else:
            self._not_before.pop(uid, None)
        finally:
            self._at_work.discard(name)

    async def _keep(self, claim: Json) -> None:
        at, before = written(self._now()), claim["status"].get("snapshot")
        made = await self._backend.snapshot(claim["status"]["pod"], prefix=claim["metadata"]["name"][:40])
        try:
            await self._backend.own(made, claim)
            await self._note(claim, {"id": made, "url": "", "at": at})
        except BaseException:
            await self._backend.drop(made)
            raise
        if before is not None:
            with contextlib.suppress(NotFound):
                await self._backend.drop(before["id"])

    async def _note(self, claim: Json, snapshot: Json) -> None:
        """Write it down where the claim is still bound to the pod that it is of. Raises NotFound."""
        name, pod = claim["metadata"]["name"], claim["status"]["pod"]
        while True:
            now = await self._kube.get(CLAIMS, name)
            status, version = now.get("status", {}), now["metadata"]["resourceVersion"]
            is_same = now["metadata"]["uid"] == claim["metadata"]["uid"]
            if not is_same or (status.get("phase"), status.get("pod")) != ("Bound", pod):
                raise NotFound(f"the claim {name} is bound to {pod} no longer")
            with contextlib.suppress(Conflict):
                change = {"status": {"snapshot": snapshot}}
                self._state.claims.seen(await self._kube.patch(CLAIMS, name, change, version=version, sub="status"))
                return
