"""Snapshots of leased clones, sent to their template's store as often as their claims ask (`checkpointEvery`).

Each is a task of its own: an upload may take minutes, and nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import structlog

from thawbox.cluster.crds import CLAIM_NAME, Json
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, Conflict, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import is_there, notes_of
from thawbox.cluster.times import read, written
from thawbox.errors import NotFound, ThawboxError

RETRY_SECONDS = 10.0
"""After a snapshot failed, until it is tried once more."""
UPLOADS = 4
"""Snapshots at a time: those of one node share its disk and its network."""
_log = structlog.get_logger()


class Replication:
    """Of one node, whose service is at `own`. `store_of` is where a pod's snapshots go; empty: nowhere."""

    def __init__(self, kube: Kube, nodes: Nodes, own: str, claims: Index, *, store_of: Callable[[Json], str]) -> None:
        self._kube = kube
        self._nodes = nodes
        self._own = own
        self._claims = claims
        self._store_of = store_of
        self._slots = asyncio.Semaphore(UPLOADS)
        self._at_work: set[str] = set()
        self._not_before: dict[str, float] = {}
        """Pods whose snapshot failed, and when it is tried again by the monotonic clock."""

    def look(self, pods: Iterable[Json], tasks: asyncio.TaskGroup) -> None:
        """Begin a snapshot for every pod whose claim is due."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid not in self._at_work and self._due(pod) is not None:
                self._at_work.add(uid)
                tasks.create_task(self._guarded(pod))

    def _due(self, pod: Json) -> Json | None:
        """The claim of a pod, if it wants a snapshot by now."""
        claim = self._claims.objects.get(notes_of(pod).get(CLAIM_NAME, ""))
        if claim is None or not is_there(pod) or not _is_bound_to(claim, pod) or not self._store_of(pod):
            return None
        every, snapshot = claim["spec"].get("checkpointEvery"), claim["status"].get("snapshot")
        last = read(snapshot["at"]) if snapshot else 0.0
        if not every or time.time() - last < float(every):
            return None
        return claim if time.monotonic() >= self._not_before.get(pod["metadata"]["uid"], 0.0) else None

    async def _guarded(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        try:
            async with self._slots:
                claim = self._due(pod)
                if claim is not None:
                    await self._replicate(pod, claim, self._store_of(pod))
        except ThawboxError as error:
            self._not_before[uid] = time.monotonic() + RETRY_SECONDS
            _log.warning("replicate.failed", pod=pod["metadata"]["name"], code=error.code, why=str(error))
        else:
            self._not_before.pop(uid, None)
        finally:
            self._at_work.discard(uid)

    async def _replicate(self, pod: Json, claim: Json, store: str) -> None:
        at = written(time.time())
        made = await self._nodes.checkpoint(self._own, pod["metadata"]["uid"], to=store)
        change = {"status": {"snapshot": {"id": made["id"], "url": store, "at": at}}}
        name = claim["metadata"]["name"]
        while True:
            now = await self._kube.get(CLAIMS, name)
            if now["metadata"]["uid"] != claim["metadata"]["uid"] or not _is_bound_to(now, pod):
                raise NotFound(f"the claim {name} is bound to {pod['metadata']['name']} no longer")
            version = now["metadata"]["resourceVersion"]
            with contextlib.suppress(Conflict):
                self._claims.seen(await self._kube.patch(CLAIMS, name, change, version=version, sub="status"))
                return


def _is_bound_to(claim: Json, pod: Json) -> bool:
    status = claim.get("status", {})
    return bool(status.get("phase") == "Bound" and status.get("pod") == pod["metadata"]["name"])
