"""Nodes with agents, played on a simulated API server: clones are entries in a table, leases are renewed by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import Any, TypeVar

import msgspec

from thawbox.cluster.crds import (
    GROUP,
    MACHINE,
    NODE_LABEL,
    REGION,
    SANDBOX,
    SANDBOX_NAME,
    SNAPSHOT,
    STATE_LABEL,
    URL,
    WANTED,
)
from thawbox.cluster.holding import Hold
from thawbox.cluster.index import Index
from thawbox.cluster.kube import PODS, TEMPLATES, Conflict, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.state import EMPTY, LEASED, PARKED, is_there, notes_of, state_of
from thawbox.errors import NotFound, Unavailable
from thawbox.store.compat import Compat

Json = dict[str, Any]
T = TypeVar("T")
TEMPLATE_LABEL = f"{GROUP}/template"
COMPAT = msgspec.to_builtins(Compat("x86_64", "6.8.0", "criu 4.2.1"))


class NodeWorld(Nodes):
    """Kubelet, scheduler, agents and services of all nodes. A node's URL is `http://NAME`."""

    def __init__(self, kube: Kube) -> None:
        super().__init__()
        self.kube = kube
        self.clones: dict[str, dict[str, Json]] = {}
        """By node and pod's uid, as `GET /v1/placeholders` tells them."""
        self.goldens: dict[str, dict[str, str]] = {}
        """Golden snapshots by node and name."""
        self.snapshots: dict[str, set[str]] = {}
        """What each node has pulled."""
        self.refuse: dict[str, BaseException] = {}
        """What a node answers to the order to capture."""
        self.emptied = asyncio.Event()
        """Set when a node has lost its last golden snapshot."""
        self.away: set[str] = set()
        self.ended: list[str] = []
        self._made = 0

    async def add(
        self, name: str, *, machine: str | None = "", region: str = "a", url: str | None = None, lasts: float = 3600
    ) -> None:
        """A node whose lease lasts longer than any test; `machine` None: its lease does not say."""
        if machine is not None:
            self.clones.setdefault(name, {})
            self.goldens.setdefault(name, {})
            self.snapshots.setdefault(name, set())
        lease = Hold(self.kube, f"node-{name}", name, seconds=lasts, clock=lambda: 0.0, now=lambda: 0.0)
        notes = {URL: f"http://{name}" if url is None else url}
        if machine is not None:
            notes[MACHINE] = machine or json.dumps(COMPAT)
        assert await lease.take(labels={NODE_LABEL: "true", REGION: region}, annotations=notes)

    async def run(self) -> None:
        """Park a clone in each new pod, bring back what is wanted there, end what was in pods that are gone."""
        index, bell = Index(self.kube, PODS, labels=TEMPLATE_LABEL), asyncio.Event()
        index.on_change(lambda *_: bell.set())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(index.run())
            while True:
                await bell.wait()
                bell.clear()
                for pod in list(index.objects.values()):
                    with contextlib.suppress(NotFound, Conflict):
                        await self._tend(pod)

    async def _tend(self, pod: Json) -> None:
        meta = pod["metadata"]
        node = pod["spec"].get("nodeName") or min(self.clones, key=lambda one: len(self.clones[one]))
        wanted = json.loads(notes_of(pod).get(WANTED, "{}")).get("id")
        if not is_there(pod):
            await self.kube.delete(PODS, meta["name"], grace=0)
        elif state_of(pod) == EMPTY and not self._holds(meta["uid"]):
            await self.kube.patch(PODS, meta["name"], {"spec": {"nodeName": node}})
            template = await self.kube.get(TEMPLATES, meta["labels"][TEMPLATE_LABEL])
            self._made += 1
            await self._fill(pod, node, PARKED, f"sb-{self._made:012x}", template["status"]["snapshot"])
        elif state_of(pod) == LEASED and wanted and wanted != notes_of(pod).get(SNAPSHOT):
            await self._fill(pod, node, LEASED, f"sb-of-{wanted[:4]}", wanted)

    def _holds(self, uid: str) -> bool:
        return any(uid in there for there in self.clones.values())

    async def _fill(self, pod: Json, node: str, state: str, sandbox: str, snapshot: str) -> None:
        uid = pod["metadata"]["uid"]
        held = {"pod": uid, "id": sandbox, "name": f"name-of-{sandbox}", "state": "frozen", "snapshot": snapshot}
        self.clones[node][uid] = held
        notes = {SNAPSHOT: snapshot, SANDBOX: held["id"], SANDBOX_NAME: held["name"]}
        change = {"metadata": {"labels": {STATE_LABEL: state}, "annotations": notes}}
        await self.kube.patch(PODS, pod["metadata"]["name"], change)

    # --- what the dispatcher asks of a node ---------------------------------------------------------------------

    async def acquire(self, url: str, pod: str, *, environment: Json | None = None) -> Json:
        held = self._at(url, self.clones).get(pod)
        if held is None:
            raise NotFound(f"no clone lives in the pod {pod}")
        held["state"] = "running"
        return held

    async def placed(self, url: str) -> list[Json]:
        return list(self._at(url, self.clones).values())

    async def empty(self, url: str, pod: str) -> None:
        if self._at(url, self.clones).pop(pod, None):
            self.ended.append(pod)

    async def golden(self, url: str, *, name: str, spec: Json, to: str, timeout: float) -> Json:
        kept = self._at(url, self.goldens)
        refusal = self.refuse.get(url.removeprefix("http://"))
        if refusal is not None:
            raise refusal
        kept[name] = hashlib.sha256(name.encode()).hexdigest()
        return {"id": kept[name], "url": to, "machine": COMPAT}

    async def drop_golden(self, url: str, name: str) -> None:
        kept = self._at(url, self.goldens)
        if kept.pop(name, None) and not kept:
            self.emptied.set()

    async def drop_snapshot(self, url: str, snapshot: str) -> None:
        self._at(url, self.snapshots).discard(snapshot)

    def _at(self, url: str, of: dict[str, T]) -> T:
        name = url.removeprefix("http://")
        if name in self.away or name not in of:
            raise Unavailable(f"the node at {url} does not answer")
        return of[name]
