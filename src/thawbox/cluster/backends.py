"""Two ways to have clones of a golden pod wait: `node` restores into placeholders, `gke` restores by Pod Snapshots.

`Backend` is what the dispatcher asks of either; test_cluster_backends.py and test_cluster_node_backend.py in
tests/contract hold `gke` and `node` to it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Protocol, TypeGuard, cast

from thawbox.cluster.crds import (
    GROUP,
    PLACEHOLDER,
    POOL_LABEL,
    READINESS_GATE,
    SANDBOX,
    SANDBOX_NAME,
    SNAPSHOT,
    STATE_LABEL,
    VERSION,
    WANTED,
    WHY,
    Json,
)
from thawbox.cluster.facts import Reason
from thawbox.cluster.kube import PODS, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, PARKED, State, is_there, leased_by, notes_of, state_of
from thawbox.cluster.times import condition, with_condition
from thawbox.errors import EngineError, NotFound, ThawboxError

PLACEHOLDER_IMAGE = "registry.k8s.io/pause:3.10"


class ColdStart(EngineError):
    """A pod that was to be restored was started anew: it is no clone."""

    code = "engine.cold_start"
    default_remediation = "look at the pod's events, and at what differs between its spec and the snapshot's"


@dataclass(frozen=True, slots=True)
class Look:
    """What a pod is now: `state` is empty, parked, leased or broken; `why` says what is wrong with a broken one."""

    state: str
    why: str = ""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden snapshot and the facts of the machine that made it (empty: not known)."""

    id: str
    url: str = ""
    machine: Json | None = None


class Backend(Protocol):
    """How clones of a template come to wait, and how one of them is handed over."""

    async def capture(self, template: Json) -> Golden:
        """Boot the template and take its golden snapshot. Slow; once per version of a template, under a hold."""
        ...

    async def retire(self, golden: Json, /) -> None:
        """Drop a golden snapshot, as a template's history names it, wherever it lies. May be asked twice.

        Raises a ThawboxError where it could not be dropped everywhere: somebody is away, or still needs it.
        """
        ...

    def placeholder(self, pool: Json, template: Json) -> Json:
        """The pod to create for one more clone; never on the way of a claim."""
        ...

    def look(self, pod: Json) -> Look:
        """What a pod is now. A pod that started cold is broken, and says so."""
        ...

    async def acquire(self, pod: Json, *, environment: Json | None = None) -> Json:
        """Let the clone of a leased pod run, given its claim's environment: `{"id", "name"}` of its sandbox.

        May be asked twice. Raises NotFound when there is no clone any more, Unavailable when nobody answers,
        InvalidRequest or Unsupported when it takes no environment.
        """
        ...

    def is_lost(self, status: Json, pod: Json | None, /) -> bool:
        """Whether what a claim is bound to, by its status, is gone for good; `pod` if the API server has it."""
        ...

    async def end(self, claim: Json, /) -> None:
        """See to it that what a claim has lost runs nowhere any more. Raises Unavailable while nobody can tell."""
        ...

    def heir(self, pool: Json, template: Json, snapshot: Json, /) -> Json | None:
        """The pod to create for a lost claim to come back in; None where one of the parked pods is taken."""
        ...

    def look_back(self, pod: Json, snapshot: Json, /) -> Look:
        """What a leased pod is in which a snapshot shall come back: empty until it has, leased, or broken."""
        ...


async def flip_readiness(kube: Kube, pod: Json, *, ready: bool, now: float) -> None:
    """Set the readiness gate of a pod: its services send it requests from then on, or no longer."""
    reason = "Acquired" if ready else "Parked"
    before = pod.get("status", {})
    conditions = with_condition(before, condition(READINESS_GATE, status=ready, reason=reason, now=now))
    for one in conditions:
        if one["type"] == READINESS_GATE:
            one.pop("message", None)
    await kube.patch(PODS, pod["metadata"]["name"], {"status": {"conditions": conditions}}, sub="status")


