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
from thawbox.cluster.crds import GROUP, Json
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
            trigger = await self._kube.create(
                TRIGGERS, {"metadata": {"generateName": f"{meta['name']}-"}, "spec": {"targetPod": name}}
            )
            done = await self._until(TRIGGERS, trigger["metadata"]["name"], _triggered, "to be triggered")
            snapshot = snapshot_name(done)
            await self._until(SNAPSHOTS, snapshot, _ready, "to become ready")
        finally:
            await self._kube.delete(PODS, name)
        return Golden(snapshot)

    def placeholder(self, pool: Json, template: Json) -> Json:
        snapshot = template["status"]["snapshot"]
        wanted = template["spec"]["pod"]
        pod = pod_frame(pool, template, wanted["spec"])
        pod["metadata"]["annotations"] = {**wanted.get("metadata", {}).get("annotations", {}), PS_NAME: snapshot}
        pod["metadata"]["labels"] = {**wanted.get("metadata", {}).get("labels", {}), **pod["metadata"]["labels"]}
        return pod

    def look(self, pod: Json) -> Look:  # noqa: PLR0911 - one for each thing that a pod can be
        if state_of(pod) in (LEASED, BROKEN):
            return Look(state_of(pod))
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
        known = sandbox_of(found)
        return {"id": known["id"] or found["metadata"]["uid"], "name": known["name"] or found["metadata"]["name"]}

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
