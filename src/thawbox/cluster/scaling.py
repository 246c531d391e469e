"""Pools grow and shrink, pods of nobody go: the slow hand that keeps clones parked, one dispatcher at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from thawbox.cluster.backends import Backend
from thawbox.cluster.binding import Binding, is_over
from thawbox.cluster.crds import CLAIM_NAME, SNAPSHOT, STATE_LABEL, WHY, Json
from thawbox.cluster.kube import CLAIMS, PODS, POOLS, Conflict, Kube
from thawbox.cluster.scale_plan import Counts, parked_target, plan
from thawbox.cluster.state import BROKEN, EMPTY, PARKED, State, is_there, leased_by, notes_of, pool_of, state_of
from thawbox.cluster.times import condition, with_condition
from thawbox.errors import InvalidRequest, NotFound, Unsupported

_log = structlog.get_logger()

SCALED = "Scaled"
"""The condition of a pool that tells whether the API server takes its placeholders."""

REFILL_SECONDS = 5.0
"""About what a placeholder takes from its creation until a clone is parked in it."""


class Scaling:
    """Acts on what the pure plan says, for every pool."""

    def __init__(
        self, kube: Kube, state: State, binding: Binding, backend_of: Callable[[Json], Backend], *,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._kube = kube
        self._state = state
        self._binding = binding
        self._backend_of = backend_of
        self._now = now

    async def look(self) -> None:
        """One round: pods of nobody, pods that changed by themselves, then each pool's plan."""
        await self._end_claims()
        await self._clear()
        for pool in list(self._state.pools.objects.values()):
            try:
                await self._scale(pool)
            except (InvalidRequest, Unsupported) as refused:  # a quota, a rule of admission: no other pool's concern
                await self._note_scaled(pool, refused=refused.cause)
            else:
                await self._note_scaled(pool)

    async def _end_claims(self) -> None:
        for name, claim in list(self._state.claims.objects.items()):
            if is_over(claim, self._now()):
                await self._kube.delete(CLAIMS, name, version=claim["metadata"]["resourceVersion"])

    async def _clear(self) -> None:
        for name, pod in list(self._state.pods.objects.items()):
            if not is_there(pod):
                if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                    await self._kube.delete(PODS, name, grace=0)
                continue
            if self._state.is_stranded(pod):
                await self._kube.delete(PODS, name, grace=0)
            elif leased_by(pod) and await self._is_orphan(pod):
                await self._kube.delete(PODS, name)
            elif state_of(pod) in (EMPTY, PARKED):
                await self._note_state(name, pod)

    async def _is_orphan(self, pod: Json) -> bool:
        """Whether the claim of a leased pod is gone; asked of the API server before anything is deleted."""
        uid, name = leased_by(pod), notes_of(pod).get(CLAIM_NAME, "")
        known = self._state.claims.objects.get(name)
        if known is not None and known["metadata"]["uid"] == uid:
            status = known.get("status", {})
            other = status.get("phase") == "Bound" and status.get("pod") not in ("", pod["metadata"]["name"])
            return other or status.get("phase") in ("Failed", "Lost")
        try:
            found = await self._kube.get(CLAIMS, name)
        except NotFound:
            return True
        return bool(found["metadata"]["uid"] != uid)

    async def _note_state(self, name: str, pod: Json) -> None:
        """Pods whose back end says that they are other than their label: parked by themselves, or started cold."""
        pool = self._state.pools.objects.get(pool_of(pod))
        template = self._state.template_of(pool_of(pod))
        if pool is None or template is None:
            await self._kube.delete(PODS, name)
            return
        look = self._backend_of(template).look(pod)
        if look.state == state_of(pod):
            return
        notes: Json = {WHY: look.why or None}
        if look.state == PARKED:
            notes[SNAPSHOT] = template.get("status", {}).get("snapshot")
        change = {"metadata": {"labels": {STATE_LABEL: look.state}, "annotations": notes}}
        try:
            found = await self._kube.patch(PODS, name, change, version=pod["metadata"]["resourceVersion"])
        except (Conflict, NotFound):
            return
        self._state.pods.seen(found)

    async def _scale(self, pool: Json) -> None:
        name, template = pool["metadata"]["name"], self._state.template_of(pool["metadata"]["name"])
        if template is None or not template.get("status", {}).get("snapshot"):
            return
        line, marks = self._binding.line(name), self._state.marks(name)
        counts = self._state.counts(name, waiting=len(line.waiting))
        target = parked_target(marks, line.demand.peak(self._state.clock()), refill=REFILL_SECONDS)
        if pool["spec"].get("drained"):
            target = 0
        orders = plan(counts, marks, target=target)
        backend = self._backend_of(template)
        made = [self._kube.create(PODS, backend.placeholder(pool, template)) for _ in range(orders.create)]
        for found in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
            self._state.pods.seen(found)
        await self._shrink(name, orders.delete)
        await self._drop_broken(name)
        await self._write_status(pool, counts, target)

    async def _note_scaled(self, pool: Json, *, refused: str = "") -> None:
        """Say in the pool's status whether its placeholders can be made; written when that changes."""
        before = next((one for one in pool.get("status", {}).get("conditions", []) if one["type"] == SCALED), None)
        if (before or {"status": "True"})["status"] == ("False" if refused else "True"):
            return
        reason = "Refused" if refused else "Scaled"
        _log.warning("pool.scaling", pool=pool["metadata"]["name"], reason=reason, why=refused)
        told = condition(SCALED, status=not refused, reason=reason, message=refused, now=self._now())
        change = {"status": {"conditions": with_condition(pool.get("status", {}), told)}}
        self._state.pools.seen(await self._kube.patch(POOLS, pool["metadata"]["name"], change, sub="status"))

    async def _shrink(self, pool: str, count: int) -> None:
        pods = [one for one in self._state.pods.objects.values() if pool_of(one) == pool and is_there(one)]
        spare = [one for one in pods if state_of(one) == EMPTY] + [one for one in pods if state_of(one) == PARKED]
        for pod in spare[:count]:
            meta = pod["metadata"]
            try:
                await self._kube.delete(PODS, meta["name"], version=meta["resourceVersion"])
            except Conflict:
                continue  # it was leased in this moment

    async def _drop_broken(self, pool: str) -> None:
        for name, pod in list(self._state.pods.objects.items()):
            if pool_of(pod) == pool and is_there(pod) and state_of(pod) == BROKEN:
                await self._kube.delete(PODS, name)

    async def _write_status(self, pool: Json, counts: Counts, target: int) -> None:
        status = {
            "parked": counts.parked, "leased": counts.leased, "coming": counts.coming, "waiting": counts.waiting,
            "desired": target,
        }  # fmt: skip
        before = pool.get("status", {})
        if any(before.get(name) != value for name, value in status.items()):
            name = pool["metadata"]["name"]
            self._state.pools.seen(await self._kube.patch(POOLS, name, {"status": status}, sub="status"))
