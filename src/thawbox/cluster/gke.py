"""GKE Pod Snapshots as a back end: pods are restored from a PodSnapshot that their annotation names.

A pod that GKE could not restore is started anew, without a word: only the condition `PodRestored` tells a clone from
that, and without it a pod is never handed out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from thawbox.cluster.backends import ColdStart, Golden, Look, pod_frame, sandbox_of
from thawbox.cluster.crds import GROUP, VERSION, Json
from thawbox.cluster.facts import Reason
from thawbox.cluster.index import Index
from thawbox.cluster.kube import PODS, SNAPSHOTS, TRIGGERS, Kind, Kube
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, PARKED, notes_of, state_of
from thawbox.errors import DumpFailed, NotFound, Unavailable, Unsupported

PS_NAME = "podsnapshot.gke.io/ps-name"
RESTORED = "PodRestored"


class GkeBackend:
    """Clones as pods on gVisor nodes. `seconds` bounds each step of a capture."""

    def __init__(self, kube: Kube, *, seconds: float = 600.0, now: Callable[[], float] = time.time) -> None:
        self._kube = kube
        self._seconds = seconds
        self._now = now

    async def capture(self, template: Json) -> Golden:
        """Start the golden pod, wait until it is ready, trigger, and wait until the snapshot is ready."""
        meta, spec = template["metadata"], template["spec"]
        labels = {**spec["pod"].get("metadata", {}).get("labels", {}), f"{GROUP}/golden": meta["name"]}
        golden = await self._kube.create(
            PODS,
            {"metadata": {"generateName": f"{meta['name']}-golden-", "labels": labels}, "spec": spec["pod"]["spec"]},
        )
        name = golden["metadata"]["name"]
        try:
            await self._until(PODS, name, _ready, "to become ready")
            made = await self.snapshot(name, prefix=meta["name"])
            await self._check_policy(made, spec.get("policy", ""))
            return Golden(made)
        finally:
            await self._kube.delete(PODS, name)

    async def _check_policy(self, snapshot: str, policy: str) -> None:
        """What another policy makes may lack the memory, or be let go earlier."""
        found = (await self._kube.get(SNAPSHOTS, snapshot))["spec"].get("policyName")
        if policy and found != policy:
            await self.drop(snapshot)
            raise DumpFailed(
                f"the policy {found} made the snapshot {snapshot}, not {policy}",
                remediation="let the selectors of no other PodSnapshotPolicy match the golden pod",
            )

    async def snapshot(self, pod: str, *, prefix: str) -> str:
        """Trigger a snapshot of a running pod, and return its name once it can be restored.

        Raises DumpFailed, Unavailable when it takes too long.
        """
        wish = {"metadata": {"generateName": f"{prefix}-"}, "spec": {"targetPod": pod}}
        trigger = (await self._kube.create(TRIGGERS, wish))["metadata"]["name"]
        try:
            made = snapshot_name(await self._until(TRIGGERS, trigger, _triggered, "to be triggered"))
        finally:
            await self._kube.delete(TRIGGERS, trigger)
        await self._until(SNAPSHOTS, made, _ready, "to become ready")
        return made

    async def drop(self, snapshot: str) -> None:
        """Give up a snapshot that nobody needs."""
        await self._kube.delete(SNAPSHOTS, snapshot)

    async def retire(self, golden: Json, /) -> None:
        await self.drop(golden["id"])

    async def own(self, snapshot: str, claim: Json) -> None:
        """Have the API server drop a snapshot when the claim is gone that it was made for."""
        meta = claim["metadata"]
        owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Claim", "name": meta["name"], "uid": meta["uid"]}
        await self._kube.patch(SNAPSHOTS, snapshot, {"metadata": {"ownerReferences": [owner]}})

    def placeholder(self, pool: Json, template: Json) -> Json:
        snapshot = template["status"]["snapshot"]
        wanted = template["spec"]["pod"]
        pod = pod_frame(pool, template, wanted["spec"])
        pod["metadata"]["annotations"] = {**wanted.get("metadata", {}).get("annotations", {}), PS_NAME: snapshot}
        pod["metadata"]["labels"] = {**wanted.get("metadata", {}).get("labels", {}), **pod["metadata"]["labels"]}
        return pod

    def look(self, pod: Json) -> Look:
        return Look(state_of(pod)) if state_of(pod) in (LEASED, BROKEN) else _come(pod)

    def is_lost(self, _status: Json, pod: Json | None, /) -> bool:
        """Once the pod is gone or has ended: of a node that nobody hears of, GKE ends it."""
        return pod is None or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    async def end(self, _claim: Json, /) -> None:
        """GKE has: the API server keeps a pod until it has ended."""

    def heir(self, pool: Json, template: Json, snapshot: Json, /) -> Json | None:
        return self.placeholder(pool, {**template, "status": {"snapshot": snapshot["id"]}})

    def look_back(self, pod: Json, _snapshot: Json, /) -> Look:
        come = _come(pod)
        return Look(LEASED) if come.state == PARKED else come

    async def acquire(self, pod: Json, *, environment: Json | None = None) -> Json:
        if environment:
            raise Unsupported(
                "a pod that GKE restored cannot be given an environment",
                remediation="claim without one, and hand it over at the pod's address",
            )
        found = await self._kube.get(PODS, pod["metadata"]["name"])
        if "deletionTimestamp" in found["metadata"] or found.get("status", {}).get("phase") != "Running":
            raise NotFound(f"the pod {found['metadata']['name']} no longer runs")
        restored = _condition(found, RESTORED)
        if restored is None or restored["status"] != "True":
            raise ColdStart(f"the pod {found['metadata']['name']} has no condition {RESTORED}: it started cold")
        return sandbox_of(found)

    async def _until(self, kind: Kind, name: str, come: Callable[[Json], bool], what: str) -> Json:
        """The object once `come` is true of it."""
        index = Index(self._kube, kind, fields=f"metadata.name={name}")
        watching = asyncio.create_task(index.run())
        try:
            failure: list[DumpFailed] = []

            def is_there() -> bool:
                found = index.objects.get(name)
                try:
                    return found is not None and come(found)
                except DumpFailed as failed:
                    failure.append(failed)
                    return True

            if not await index.wait(is_there, timeout=self._seconds):
                raise Unavailable(f"{kind.kind} {name} took longer than {self._seconds:g} s {what}")
            if failure:
                raise failure[0]
            return index.objects[name]
        finally:
            watching.cancel()


def _come(pod: Json) -> Look:
    """What became of a pod that was to be restored, whoever has it."""
    phase = pod.get("status", {}).get("phase")
    found = _condition(pod, RESTORED)
    wanted = notes_of(pod).get(PS_NAME, "")
    if found is not None and found["status"] == "True":
        if wanted and wanted not in found.get("message", ""):
            return Look(BROKEN, f"it was restored from another snapshot: {found.get('message')}", Reason.COLD_START)
        return Look(PARKED)
    if found is not None and found["status"] == "False":
        why = found.get("message") or found.get("reason") or "no reason given"
        return Look(BROKEN, f"the restore failed: {why}", Reason.COLD_START)
    if phase in ("Succeeded", "Failed"):
        return Look(BROKEN, f"the pod is {phase}", Reason.NODE_REFUSED)
    containers = pod.get("status", {}).get("containerStatuses", [])
    if phase == "Running" and containers and all("running" in one.get("state", {}) for one in containers):
        return Look(BROKEN, f"it started cold: no condition {RESTORED}", Reason.COLD_START)
    return Look(EMPTY)


def snapshot_name(trigger: Json) -> str:
    """The snapshot that a trigger made: documented as a string, read by GKE's own client as an object with a name."""
    created: Any = trigger["status"].get("snapshotCreated")
    name = created.get("name") if isinstance(created, dict) else created  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    if not isinstance(name, str) or not name:
        raise DumpFailed(f"the trigger {trigger['metadata']['name']} is complete and names no snapshot: {created!r}")
    return name


def _condition(found: Json, kind: str) -> Json | None:
    conditions: list[Json] = found.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind), None)


def _ready(found: Json) -> bool:
    one = _condition(found, "Ready")
    if one is not None and one["status"] == "False" and one.get("reason") in ("Failed", "Error"):
        raise DumpFailed(f"{found['metadata']['name']}: {one.get('message') or one['reason']}")
    return one is not None and one["status"] == "True"


def _triggered(found: Json) -> bool:
    one = _condition(found, "Triggered")
    if one is not None and one["status"] == "False" and one.get("reason") in ("Failed", "Error"):
        raise DumpFailed(f"the capture of {found['spec']['targetPod']} failed: {one.get('message') or one['reason']}")
    return one is not None and one["status"] == "True" and one.get("reason") == "Complete"