def pod_frame(pool: Json, template: Json, spec: Json) -> Json:
    """What every pod of a pool has: its labels, its owner, a gate that keeps it out of services until it is leased."""
    meta = pool["metadata"]
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}", "kind": "Pool", "name": meta["name"], "uid": meta["uid"],
        "controller": True, "blockOwnerDeletion": False,
    }  # fmt: skip
    labels = {
        POOL_LABEL: meta["name"], STATE_LABEL: EMPTY, f"{GROUP}/template": template["metadata"]["name"],
        "app.kubernetes.io/managed-by": "thawbox",
    }  # fmt: skip
    gates = {"readinessGates": [{"conditionType": READINESS_GATE}]}
    return {
        "metadata": {"generateName": f"{meta['name']}-", "labels": labels, "ownerReferences": [owner]},
        "spec": {**_merged(spec, pool["spec"].get("placeholder", {})), **gates},
    }  # fmt: skip


def _merged(below: Json, above: Json) -> Json:
    """`above` merged into `below` at any depth: null takes away, lists of what has names (containers) by name."""
    found = dict(below)
    for key, value in above.items():
        before = found.get(key)
        if value is None:
            found.pop(key, None)
        elif _is_object(value):
            found[key] = _merged(before if _is_object(before) else {}, value)
        elif _are_named(before) and _are_named(value):
            by_name = {one["name"]: one for one in before}
            by_name |= {one["name"]: _merged(by_name.get(one["name"], {}), one) for one in value}
            found[key] = list(by_name.values())
        else:
            found[key] = value
    return found


def _is_object(value: object) -> TypeGuard[Json]:
    return isinstance(value, dict)


def _are_named(values: object) -> TypeGuard[list[Json]]:
    return isinstance(values, list) and all(_is_object(one) and "name" in one for one in cast("list[object]", values))


PLACEHOLDER_BYTES = 32 << 20
"""What is in a placeholder beside the clone: its own process, and the clone's init and keeper."""


def _limits(sandbox: Json) -> Json:
    """The limits of a placeholder whose clones have those of their template: none where that has none."""
    memory, cpus = sandbox.get("memory"), sandbox.get("cpus")
    return {
        **({"memory": str(memory + PLACEHOLDER_BYTES)} if memory else {}),
        **({"cpu": f"{round(cpus * 1000)}m"} if cpus else {}),
    }


