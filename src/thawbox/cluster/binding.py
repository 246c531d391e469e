"""Claims to clones: queued by pool, each bound to a parked pod by one compare-and-swap.

Rule 1: the swap is on the pod (its `resourceVersion`): whoever wins it has the clone, whoever loses looks again.
Rule 2: a claim's status is written after its clone runs. Whoever finds a leased pod whose claim does not say so goes on
from there: a dispatcher that died in between has lost nothing.
Rule 3: nothing is created here.
Rule 4: the indexes list and watch side by side: a claim may be seen before the pool that it names. Nothing is decided
before all have listed once (`resume`), and no claim is refused for what an index lacks before the API server was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import structlog

from thawbox.cluster.backends import Backend, flip_readiness
from thawbox.cluster.crds import CLAIM, CLAIM_NAME, NODE_LABEL, STATE_LABEL, WANTED, WHY, Json
from thawbox.cluster.facts import WAITS, Reason, Refusal
from thawbox.cluster.kube import CLAIMS, LEASES, PODS, POOLS, TEMPLATES, Conflict, Kube
from thawbox.cluster.scale_plan import Demand, admit
from thawbox.cluster.state import BROKEN, LEASED, PARKED, State, is_there, leased_by, notes_of
from thawbox.cluster.times import condition, read, with_condition, written
from thawbox.errors import EngineError, NotFound, Refused, ThawboxError, Unavailable

_log = structlog.get_logger()
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.005, 1.0
_OPEN = ("", "Pending")
_TO_BE_SURE = frozenset({Reason.NO_SUCH_POOL, Reason.POOL_DRAINED, Reason.TEMPLATE_NOT_READY, Reason.REGION_EMPTY})
"""Refusals that rest on what the indexes of pools, templates and leases show: they may be behind that of claims."""


@dataclass(slots=True)
class Line:
    """Who waits for a clone of one pool, and what it has handed out lately."""

    waiting: deque[str] = field(default_factory=deque[str])
    demand: Demand = field(default_factory=Demand)
    handed: deque[float] = field(default_factory=lambda: deque[float](maxlen=256))

    def per_second(self, now: float) -> float:
        """Clones handed out per second over the last ten."""
        return sum(1 for at in self.handed if at > now - 10) / 10


class Binding:
    """Binds every claim that the index shows, and those whose node was lost."""

    def __init__(
        self, kube: Kube, state: State, backend_of: Callable[[Json], Backend], tasks: asyncio.TaskGroup, *,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._kube = kube
        self._state = state
        self._backend_of = backend_of
        self._tasks = tasks
        self._now = now
        self.lines: dict[str, Line] = {}
        self._busy: set[str] = set()
        self._begun: dict[str, float] = {}
        self._is_open = False
        state.claims.on_change(self._claim_changed)
        state.on_pods.append(self.serve)

    def line(self, pool: str) -> Line:
        return self.lines.setdefault(pool, Line())

    # --- who waits --------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Begin, once every index has listed: what an earlier dispatcher left, then whoever waits, oldest first."""
        self._is_open = True
        for pod in list(self._state.pods.objects.values()):
            claim = self._claim_of(pod)
            if claim is not None and phase_of(claim) in _OPEN:
                self._start(claim, pod)
        waiting = [one for one in self._state.claims.objects.values() if phase_of(one) in _OPEN]
        for claim in sorted(waiting, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"])):
            self._claim_changed(claim["metadata"]["name"], claim, None)

    def _claim_of(self, pod: Json) -> Json | None:
        uid = leased_by(pod)
        name = str(notes_of(pod).get(CLAIM_NAME, ""))
        claim = self._state.claims.objects.get(name) if uid else None
        return claim if claim is not None and claim["metadata"]["uid"] == uid else None

    def _claim_changed(self, name: str, now: Json, before: Json | None) -> None:
        if not now or "deletionTimestamp" in now["metadata"]:
            self._forget(name, (now or before or {}).get("spec", {}).get("pool", ""))
            return
        if not self._is_open or phase_of(now) not in _OPEN or name in self._busy or name in self._begun:
            return
        line = self.line(now["spec"]["pool"])
        self._begun[name] = self._state.clock()
        line.demand.add(self._state.clock())
        refusal = self._admission(now, line)
        if refusal is None:
            self._line_up(now, line)
        elif refusal.reason in _TO_BE_SURE:
            self._tasks.create_task(self._look_and_admit(now, line))
        else:
            self._tasks.create_task(self._refuse(now, refusal))

    def _line_up(self, claim: Json, line: Line) -> None:
        name, pool = claim["metadata"]["name"], claim["spec"]["pool"]
        line.waiting.append(name)
        self._tasks.create_task(self._give_up(name, pool, float(claim["spec"]["timeout"])))
        self.serve(pool)

    async def _look_and_admit(self, claim: Json, line: Line) -> None:
        """Ask the API server for pool, template and nodes, then admit or refuse the claim, if it is still there."""
        name, pool = claim["metadata"]["name"], claim["spec"]["pool"]
        while True:
            try:
                with contextlib.suppress(NotFound):
                    found = await self._kube.get(POOLS, pool)
                    self._state.pools.seen(found)
                    self._state.templates.seen(await self._kube.get(TEMPLATES, found["spec"]["template"]))
                if claim["spec"].get("regionRequired"):
                    for lease in (await self._kube.list(LEASES, labels=NODE_LABEL))["items"]:
                        self._state.leases.seen(lease)
            except Unavailable:
                await asyncio.sleep(_LONGEST_BACKOFF)
            else:
                break
        now = self._state.claims.objects.get(name)
        if now is None or now["metadata"]["uid"] != claim["metadata"]["uid"] or name not in self._begun:
            return
        refusal = self._admission(now, line)
        if refusal is None:
            self._line_up(now, line)
        else:
            await self._refuse(now, refusal)

    def _admission(self, claim: Json, line: Line) -> Refusal | None:
        pool = claim["spec"]["pool"]
        found, template = self._state.pools.objects.get(pool), self._state.template_of(pool)
        if found is None:
            return Refusal(Reason.NO_SUCH_POOL, f"there is no pool {pool}")
        if found["spec"].get("drained"):
            return Refusal(Reason.POOL_DRAINED, f"the pool {pool} is drained")
        if template is None or (template.get("status", {}).get("phase") == "Failed"):
            return Refusal(Reason.TEMPLATE_NOT_READY, f"the template of pool {pool} is missing, or its capture failed")
        nowhere = self._state.fleet.nowhere(self._state.wish(claim)) if claim["spec"].get("regionRequired") else None
        if nowhere is not None or self._state.fleet.parked(pool) > len(line.waiting):
            return nowhere
        counts = self._state.counts(pool, waiting=len(line.waiting))
        timeout, rate = float(claim["spec"]["timeout"]), line.per_second(self._state.clock())
        return admit(counts, self._state.marks(pool), timeout=timeout, per_second=rate)

    def _forget(self, name: str, pool: str) -> None:
        self._begun.pop(name, None)
        if pool in self.lines and name in self.lines[pool].waiting:
            self.lines[pool].waiting.remove(name)

    async def _give_up(self, name: str, pool: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        claim = self._state.claims.objects.get(name)
        if claim is not None and name in self.line(pool).waiting:
            self.line(pool).waiting.remove(name)
            await self._refuse(claim, Refusal(Reason.TIMED_OUT, f"no clone came free within {seconds:g} s", 1.0))

    async def _refuse(self, claim: Json, refusal: Refusal) -> None:
        self._begun.pop(claim["metadata"]["name"], None)
        status: Json = {"phase": "Failed", "reason": refusal.reason.value, "message": refusal.message}
        if refusal.retry_after is not None:
            status["retryAfter"] = refusal.retry_after
        _log.info("claim.refused", claim=claim["metadata"]["name"], reason=refusal.reason.value, why=refusal.message)
        while True:
            try:
                await self._write_status(claim, status, ready=False)
            except Unavailable:
                await asyncio.sleep(_LONGEST_BACKOFF)
            else:
                return

    # --- choosing ---------------------------------------------------------------------------------------------

    def serve(self, pool: str) -> None:
        """Give what is parked to who waits, in order; whoever insists on an empty region is passed over."""
        line = self.lines.get(pool)
        if not self._is_open or line is None or not line.waiting or not self._state.fleet.parked(pool):
            return
        for name in list(line.waiting):
            claim = self._state.claims.objects.get(name)
            if claim is None:
                line.waiting.remove(name)
                continue
            chosen = self._state.fleet.choose(self._state.wish(claim))
            if isinstance(chosen, Refusal):
                if chosen.reason not in WAITS:
                    line.waiting.remove(name)
                    self._tasks.create_task(self._refuse(claim, chosen))
                if not self._state.fleet.parked(pool):
                    return
                continue
            pod = self._state.take(chosen, pool)
            if pod is not None:
                line.waiting.remove(name)
                self._start(claim, pod)

    def _start(self, claim: Json, pod: Json) -> None:
        name = claim["metadata"]["name"]
        if name not in self._busy:
            self._busy.add(name)
            self._tasks.create_task(self._bind(claim, pod))

    async def _bind(self, claim: Json, pod: Json) -> None:
        name, pool = claim["metadata"]["name"], claim["spec"]["pool"]
        attempt, refusing = 0, set[str]()
        try:
            while True:
                try:
                    await self._bind_once(claim, pod)
                except Refused:
                    refusing.add(pod["spec"]["nodeName"])
                    again = self._choose(claim, without=refusing)
                    if again is None:
                        raise
                    pod = again
                except (Conflict, NotFound, Unavailable, EngineError) as error:
                    _log.info("bind.again", claim=name, pod=pod["metadata"]["name"], why=str(error))
                    attempt += 1
                    claim, again = await self._another(claim, pool, attempt)
                    if again is None:
                        return
                    pod = again
                else:
                    return
        except ThawboxError as error:
            await self._refuse(claim, Refusal(Reason.NODE_REFUSED, str(error)))
        finally:
            self._busy.discard(name)
            self._begun.pop(name, None)

    async def _another(self, claim: Json, pool: str, attempt: int) -> tuple[Json, Json | None]:
        """After a pause, the next clone to try; None when the claim waits again, or wants none any more."""
        pause = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt, 20))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads callers, protects nothing
        name = claim["metadata"]["name"]
        now = self._state.claims.objects.get(name)
        if now is None or phase_of(now) not in _OPEN or now["metadata"]["uid"] != claim["metadata"]["uid"]:
            return claim, None
        own = next((pod for pod in self._state.pods.objects.values()
                    if leased_by(pod) == now["metadata"]["uid"] and is_there(pod)), None)  # fmt: skip
        if own is not None and own["spec"].get("nodeName") not in self._state.lost:
            return now, own
        if own is not None:
            await self.break_pod(own, "its node was lost before its clone ran")
        pod = self._choose(now)
        if pod is None:
            self.line(pool).waiting.appendleft(name)
        return now, pod

    def _choose(self, claim: Json, *, without: Collection[str] = ()) -> Json | None:
        """A parked pod for a claim, taken, if there is one; on none of these nodes."""
        chosen = self._state.fleet.choose(self._state.wish(claim), without=without)
        return self._state.take(chosen, claim["spec"]["pool"]) if isinstance(chosen, str) else None

    # --- binding ----------------------------------------------------------------------------------------------

    async def _bind_once(self, claim: Json, pod: Json) -> None:
        begun = time.perf_counter()
        uid, name = claim["metadata"]["uid"], pod["metadata"]["name"]
        is_new = leased_by(pod) != uid
        if is_new:
            pod = await self.swap(claim, pod)
        backend = self._backend_of(claim)
        try:
            sandbox = await backend.acquire(pod, environment=claim["spec"].get("environment"))
        except Refused:
            if is_new:
                await self._park_again(pod, uid)
            raise
        except (NotFound, EngineError) as error:
            await self.break_pod(pod, str(error))
            raise
        passed = (time.perf_counter() - begun) * 1000
        self.line(claim["spec"]["pool"]).handed.append(self._state.clock())
        try:
            await self._write_bound(claim, pod, sandbox, passed)
        except (Conflict, NotFound):
            await self._settle(claim, pod)
            return
        _log.info("bind.complete", claim=claim["metadata"]["name"], pod=name, node=pod["spec"]["nodeName"], ms=passed)
        await flip_readiness(self._kube, pod, ready=True, now=self._now())
        self._state.give_back(name)

    async def swap(self, claim: Json, pod: Json, *, wanted: Json | None = None) -> Json:
        """The one compare-and-swap: the pod is leased to the claim, if it still is what we know. Raises Conflict."""
        name, change = pod["metadata"]["name"], leased({"metadata": {}}, claim, wanted=wanted)
        try:
            found = await self._kube.patch(PODS, name, change, version=pod["metadata"]["resourceVersion"])
        except (Conflict, NotFound):
            await self._look_again(name)
            raise
        except Unavailable:
            self._state.give_back(name)
            raise
        self._state.pods.seen(found)
        return found

    async def _park_again(self, pod: Json, uid: str) -> None:
        """The node did not listen to us: the clone is as it was, and waits for whoever comes next."""
        name = pod["metadata"]["name"]
        change = {"metadata": {"labels": {STATE_LABEL: PARKED}, "annotations": {CLAIM: None, CLAIM_NAME: None}}}
        with contextlib.suppress(NotFound):
            while leased_by(pod) == uid:
                version = pod["metadata"]["resourceVersion"]
                try:
                    pod = await self._kube.patch(PODS, name, change, version=version)
                except Conflict:
                    pod = await self._kube.get(PODS, name)
                self._state.pods.seen(pod)

    async def _look_again(self, name: str) -> None:
        """Somebody was quicker: know it now, not when the watch tells."""
        try:
            self._state.pods.seen(await self._kube.get(PODS, name))
        except NotFound:
            self._state.pods.forget(name)
        self._state.give_back(name)

    async def break_pod(self, pod: Json, why: str) -> None:
        """A pod that has no clone is nobody's: its agent or the scaling clears it away."""
        change = {"metadata": {"labels": {STATE_LABEL: BROKEN}, "annotations": {WHY: why[:1000], CLAIM: None}}}
        try:
            self._state.pods.seen(await self._kube.patch(PODS, pod["metadata"]["name"], change))
        except NotFound:
            self._state.pods.forget(pod["metadata"]["name"])

    async def _write_bound(self, claim: Json, pod: Json, sandbox: Json, passed: float) -> None:
        now, ttl, node = self._now(), claim["spec"].get("ttl"), pod["spec"]["nodeName"]
        status: Json = {
            "phase": "Bound", "reason": None, "message": None, "node": node, "pod": pod["metadata"]["name"],
            "address": pod.get("status", {}).get("podIP", ""), "url": self._state.urls.get(node, ""),
            "sandbox": sandbox, "boundAt": written(now), "acquireMs": round(passed, 3),
        }  # fmt: skip
        if ttl:
            status["until"] = written(now + float(ttl))
        await self._write_status(claim, status, ready=True, swap=True)

    async def _settle(self, claim: Json, pod: Json) -> None:
        """The claim is not as we knew it. If it is bound to another pod, or gone, this clone is nobody's."""
        try:
            now = await self._kube.get(CLAIMS, claim["metadata"]["name"])
        except NotFound:
            now = None
        if now is not None and now["metadata"]["uid"] == claim["metadata"]["uid"]:
            self._state.claims.seen(now)
            if phase_of(now) in _OPEN or now["status"].get("pod") == pod["metadata"]["name"]:
                raise Conflict("the claim was changed meanwhile")  # bound once more, by the newest version
        await self._kube.delete(PODS, pod["metadata"]["name"])

    async def _write_status(self, claim: Json, status: Json, *, ready: bool, swap: bool = False) -> None:
        name = claim["metadata"]["name"]
        reason = status.get("reason") or status["phase"]
        new = condition("Bound", status=ready, reason=reason, message=status.get("message") or "", now=self._now())
        whole = {**status, "conditions": with_condition(claim.get("status", {}), new)}
        version = claim["metadata"]["resourceVersion"] if swap else ""
        try:
            self._state.claims.seen(
                await self._kube.patch(CLAIMS, name, {"status": whole}, version=version, sub="status")
            )
        except NotFound:
            if swap:
                raise


def leased(pod: Json, claim: Json, *, wanted: Json | None = None) -> Json:
    """A pod, or a change to one, by which it is leased to a claim: for a snapshot to come back in, if one is wanted."""
    meta = pod["metadata"]
    notes = {CLAIM: claim["metadata"]["uid"], CLAIM_NAME: claim["metadata"]["name"]}
    if wanted is not None:
        notes[WANTED] = json.dumps(wanted)
    labels = {**meta.get("labels", {}), STATE_LABEL: LEASED}
    return {**pod, "metadata": {**meta, "labels": labels, "annotations": {**meta.get("annotations", {}), **notes}}}


def phase_of(claim: Json) -> str:
    return str(claim.get("status", {}).get("phase", ""))


def is_over(claim: Json, now: float) -> bool:
    """Whether a claim's time is over."""
    until = claim.get("status", {}).get("until")
    return bool(until) and read(until) < now
