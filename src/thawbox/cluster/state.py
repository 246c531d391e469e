"""What the dispatcher knows: an index per kind, and from them the fleet that placement decides on.

Rule 1: every change goes through `_recount`, which takes out what a pod counted for before and puts in what it counts
for now: the fleet cannot drift from the pods.
Rule 2: the indexes tell in any order: whatever a count rests on (a pod, its pool, its template, its node) has it made
anew when it comes or changes, and whoever waits for a clone is told.
Rule 3: a slot that is being taken is counted as taken from the decision on, so that two claims of this dispatcher never
choose the same; another dispatcher's choice shows as a conflict.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import structlog

from thawbox.cluster.crds import CLAIM, MACHINE, NODE_LABEL, POOL_LABEL, REGION, SNAPSHOT, STATE_LABEL, URL, Json
from thawbox.cluster.facts import Machines, NodeFacts, Wish
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, LEASES, PODS, POOLS, TEMPLATES, Kube
from thawbox.cluster.placement import Fleet
from thawbox.cluster.scale_plan import Counts, Marks
from thawbox.store.compat import Compat

GKE_MACHINE = "gke"
"""The class of nodes without an agent: GKE itself says what fits what."""
_log = structlog.get_logger()
EMPTY, PARKED, LEASED, BROKEN = "empty", "parked", "leased", "broken"


@dataclass(frozen=True, slots=True)
class _Counted:
    node: str
    pool: str
    state: str


class State:
    """Five indexes and a fleet. `run` keeps them true."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float], watch_seconds: int = 300) -> None:
        self.clock = clock
        self.claims = Index(kube, CLAIMS, seconds=watch_seconds)
        self.pools = Index(kube, POOLS, seconds=watch_seconds)
        self.templates = Index(kube, TEMPLATES, seconds=watch_seconds)
        self.pods = Index(kube, PODS, labels=POOL_LABEL, seconds=watch_seconds)
        self.leases = Index(kube, LEASES, labels=NODE_LABEL, seconds=watch_seconds)
        self.fleet = Fleet()
        self.machines = Machines()
        self.on_pods: list[Callable[[str], None]] = []
        """Told the pool of each pod that changed."""
        self._counted: dict[str, _Counted] = {}
        self._taken: dict[str, str] = {}  # pod -> resourceVersion at which it was taken
        self._slots: dict[tuple[str, str], OrderedDict[str, None]] = {}
        self._of_node: dict[str, set[str]] = {}
        self._heard: dict[str, tuple[str, float]] = {}  # node -> (renewTime, when we saw it change)
        self.urls: dict[str, str] = {}
        self.lost: set[str] = set()
        self.pods.on_change(self._pod_changed)
        self.leases.on_change(self._lease_changed)
        self.templates.on_change(self._template_changed)
        self.pools.on_change(self._pool_changed)

    @property
    def indexes(self) -> tuple[Index, ...]:
        return self.templates, self.pools, self.leases, self.pods, self.claims

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Start the indexes, and return when each has listed once."""
        for index in self.indexes:
            tasks.create_task(index.run())
        for index in self.indexes:
            await index.listed.wait()

    # --- questions --------------------------------------------------------------------------------------------

    def template_of(self, pool: str) -> Json | None:
        spec = self.pools.objects.get(pool, {}).get("spec", {})
        return self.templates.objects.get(str(spec.get("template", "")))

    def marks(self, pool: str) -> Marks:
        spec = self.pools.objects[pool]["spec"]
        return Marks(spec["low"], spec["high"], spec["limit"], spec["mostWaiting"])

    def counts(self, pool: str, *, waiting: int) -> Counts:
        """The pool now; a leased clone on a node that is lost counts, for its claim will want another."""
        counts = {EMPTY: 0, PARKED: 0, LEASED: 0}
        for pod in self.pods.objects.values():
            if pool_of(pod) == pool and is_there(pod) and state_of(pod) in counts and not self.is_stranded(pod):
                counts[state_of(pod)] += 1
        taken = sum(1 for name in self._taken if name in self.pods.objects and pool_of(self.pods.objects[name]) == pool)
        return Counts(waiting, max(0, counts[PARKED] - taken), counts[EMPTY], counts[LEASED] + taken)

    def is_stranded(self, pod: Json) -> bool:
        """Whether a pod that nobody has leased lies on a lost node."""
        return state_of(pod) != LEASED and pod["spec"].get("nodeName") in self.lost

    def wish(self, claim: Json) -> Wish:
        """What placement is asked for a claim."""
        spec = claim["spec"]
        template = self.template_of(spec["pool"]) or {}
        return Wish(
            spec["pool"], self.fitting(template), spec.get("region", ""),
            bool(spec.get("regionRequired")) and bool(spec.get("region")),
        )  # fmt: skip

    def fitting(self, template: Json) -> frozenset[str]:
        """The classes of machines that can restore a template's snapshot."""
        if is_gke(template):
            return frozenset({GKE_MACHINE})
        machine = template.get("status", {}).get("machine")
        if not machine:
            return self.machines.names
        try:
            made_on = msgspec.convert(machine, type=Compat)
        except msgspec.ValidationError:  # another version's facts: nobody can say what fits
            return frozenset()
        # every node prepares its rootfs by itself, and says so if it has another than the snapshot
        return self.machines.fitting(replace(made_on, rootfs=""))

    # --- taking -----------------------------------------------------------------------------------------------

    def take(self, node: str, pool: str) -> Json | None:
        """A parked pod of this pool on this node, counted as taken from now on; None when there is none after all."""
        slots = self._slots.get((node, pool))
        if not slots:
            return None
        name = next(iter(slots))
        pod = self.pods.objects[name]
        self._taken[name] = pod["metadata"]["resourceVersion"]
        self._recount(name)
        return pod

    def give_back(self, name: str) -> None:
        """A pod that was taken is not: whatever the index has of it counts again."""
        self._taken.pop(name, None)
        self._recount(name)

    # --- nodes ------------------------------------------------------------------------------------------------

    def silent(self) -> dict[str, str]:
        """Leases that we have not heard renewed for as long as they last, by our clock, and their nodes, not yet lost.

        We may have been deaf: whoever calls a node lost asks the API server for its lease first.
        """
        now, found = self.clock(), dict[str, str]()
        for name, lease in self.leases.objects.items():
            node = lease["spec"].get("holderIdentity", "")
            heard = self._heard.get(node)
            lasts = float(lease["spec"].get("leaseDurationSeconds", 15))
            if heard and node not in self.lost and now - heard[1] > lasts:
                found[name] = node
        return found

    def gone(self, seconds: float) -> dict[str, str]:
        """Leases of lost nodes that have been silent for so long by our clock, and the versions that we know."""
        since = self.clock() - seconds
        return {
            name: lease["metadata"]["resourceVersion"] for name, lease in self.leases.objects.items()
            if (node := lease["spec"].get("holderIdentity")) in self.lost
            and node in self._heard and self._heard[node][1] < since
        }  # fmt: skip

    def hear_anew(self) -> None:
        """We could hear nobody: what was silent meanwhile is given its lease's time once more."""
        now = self.clock()
        self._heard = {node: (renewed, now) for node, (renewed, _) in self._heard.items()}

    def lose(self, node: str) -> None:
        """A node counts no more, until it is heard of again."""
        self.lost.add(node)
        self.fleet.remove(node)
        for name in self._of_node.get(node, set()):
            self._drop_slot(name, self._counted.pop(name, None))

    def _lease_changed(self, lease: str, now: Json, before: Json | None) -> None:
        node = str((now or before or {}).get("spec", {}).get("holderIdentity") or "")
        if not node:
            _log.warning("lease.unreadable", lease=lease, why="nobody holds it")
            return
        if not now:
            self._heard.pop(node, None)
            self.urls.pop(node, None)
            self.lose(node)
            return
        renewed, notes = now["spec"].get("renewTime", ""), notes_of(now)
        if self._heard.get(node, ("", 0.0))[0] != renewed:
            self._heard[node] = renewed, self.clock()
        self.urls[node] = notes.get(URL, "")
        self.lost.discard(node)
        text = notes.get(MACHINE, "{}")
        machine = hashlib.sha256(text.encode()).hexdigest()[:12]
        try:
            self.machines.add(machine, msgspec.json.decode(text, type=Compat))
        except msgspec.DecodeError as error:  # alive, so its claims stay; of a class that nothing fits
            if before is None or notes_of(before).get(MACHINE) != notes.get(MACHINE):
                _log.warning("lease.unreadable", lease=lease, node=node, why=str(error))
        came = node not in self.fleet
        labels = _labels_of(now)
        self.fleet.add(NodeFacts(node, labels.get(REGION, ""), machine))
        if came:
            for name in self._of_node.get(node, set()):
                self._recount(name)
            for pool in self.pools.objects:
                self._tell(pool)

    def _template_changed(self, name: str, now: Json, before: Json | None) -> None:
        if (now or {}).get("status", {}).get("snapshot") == (before or {}).get("status", {}).get("snapshot"):
            return
        for pool, found in list(self.pools.objects.items()):
            if found["spec"].get("template") == name:
                self._recount_pool(pool)

    def _pool_changed(self, name: str, now: Json, before: Json | None) -> None:
        if (now or {}).get("spec", {}).get("template") != (before or {}).get("spec", {}).get("template"):
            self._recount_pool(name)

    def _recount_pool(self, pool: str) -> None:
        for name, pod in list(self.pods.objects.items()):
            if pool_of(pod) == pool:
                self._recount(name)
        self._tell(pool)

    # --- pods -------------------------------------------------------------------------------------------------

    def _pod_changed(self, name: str, now: Json, before: Json | None) -> None:
        taken = self._taken.get(name)
        if taken is not None and (not now or now["metadata"]["resourceVersion"] != taken):
            del self._taken[name]
        node = (now or before or {}).get("spec", {}).get("nodeName", "")
        if node:
            (self._of_node.setdefault(node, set()).add if now else self._of_node.setdefault(node, set()).discard)(name)
        self._recount(name)
        self._tell(pool_of(now or before or {}))

    def _tell(self, pool: str) -> None:
        for hear in self.on_pods:
            hear(pool)

    def _recount(self, name: str) -> None:
        now, before = self._counts_for(name), self._counted.get(name)
        if now == before:
            return
        if before is not None:
            (self.fleet.park if before.state == PARKED else self.fleet.lease)(before.node, before.pool, -1)
            self._drop_slot(name, before)
            del self._counted[name]
        if now is not None:
            (self.fleet.park if now.state == PARKED else self.fleet.lease)(now.node, now.pool)
            self._counted[name] = now
            if now.state == PARKED:
                self._slots.setdefault((now.node, now.pool), OrderedDict())[name] = None

    def _drop_slot(self, name: str, counted: _Counted | None) -> None:
        if counted is not None and counted.state == PARKED:
            self._slots[counted.node, counted.pool].pop(name, None)

    def _counts_for(self, name: str) -> _Counted | None:
        pod = self.pods.objects.get(name)
        if pod is None or not is_there(pod) or not pod["spec"].get("nodeName"):
            return None
        state, pool, node = state_of(pod), pool_of(pod), pod["spec"]["nodeName"]
        if node not in self.fleet:
            if not is_gke(self.template_of(pool)):
                return None
            self.fleet.add(NodeFacts(node, "", GKE_MACHINE))
        if name in self._taken:
            state = LEASED
        elif state == PARKED and self._is_stale(pod):
            return None
        return _Counted(node, pool, state) if state in (PARKED, LEASED) else None

    def _is_stale(self, pod: Json) -> bool:
        template = self.template_of(pool_of(pod)) or {}
        return bool(notes_of(pod).get(SNAPSHOT) != template.get("status", {}).get("snapshot"))


def is_gke(template: Json | None) -> bool:
    """Whether GKE restores a template's clones, and no agent of ours."""
    return bool((template or {}).get("spec", {}).get("backend") == "gke")


def notes_of(found: Json) -> Json:
    notes: Json = found["metadata"].get("annotations") or {}
    return notes


def _labels_of(found: Json) -> Json:
    labels: Json = found.get("metadata", {}).get("labels") or {}
    return labels


def pool_of(pod: Json) -> str:
    return str(_labels_of(pod).get(POOL_LABEL, ""))


def state_of(pod: Json) -> str:
    return str(_labels_of(pod).get(STATE_LABEL, EMPTY))


def is_there(pod: Json) -> bool:
    """Whether a pod is neither going nor gone."""
    ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return "deletionTimestamp" not in pod["metadata"] and not ended


def leased_by(pod: Json) -> str:
    """The uid of the claim that a pod was leased to."""
    return str(notes_of(pod).get(CLAIM, "")) if state_of(pod) == LEASED else ""
