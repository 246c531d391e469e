"""Lost nodes and pods: their clones count no more, their claims come back from the newest replicated snapshot.

Rule 1: nobody ever runs twice. A claim is moved when its node's lease has run out by our clock: a node that cannot
renew its lease freezes what is leased on it before that (`agent`). Or when its pod is gone or has ended, and the node
has said that nothing of it runs any more. Where there is no agent (`gke`), the API server's word on the pod is enough.
Rule 2: silence counts only while we could hear. A dispatcher that got no CPU, or lost its watch, has heard no renewal
either; so the API server is asked for a lease before its node is called lost, and while it does not answer none is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from thawbox.cluster.backends import Backend, Look, flip_readiness, sandbox_of
from thawbox.cluster.binding import Binding, leased
from thawbox.cluster.crds import WANTED, Json
from thawbox.cluster.facts import Reason, Refusal
from thawbox.cluster.kube import CLAIMS, LEASES, PODS, Conflict, Kube
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, State, is_there, leased_by, notes_of
from thawbox.cluster.times import condition, read, with_condition, written
from thawbox.errors import EngineError, NotFound, ThawboxError, Unavailable, Unsupported

RECOVER_SECONDS = 120.0
KUBELET_SECONDS = 5.0
"""How long a kubelet is given to end the old pod of a claim: where it is dead too, the fence is all there is."""
FORGET_SECONDS = 3600.0
RETRY_SECONDS = 1.0
"""After a recovery failed, until the claim is brought back in another pod."""
_log = structlog.get_logger()


class Recovery:
    """Looks for nodes that have fallen silent, and brings their claims back. One dispatcher does it at a time."""

    def __init__(
        self, kube: Kube, state: State, binding: Binding, backend_of: Callable[[Json], Backend],
        tasks: asyncio.TaskGroup, *, now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._kube = kube
        self._state = state
        self._binding = binding
        self._backend_of = backend_of
        self._tasks = tasks
        self._now = now
        self._at_work: set[str] = set()
        self._kept: set[str] = set()
        """Leases that the API server does not let us remove."""

    async def lose_silent(self) -> None:
        """Take out the nodes whose leases have run out; every dispatcher does so for itself."""
        for lease, node in self._state.silent().items():
            try:
                self._state.leases.seen(await self._kube.get(LEASES, lease))
            except NotFound:
                self._state.leases.forget(lease)
            except Unavailable:
                _log.warning("node.unknown", node=node, why="the API server does not answer")
                self._state.hear_anew()
                return
            if lease in self._state.silent():
                self._state.lose(node)
            _log.warning("node.lost" if node in self._state.lost else "node.late", node=node)

    async def forget_gone(self) -> None:
        """Remove the leases of nodes that have been lost for long: whoever scales down says no goodbye."""
        for lease, version in self._state.gone(FORGET_SECONDS).items():
            if lease in self._kept:
                continue
            try:
                await self._kube.delete(LEASES, lease, version=version)
            except Unsupported as refused:  # by the RBAC of an older deploy/: it is only untidy
                self._kept.add(lease)
                _log.warning("lease.kept", lease=lease, why=refused.cause)
            else:
                self._state.leases.forget(lease)

    def look(self) -> None:
        """Begin to recover every claim that is bound to a lost node or pod, or was being recovered."""
        for name, claim in list(self._state.claims.objects.items()):
            status = claim.get("status", {})
            is_lost = status.get("phase") == "Bound" and self._is_lost(claim)
            if (is_lost or status.get("phase") == "Recovering") and name not in self._at_work:
                self._at_work.add(name)
                self._tasks.create_task(self._guarded(name))

    def _is_lost(self, claim: Json) -> bool:
        pod = self._state.pods.objects.get(claim["status"].get("pod", ""))
        return self._backend_of(claim).is_lost(claim["status"], pod)

    async def _is_surely_lost(self, claim: Json) -> bool:
        """The same, with what the API server has of the pod by now."""
        name = claim["status"].get("pod", "")
        try:
            self._state.pods.seen(await self._kube.get(PODS, name))
        except NotFound:
            self._state.pods.forget(name)
        return self._is_lost(claim)

    async def _guarded(self, name: str) -> None:
        try:
            await self._recover(self._state.claims.objects[name])
        except (Conflict, NotFound, Unavailable, KeyError):
            await asyncio.sleep(0.2)  # the next look tries again, with what is true by then
        except ThawboxError as error:  # a quota, a rule of admission: this claim's trouble, nobody else's
            _log.warning("recover.refused", claim=name, code=error.code, why=error.cause)
            with contextlib.suppress(ThawboxError):
                await self._say(name, error.cause)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._at_work.discard(name)

    async def _recover(self, claim: Json) -> None:
        status = claim["status"]
        snapshot = status.get("snapshot")
        if status["phase"] == "Bound" and not await self._is_surely_lost(claim):
            return
        node, before = status.get("node", ""), status.get("pod", "")
        is_alive = node in self._state.fleet
        lost = f"the pod {before} is gone from node {node}" if is_alive else f"node {node} is lost"
        if not snapshot:
            why = f"{lost}, and no snapshot was replicated"
            await self._write(claim, {"phase": "Lost", "reason": Reason.NO_SNAPSHOT.value, "message": why}, ready=False)
            _log.warning("claim.lost", claim=claim["metadata"]["name"], why=why)
            return
        if status["phase"] == "Bound":
            change = {"phase": "Recovering", "reason": "PodLost" if is_alive else "NodeLost", "message": lost}
            claim = await self._write(claim, change, ready=False)
        await self._backend_of(claim).end(claim)
        pod = self._heir(claim) or await self._choose(claim, snapshot)
        if pod is None:
            return
        name, backend = pod["metadata"]["name"], self._backend_of(claim)

        def look() -> Look:
            found = self._state.pods.objects.get(name)
            if found is None or not is_there(found):
                return Look(BROKEN, "the pod is gone")
            return backend.look_back(found, snapshot)

        _log.info("recover.started", claim=claim["metadata"]["name"], pod=name, snapshot=snapshot["id"])
        await self._state.pods.wait(lambda: look().state != EMPTY, timeout=RECOVER_SECONDS)
        pod, found = self._state.pods.objects.get(name, pod), look()
        if found.state != LEASED:
            why = f"snapshot {snapshot['id'][:12]} was not recovered in it: {found.why or 'it took too long'}"
            await self._binding.break_pod(pod, why)
            _log.warning("recover.failed", claim=claim["metadata"]["name"], pod=name, why=why)
            await asyncio.sleep(RETRY_SECONDS)
            return
        if environment := claim["spec"].get("environment"):  # no snapshot holds it
            try:
                await backend.acquire(pod, environment=environment)
            except EngineError as error:
                await self._binding.break_pod(pod, str(error))
                raise Unavailable(f"{claim['metadata']['name']} does not take its environment") from error
        node = pod["spec"]["nodeName"]
        await self._write(claim, {
            "phase": "Bound", "reason": None, "message": None, "node": node, "pod": name, "sandbox": sandbox_of(pod),
            "address": pod.get("status", {}).get("podIP", ""), "url": self._state.urls.get(node, ""),
            "boundAt": written(self._now()), "recoveries": int(status.get("recoveries", 0)) + 1,
        }, ready=True)  # fmt: skip
        _log.info("recover.complete", claim=claim["metadata"]["name"], pod=name, node=node)
        await flip_readiness(self._kube, pod, ready=True, now=self._now())
        if before and before != name:
            await self._kube.delete(PODS, before, grace=0)

    def _heir(self, claim: Json) -> Json | None:
        """The pod that this claim was to be recovered in already."""
        uid, old = claim["metadata"]["uid"], claim["status"].get("pod")
        found = (pod for pod in self._state.pods.objects.values() if leased_by(pod) == uid and WANTED in notes_of(pod))
        return next((pod for pod in found if pod["metadata"]["name"] != old and is_there(pod)), None)

    async def _end_old(self, claim: Json) -> None:
        """Have the kubelet end the pod that a claim is taken from: nobody may be left on its node to freeze it."""
        pods, name = self._state.pods, claim["status"].get("pod", "")
        if name not in pods.objects:
            return
        try:
            await self._kube.delete(PODS, name, grace=1)  # with 0 it would be gone here before it has ended
            going = await self._kube.get(PODS, name)
        except NotFound:
            pods.forget(name)
            return
        pods.seen(going)
        since = self._now() - read(going["metadata"]["deletionTimestamp"])
        await pods.wait(lambda: name not in pods.objects, timeout=min(KUBELET_SECONDS, KUBELET_SECONDS - since))

    async def _choose(self, claim: Json, snapshot: Json) -> Json | None:
        await self._end_old(claim)
        name = claim["spec"]["pool"]
        pool, template = self._state.pools.objects.get(name), self._state.template_of(name)
        heir = self._backend_of(claim).heir(pool, template, snapshot) if pool and template else None
        if heir is not None:
            made = await self._kube.create(PODS, leased(heir, claim, wanted=snapshot))
            self._state.pods.seen(made)
            return made
        chosen = self._state.fleet.choose(self._state.wish(claim))
        if isinstance(chosen, Refusal):
            return None
        pod = self._state.take(chosen, name)
        return None if pod is None else await self._binding.swap(claim, pod, wanted=snapshot)

    async def _say(self, name: str, why: str) -> None:
        """Tell in a claim's status why it is not back yet; written when that changes."""
        claim = self._state.claims.objects.get(name, {})
        status = claim.get("status", {})
        if status.get("phase") == "Recovering" and status.get("message") != why:
            change = {"phase": "Recovering", "reason": status.get("reason"), "message": why}
            await self._write(claim, change, ready=False)

    async def _write(self, claim: Json, status: Json, *, ready: bool) -> Json:
        """Change a claim's status where it still is as we know it. Raises Conflict."""
        reason = status.get("reason") or status["phase"]
        new = condition("Bound", status=ready, reason=reason, message=status.get("message") or "", now=self._now())
        whole = {**status, "conditions": with_condition(claim["status"], new)}
        meta = claim["metadata"]
        found = await self._kube.patch(
            CLAIMS, meta["name"], {"status": whole}, version=meta["resourceVersion"], sub="status"
        )
        self._state.claims.seen(found)
        return found
