"""The node agent: fills the placeholders of its machine with clones, brings lost sandboxes back in them, and says what
this node is. It speaks to the API server and to the node's own `thawbox serve`, and is asked nothing itself.

Rule 1: what a pod's labels say is written by compare-and-swap: a pod that was leased meanwhile stays leased.
Rule 2: one task at a time for each pod; none waits for another's.
Rule 3: the node's lease and what its service freezes when that is not renewed are `fencing`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from thawbox.cluster.crds import (
    GROUP,
    MACHINE,
    NODE_LABEL,
    PLACEHOLDER,
    POOL_LABEL,
    REGION,
    SANDBOX,
    SANDBOX_NAME,
    SNAPSHOT,
    STATE_LABEL,
    URL,
    WANTED,
    WHY,
    Json,
)
from thawbox.cluster.fencing import Fencing, leased_among
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, PODS, POOLS, TEMPLATES, Conflict, Kube
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.replicating import Replication
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, PARKED, is_there, notes_of, pool_of, state_of
from thawbox.errors import NotFound, Refused, ThawboxError, Unavailable

_log = structlog.get_logger()
PLACINGS, RECOVERIES = 4, 8
"""Clones parked at a time, and lost ones brought back: each may wait for a store."""


Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """This node. `url` is where the dispatcher reaches its service, `own` where the agent does; times are seconds."""

    node: str
    url: str
    own: str
    region: str = ""
    machine: str = "{}"
    lease_seconds: float = 15.0
    look_every: float = 1.0
    watch_seconds: int = 300


class Agent:
    """One node's agent. `pid_of` finds the main process of a pod's placeholder container, 0 where there is none yet."""

    def __init__(self, kube: Kube, nodes: Nodes, options: AgentOptions, *, pid_of: Callable[[Json], int]) -> None:
        self._kube = kube
        self._nodes = nodes
        self.options = options
        self._pid_of = pid_of
        seconds = options.watch_seconds
        mine = f"spec.nodeName={options.node}"
        self.pods = Index(kube, PODS, labels=POOL_LABEL, fields=mine, seconds=seconds)
        self._pools = Index(kube, POOLS, seconds=seconds)
        self._templates = Index(kube, TEMPLATES, seconds=seconds)
        self._claims = Index(kube, CLAIMS, seconds=seconds)
        labels = {NODE_LABEL: "true", **({REGION: options.region} if options.region else {})}
        self._fencing = Fencing(
            kube, nodes, options.own, node=options.node, seconds=options.lease_seconds, labels=labels,
            annotations={URL: options.url, MACHINE: options.machine},
        )  # fmt: skip
        self._replication = Replication(kube, nodes, options.own, self._claims, store_of=self._store_of)
        self._placings = asyncio.Semaphore(PLACINGS)
        self._recoveries = asyncio.Semaphore(RECOVERIES)
        self._at_work: set[str] = set()

    async def run(self) -> None:
        """Tend the node, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for index in (self.pods, self._pools, self._templates, self._claims):
                tasks.create_task(index.run())
            for index in (self.pods, self._pools, self._templates, self._claims):
                await index.listed.wait()
            await self._fencing.begin(leased_among(self.pods.objects.values()))
            tasks.create_task(self._fencing.keep())
            tasks.create_task(self._keep_fence())
            while True:
                try:
                    await self._look(tasks)
                except ThawboxError as error:
                    _log.warning("look.failed", code=error.code, why=str(error))
                    await asyncio.sleep(self.options.look_every)
                self._replication.look(list(self.pods.objects.values()), tasks)
                await self.pods.wait(self._has_work, timeout=self.options.look_every)

    async def hand_over(self) -> None:
        """Leave this node's claims where they are to the agent that comes next; `run` has ended."""
        await self._fencing.hand_over()

    async def _keep_fence(self) -> None:
        """By a clock of its own: nothing that hangs elsewhere may hold it up."""
        while True:
            await asyncio.sleep(self.options.lease_seconds / 24)
            await self._fencing.look(leased_among(self.pods.objects.values()))

    # --- the pods ---------------------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return any(
            pod["metadata"]["uid"] not in self._at_work and (self._is_to_park(pod) or self._is_to_recover(pod))
            for pod in self.pods.objects.values()
        )  # fmt: skip

    def _is_to_park(self, pod: Json) -> bool:
        return bool(state_of(pod) == EMPTY and is_there(pod) and self._golden(pod) and self._pid_of(pod))

    def _golden(self, pod: Json) -> Json | None:
        """The status of a pod's template once it has a snapshot."""
        pool = self._pools.objects.get(pool_of(pod), {})
        template = self._templates.objects.get(str(pool.get("spec", {}).get("template", "")), {})
        status: Json = template.get("status", {})
        return status if status.get("snapshot") else None

    def _is_to_recover(self, pod: Json) -> bool:
        if state_of(pod) != LEASED or not is_there(pod) or WANTED not in notes_of(pod):
            return False
        return bool(json.loads(notes_of(pod)[WANTED])["id"] != notes_of(pod).get(SNAPSHOT))

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin what there is to do for each pod of this node, but for those at which somebody is at work.

        Not for those at which somebody was when the node was asked, either: the answer may be older than his work.
        """
        busy = set(self._at_work)
        placed = {one["pod"]: one for one in await self._nodes.placed(self.options.own)}
        pods = {pod["metadata"]["uid"]: pod for pod in self.pods.objects.values()}
        for uid in (placed.keys() | pods.keys()) - busy:
            work = self._work_for(uid, pods.get(uid), placed.get(uid))
            if work is not None:
                self._at_work.add(uid)
                tasks.create_task(self._guarded(uid, work))

    def _work_for(self, uid: str, pod: Json | None, held: Json | None) -> Work | None:
        if pod is None or not is_there(pod):
            return None if held is None else partial(self._nodes.empty, self.options.own, uid)
        if self._is_to_recover(pod):
            return partial(self._recover, pod)
        if self._is_to_park(pod):
            return partial(self._park, pod)
        if state_of(pod) == PARKED and (self._is_stale(pod) or held is None or held["state"] != "frozen"):
            return partial(self._clear, pod)
        if state_of(pod) == LEASED and (held is None or held["state"] in ("exited", "lost")):
            return partial(self._break, pod, held)
        return None

    async def _guarded(self, uid: str, work: Work) -> None:
        try:
            await work()
        except ThawboxError as error:  # one pod's trouble is not the others'; it is tried again, but not at once
            _log.warning("tend.failed", pod=uid, code=error.code, why=str(error))
            await asyncio.sleep(self.options.look_every)
        finally:
            self._at_work.discard(uid)

    async def _park(self, pod: Json) -> None:
        async with self._placings:
            now, golden = self._as_it_is(pod), self._golden(pod)
            if now is None or golden is None or not self._is_to_park(now):
                return
            await self._fill(now, PARKED, snapshot=golden["snapshot"], url=golden.get("url", ""),
                             pid=self._pid_of(now), name=pool_of(now), recover=False)  # fmt: skip

    async def _recover(self, pod: Json) -> None:
        async with self._recoveries:
            now = self._as_it_is(pod)
            if now is None or not self._is_to_recover(now):
                return
            wanted = json.loads(notes_of(now)[WANTED])
            await self._fill(now, LEASED, snapshot=wanted["id"], url=wanted.get("url", ""), pid=self._pid_of(now),
                             recover=True)  # fmt: skip

    def _as_it_is(self, pod: Json) -> Json | None:
        """A pod after a wait; None when it is gone."""
        now = self.pods.objects.get(pod["metadata"]["name"])
        return now if now is not None and now["metadata"]["uid"] == pod["metadata"]["uid"] else None

    async def _fill(self, pod: Json, state: str, *, snapshot: str, **wish: object) -> None:
        """Place a clone and write down what came of it; a pod whose label moved meanwhile keeps its new one."""
        meta, before = pod["metadata"], state_of(pod)
        notes: Json = {WHY: None}
        try:
            done = await self._nodes.place(self.options.own, pod=meta["uid"], snapshot=snapshot, **wish)
            notes |= {SNAPSHOT: snapshot, SANDBOX: done["id"], SANDBOX_NAME: done["name"]}
        except (Unavailable, Refused):
            raise
        except ThawboxError as error:
            state, notes = BROKEN, {WHY: str(error)[:1000]}
        change = {"metadata": {"labels": {STATE_LABEL: state}, "annotations": notes}}
        with contextlib.suppress(NotFound):
            while pod["metadata"]["uid"] == meta["uid"] and state_of(pod) == before:
                version = pod["metadata"]["resourceVersion"]
                try:
                    pod = await self._kube.patch(PODS, meta["name"], change, version=version)
                except Conflict:  # a probe's result, most likely: what is placed is not placed again for that
                    pod = await self._kube.get(PODS, meta["name"])
                    self.pods.seen(pod)
                else:
                    self.pods.seen(pod)
                    return

    def _is_stale(self, pod: Json) -> bool:
        golden = self._golden(pod)
        return golden is not None and notes_of(pod).get(SNAPSHOT) != golden["snapshot"]

    async def _clear(self, pod: Json) -> None:
        """A parked clone that died, ran, or is of an older snapshot, makes room for a new one."""
        await self._restate(pod, EMPTY, {SNAPSHOT: None, SANDBOX: None})

    async def _break(self, pod: Json, held: Json | None) -> None:
        """A leased clone that is no more: whoever dispatches brings its claim back in another pod."""
        why = "its clone is gone" if held is None else f"its clone is {held['state']}"
        await self._restate(pod, BROKEN, {WHY: why})

    async def _restate(self, pod: Json, state: str, notes: Json) -> None:
        """Write another state of a pod than the API server has, where that one is the one that we know."""
        try:  # a thaw may be a lease that we have not heard of, a death the end of the pod
            now = await self._kube.get(PODS, pod["metadata"]["name"])
        except NotFound:
            self.pods.forget(pod["metadata"]["name"])
            return
        self.pods.seen(now)
        if state_of(now) != state_of(pod) or not is_there(now) or self._is_to_recover(now):
            return
        change = {"metadata": {"labels": {STATE_LABEL: state}, "annotations": notes}}
        with contextlib.suppress(Conflict, NotFound):
            found = await self._kube.patch(
                PODS, now["metadata"]["name"], change, version=now["metadata"]["resourceVersion"]
            )
            self.pods.seen(found)
            _log.info("pod.restated", pod=now["metadata"]["name"], state=state)

    def _store_of(self, pod: Json) -> str:
        pool = self._pools.objects.get(pool_of(pod), {})
        template = self._templates.objects.get(str(pool.get("spec", {}).get("template", "")), {})
        return str(template.get("spec", {}).get("store", ""))


def container_of(pod: Json) -> str:
    """The id of a pod's placeholder container, without its runtime's scheme; empty until it runs.

    By name, never by order or pid: a pod may have sidecars.
    """
    containers: list[Json] = pod.get("status", {}).get("containerStatuses") or []
    for one in containers:
        if one["name"] == PLACEHOLDER and "running" in one.get("state", {}):
            return str(one.get("containerID", "")).partition("://")[2]
    return ""


def find_pid(pod: Json, *, proc: Path = Path("/proc")) -> int:
    """The main process of a pod's placeholder container: the one in its cgroup whose parent is not."""
    container = container_of(pod)
    if not container:
        return 0
    inside: dict[int, int] = {}
    for directory in proc.iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                if _names(directory / "cgroup", container):
                    stat = (directory / "stat").read_text()
                    inside[int(directory.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    return next((pid for pid, parent in sorted(inside.items()) if parent not in inside), 0)


def _names(cgroup: Path, container: str) -> bool:
    """Whether a /proc/PID/cgroup lies directly in the container's group, not in one that we made below it."""
    for line in cgroup.read_text().splitlines():
        path = line.split(":", 2)[2]
        if container in path and "/thawbox-" not in path:
            return True
    return False


__all__ = ["GROUP", "Agent", "AgentOptions", "container_of", "find_pid"]
