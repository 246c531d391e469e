"""GKE's Pod Snapshots, played on a simulated API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thawbox.cluster.gke import PS_NAME
from thawbox.cluster.index import Index
from thawbox.cluster.kube import PODS, SNAPSHOTS, TRIGGERS, Kube
from thawbox.errors import NotFound

GKE_KINDS = Path(__file__).parent / "kube" / "podsnapshot-crds.yaml"
Json = dict[str, Any]
UUID = "de334898-1e7a-4cdb-9f2e-7cc2181c29e4"
POD = {"metadata": {"labels": {"app": "golden-agent"}}, "spec": {"containers": [{"name": "agent", "image": "agent:1"}]}}


def condition(kind: str, status: str, reason: str, message: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message}


@dataclass
class Gke:
    """GKE as its documents tell it: triggers are carried out, annotated pods are restored, or silently start cold."""

    kube: Kube
    reading: str = "string"  # or "object": how `snapshotCreated` is written
    fails: str = ""  # the reason that triggers fail with
    cold: bool = False
    policy: str = "golden-policy"
    triggered: int = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kind, act in ((PODS, self._pod), (TRIGGERS, self._trigger)):
                index = Index(self.kube, kind)
                queue: asyncio.Queue[Json] = asyncio.Queue()
                index.on_change(
                    lambda _, now, before, queue=queue: queue.put_nowait(now) if now and not before else None
                )
                tasks.create_task(index.run())
                tasks.create_task(self._each(queue, act))

    async def _each(self, queue: asyncio.Queue[Json], act: Callable[[Json], Awaitable[None]]) -> None:
        while True:
            await act(await queue.get())

    async def _pod(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        wanted = (pod["metadata"].get("annotations") or {}).get(PS_NAME)
        conditions = [condition("Ready", "True", "ContainersReady")]
        if wanted and not self.cold:
            conditions.append(condition("PodRestored", "True", "Restored", f"restored from {wanted}"))
        running = {"name": "agent", "image": "agent:1", "imageID": "", "ready": True, "restartCount": 0,
                   "state": {"running": {}}}  # fmt: skip
        status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": [running]}
        with contextlib.suppress(NotFound):
            await self.kube.patch(PODS, name, {"spec": {"nodeName": "gvisor-1"}})
            await self.kube.patch(PODS, name, {"status": status}, sub="status")

    async def _trigger(self, trigger: Json) -> None:
        self.triggered += 1
        name = trigger["metadata"]["name"]
        if self.fails:
            failed = {"conditions": [condition("Triggered", "False", self.fails, "the runtime said no")]}
            await self.kube.patch(TRIGGERS, name, {"status": failed}, sub="status")
            return
        made = UUID if self.triggered == 1 else f"{UUID[:-4]}{self.triggered:04x}"
        await self.kube.create(SNAPSHOTS, {"metadata": {"name": made}, "spec": {"policyName": self.policy}})
        await self.kube.patch(
            SNAPSHOTS, made, {"status": {"conditions": [condition("Ready", "True", "Ready")]}}, sub="status"
        )
        told: Any = made if self.reading == "string" else {"name": made}
        done = {"conditions": [condition("Triggered", "True", "Complete")], "snapshotCreated": told}
        await self.kube.patch(TRIGGERS, name, {"status": done}, sub="status")