class NodeBackend:
    """Placeholder pods: the node agent restores into them, the dispatcher thaws."""

    def __init__(self, kube: Kube, nodes: Nodes, state: State, *, image: str = PLACEHOLDER_IMAGE) -> None:
        self._kube = kube
        self._nodes = nodes
        self._state = state
        self._image = image
        self._failed: Counter[str] = Counter()
        """Captures that failed, by golden snapshot: the next one is tried on another node."""

    async def capture(self, template: Json) -> Golden:
        spec, name = template["spec"], golden_name(template)
        nodes = [node for node in sorted(self._state.fleet.nodes()) if self._state.urls.get(node)]
        if not nodes:
            raise NotFound(
                "no node is there to capture on", remediation="label nodes for thawbox, and see `thawbox doctor`"
            )
        try:
            made = await self._nodes.golden(
                self._state.urls[nodes[self._failed[name] % len(nodes)]], name=name, spec=spec.get("sandbox", {}),
                to=spec.get("store", ""), timeout=float(spec["captureSeconds"]),
            )  # fmt: skip
        except BaseException:
            self._failed[name] += 1
            raise
        return Golden(made["id"], made["url"], made["machine"])

    async def retire(self, golden: Json, /) -> None:
        """On the node that made it and on those that pulled it, lost ones included while their leases are there."""
        failure: ThawboxError | None = None
        for url in sorted(set(self._state.urls.values()) - {""}):
            try:
                await self._nodes.drop_golden(url, golden["node"])
                await self._nodes.drop_snapshot(url, golden["id"])
            except ThawboxError as error:
                failure = error
        if failure is not None:
            raise failure

    def placeholder(self, pool: Json, template: Json) -> Json:
        parked = {
            "name": PLACEHOLDER, "image": self._image,
            "resources": {
                "requests": {"cpu": "10m", "memory": "64Mi"}, "limits": _limits(template["spec"].get("sandbox", {})),
            },
            "securityContext": {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
                "runAsUser": 65535, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            },
        }  # fmt: skip
        spec: Json = {
            "containers": [parked], "automountServiceAccountToken": False, "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0, "nodeSelector": {f"{GROUP}/criu": "true"},
            "tolerations": [{"key": f"{GROUP}/criu", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {POOL_LABEL: pool["metadata"]["name"]}},
            }],
        }  # fmt: skip
        return pod_frame(pool, template, spec)

    def look(self, pod: Json) -> Look:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return Look(BROKEN, "its placeholder ended", Reason.NODE_REFUSED)
        why = notes_of(pod).get(WHY, "")
        return Look(state_of(pod), why, Reason.NODE_REFUSED if state_of(pod) == BROKEN else None)

    async def acquire(self, pod: Json, *, environment: Json | None = None) -> Json:
        url = self._state.urls.get(pod["spec"]["nodeName"], "")
        done = await self._nodes.acquire(url, pod["metadata"]["uid"], environment=environment)
        return {"id": done["id"], "name": done["name"]}

    def is_lost(self, status: Json, pod: Json | None, /) -> bool:
        """By the lease of its node, which fences, whatever the API server has of the pod; or with the pod."""
        if status.get("node", "") not in self._state.fleet:
            return True
        return pod is None or not is_there(pod) or state_of(pod) == BROKEN

    async def end(self, claim: Json, /) -> None:
        """A pod that was deleted by force is gone from the API server before its agent has ended the clone."""
        status = claim["status"]
        if status.get("node", "") not in self._state.fleet:
            return
        url, uid, sandbox = self._state.urls.get(status["node"], ""), claim["metadata"]["uid"], status.get("sandbox")
        heirs = {pod["metadata"]["uid"] for pod in self._state.pods.objects.values()
                 if leased_by(pod) == uid and is_there(pod)}  # fmt: skip
        for one in await self._nodes.placed(url):
            if sandbox and one["id"] == sandbox["id"] and one["pod"] not in heirs:
                await self._nodes.empty(url, one["pod"])

    def heir(self, _pool: Json, _template: Json, _snapshot: Json, /) -> Json | None:
        return None

    def look_back(self, pod: Json, snapshot: Json, /) -> Look:
        if state_of(pod) != LEASED:
            return Look(BROKEN, notes_of(pod).get(WHY, ""), Reason.NODE_REFUSED)
        wanted = json.loads(notes_of(pod).get(WANTED, "{}")).get("id")
        is_back = wanted == snapshot["id"] and notes_of(pod).get(SNAPSHOT) == snapshot["id"]
        return Look(LEASED if is_back else EMPTY)


def golden_name(template: Json) -> str:
    """What a node calls the golden snapshot of this version of a template."""
    meta = template["metadata"]
    return f"{meta['name'][:40]}-{meta['uid'][:8]}-{meta['generation']}"


def sandbox_of(pod: Json) -> Json:
    """The sandbox in a pod, as its agent wrote it down; the pod itself where there is no agent."""
    meta, notes = pod["metadata"], notes_of(pod)
    return {"id": notes.get(SANDBOX) or meta["uid"], "name": notes.get(SANDBOX_NAME) or meta["name"]}


__all__ = [
    "PARKED",
    "Backend",
    "ColdStart",
    "Golden",
    "Look",
    "NodeBackend",
    "flip_readiness",
    "golden_name",
    "sandbox_of",
]
