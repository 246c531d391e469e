"""A node's lease, and until when its service lets run what is leased on it: the latter always ends first.

Rule 1: the service is told a time that a renewed lease covers, less a margin in which it freezes. It freezes by itself
when it is told no later one by then: nobody has to be alive for it but the service.
Rule 2: no lease is written that ends before what the service may have been told, and the margin. So an agent's first
lease is a long one: its predecessor may have handed over.
Rule 3: what was frozen runs on only while its claim says that it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from thawbox.cluster.crds import CLAIM_NAME, Json
from thawbox.cluster.holding import Hold
from thawbox.cluster.kube import CLAIMS, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import LEASED, is_there, notes_of, state_of
from thawbox.errors import NotFound, ThawboxError, Unavailable

_log = structlog.get_logger()
MARGIN = 1 / 3
"""The part of a lease that is left when what is leased is frozen: to be done with it before the lease has run out."""
HAND_OVER_SECONDS = 120.0
"""How long a node whose agent was told to stop counts as there: a service that drains, an image that is pulled."""
_HAND_OVERS = 3


class Fencing:
    """One node's. `own` is where the agent reaches its service; `labels` and `annotations` are the lease's."""

    def __init__(
        self, kube: Kube, nodes: Nodes, own: str, *, node: str, seconds: float, labels: Json, annotations: Json
    ) -> None:
        self._kube = kube
        self._nodes = nodes
        self._own = own
        self._node = node
        self._seconds = seconds
        self._meta = {"labels": labels, "annotations": annotations}
        self._hold = Hold(
            kube, f"thawbox-node-{node}", node, seconds=seconds, clock=time.monotonic, now=time.time,
        )  # fmt: skip
        self._margin = seconds * MARGIN
        self._long = max(seconds, HAND_OVER_SECONDS)
        self._most: float = time.monotonic() + self._long - self._margin
        """The latest time that the service may have been told."""
        self._told: float = 0.0
        self._fenced: frozenset[str] = frozenset()

    async def begin(self, leased: Iterable[Json]) -> None:
        """Take the lease, and have the service go by it."""
        await self.renew()
        await self.look(leased)

    async def keep(self) -> None:
        """Renew the lease for ever."""
        while True:
            await self.renew()
            await asyncio.sleep(self._seconds / 6)

    async def renew(self, *, seconds: float = 0.0) -> bool:
        """Renew the lease, for `seconds` if that is longer than usual; False when that did not succeed in time."""
        lasts = max(seconds, self._seconds, self._most + self._margin - time.monotonic())
        try:
            async with asyncio.timeout(self._seconds / 3):
                return await self._hold.take(**self._meta, seconds=lasts)
        except (Unavailable, TimeoutError) as error:
            _log.warning("lease.late", node=self._node, why=repr(error))
            return False

    async def look(self, leased: Iterable[Json]) -> None:
        """Tell the service how long what is leased may run, if that is news; let run on what it froze meanwhile."""
        try:
            async with asyncio.timeout(self._seconds / 3):
                await self._tell(self._seconds)
                for pod in leased:
                    if pod["metadata"]["uid"] in self._fenced:
                        await self._lift(pod)
        except (ThawboxError, TimeoutError) as error:
            _log.warning("fence.late", node=self._node, why=repr(error))

    async def hand_over(self) -> None:
        """Keep the node's claims here for whoever tends it next, for HAND_OVER_SECONDS at least."""
        for _ in range(_HAND_OVERS):  # a renewal of ours may still be on its way, and come between
            if await self.renew(seconds=self._long):
                break
        else:
            return
        try:
            await self._tell(self._long)
        except ThawboxError as error:  # it is stopping too: until somebody tells it, it freezes
            _log.warning("fence.late", node=self._node, why=repr(error))

    async def _tell(self, seconds: float) -> None:
        until = self._hold.renewed + seconds - self._margin
        if until <= time.monotonic() or (until == self._told and not self._fenced):
            return
        self._most = max(self._most, until)
        self._fenced = frozenset(await self._nodes.tell_lease(self._own, until=until))
        self._most = self._told = until

    async def _lift(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        try:
            if not await self._is_still_ours(pod):
                return
            await self._nodes.acquire(self._own, pod["metadata"]["uid"])
        except ThawboxError as error:  # one pod's trouble is not the others'; the next look tries again
            _log.warning("lift.failed", pod=name, code=error.code, why=str(error))
        else:
            _log.info("fence.lifted", pod=name)

    async def _is_still_ours(self, pod: Json) -> bool:
        """Whether the claim of a pod was not brought back elsewhere meanwhile."""
        try:
            claim = await self._kube.get(CLAIMS, notes_of(pod).get(CLAIM_NAME, ""))
        except NotFound:
            return False
        status = claim.get("status", {})
        return bool(status.get("phase") == "Bound" and status.get("pod") == pod["metadata"]["name"])


def leased_among(pods: Iterable[Json]) -> list[Json]:
    """Those that somebody has."""
    return [pod for pod in pods if state_of(pod) == LEASED and is_there(pod)]
