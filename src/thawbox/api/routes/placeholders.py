"""Placeholders: what a Kubernetes node agent and the dispatcher ask of a node. For admins: a placeholder is a host pid.

`{pod}` is a pod's uid. Every request may come twice: what is done already is answered as done.
"""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from pydantic import Field

from thawbox.api import shown
from thawbox.api.access import Admin
from thawbox.api.answers import Answer, Body, Patience, Reference, resource
from thawbox.api.fence import Pods
from thawbox.api.service import Service
from thawbox.errors import InvalidRequest, NotFound, SandboxNotFound, SnapshotNotFound
from thawbox.model import Phase, SnapshotId, Spec, checked_name
from thawbox.sandbox import Context, Sandbox
from thawbox.sandbox.checkpointing import Wish
from thawbox.sandbox.placing import (
    SENT,
    all_placed,
    drop_sent,
    end_in_placeholder,
    let_run,
    mark_sent,
    park_in_placeholder,
    pod_of,
    recover_in_placeholder,
    sandbox_in,
)

MOST_SLOW = 32
"""Placings and captures under way, each of which may wait minutes for a store: in threads that nobody else needs."""


class Placing(Body):
    """`pid` is the main process of the pod; the snapshot is pulled from `url` if it is not here."""

    pid: Annotated[int, Field(gt=1)]
    pod: Annotated[str, Field(min_length=1, max_length=64)]
    snapshot: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    url: str = ""
    name: str = ""
    recover: bool = False


class MakeGolden(Body):
    name: str
    spec: dict[str, Any]
    url: str = ""


class Acquiring(Body):
    environment: Annotated[dict[str, str], Field(default_factory=dict)]


class Keep(Body):
    url: str = ""


class Lease(Body):
    """`until` is seconds of this machine's monotonic clock (CLOCK_MONOTONIC)."""

    until: float


def router(service: Service) -> APIRouter:
    routes = resource("/v1/placeholders", "placeholders")
    slowly = Patience(MOST_SLOW)
    pods = Pods()

    def here() -> Context:
        return service.node.context

    @routes.get("")
    def list_placeholders(_: Admin) -> Answer[shown.Placeholders]:
        """What every placeholder holds."""
        return Answer({"placeholders": _all_shown(here()), "machine": here().machine})

    @routes.post("", status_code=201)
    async def place(wish: Placing, _: Admin) -> Answer[shown.PlacedIn]:
        """Park a clone of a snapshot in a placeholder, or recover the very sandbox that it was made of there."""
        pod = checked_name(wish.pod, "pod")

        def act() -> shown.PlacedIn:
            begun = time.perf_counter()
            snapshot = SnapshotId(wish.snapshot)
            pulled = _bring(here(), snapshot, wish.url)
            with pods.alone(pod):
                if wish.recover:
                    service.fence.check_open()
                    mark_sent(here(), pulled, of=snapshot)
                    sandbox = recover_in_placeholder(here(), snapshot, pid=wish.pid, pod=pod)
                else:
                    with service.fence.parking(pod):
                        sandbox = park_in_placeholder(here(), snapshot, pid=wish.pid, pod=pod, name=wish.name)
            return {**_shown(sandbox), "ms": round((time.perf_counter() - begun) * 1000, 3)}

        return Answer(await slowly(act), status_code=201)

    @routes.put("/lease")
    def lease(told: Lease, _: Admin) -> Answer[shown.Fenced]:
        """Until when what is leased may run: then it is frozen, unless a later time was told by then.

        Those that stand still for that are named; each is let run again by acquiring it.
        """
        return Answer({"fenced": service.fence.tell(told.until)})

    @routes.post("/{pod}/acquire")
    def acquire(pod: Reference, _: Admin, wish: Acquiring | None = None) -> Answer[shown.PlacedIn]:
        """Let a parked clone run, and give its programs their environment; given again where this is asked again."""
        begun = time.perf_counter()
        sandbox = _alive(here(), pod)
        with service.fence.letting_run(pod):
            if sandbox.state is Phase.FROZEN:
                let_run(here(), sandbox)
        if wish is not None and wish.environment:
            sandbox.give(environment=wish.environment)
        return Answer({**_shown(sandbox), "ms": round((time.perf_counter() - begun) * 1000, 3)})

    @routes.post("/{pod}/checkpoint", status_code=201)
    async def checkpoint(pod: Reference, keep: Keep, _: Admin) -> Answer[shown.Sent]:
        """A snapshot of what is in a placeholder, sent to `url`, and there when this answers.

        Older ones that were sent go from the node.
        """

        def act() -> shown.Sent:
            sandbox = _alive(here(), pod)
            wish = Wish(labels=SENT if keep.url else {})
            made = sandbox.begin_checkpoint(wish).wait()  # the fence waits for no more than the dump
            drop_sent(here(), sandbox.id)
            _send(here(), made.id, keep.url)
            return {"id": made.id, "url": keep.url}

        return Answer(await slowly(act), status_code=201)

    @routes.delete("/{pod}", status_code=204)
    async def empty(pod: Reference, _: Admin) -> None:
        """Destroy what a placeholder holds, and its snapshots that were sent; one that holds nothing is as wanted."""
        name = checked_name(pod, "pod")

        def act() -> None:
            with pods.alone(name):
                end_in_placeholder(here(), name)

        await slowly(act)

    _add_golden(routes, service, slowly)
    return routes


def _add_golden(routes: APIRouter, service: Service, slowly: Patience) -> None:
    @routes.post("/golden", status_code=201)
    async def make_golden(wish: MakeGolden, _: Admin) -> Answer[shown.Golden]:
        """A template by this name and its golden snapshot, sent to `url`; made once."""
        try:
            spec = msgspec.convert(wish.spec, type=Spec)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the sandbox spec is wrong: {error}") from None

        def act() -> shown.Golden:
            try:
                template = service.node.template(wish.name)
            except NotFound:
                template = service.node.create_template(wish.name, spec)
            return _golden(service.node.context, template.snapshot, wish.url)

        return Answer(await slowly(act), status_code=201)

    @routes.delete("/golden/{name}", status_code=204)
    def drop_golden(name: Reference, _: Admin) -> None:
        """Forget a golden snapshot that is no longer cloned from; one that is unknown is as wanted."""
        with contextlib.suppress(NotFound):
            service.node.remove_template(checked_name(name, "name"))


def _golden(context: Context, snapshot: SnapshotId, url: str) -> shown.Golden:
    _send(context, snapshot, url)
    compat = context.store.record(snapshot).manifest.compat
    return {"id": snapshot, "url": url, "machine": compat}


def _shown(sandbox: Sandbox) -> shown.Placed:
    record = sandbox.record
    return {
        "pod": pod_of(record.owner), "id": record.id, "name": record.name, "state": sandbox.state.value,
        "snapshot": record.parent_snapshot,
    }  # fmt: skip


def _all_shown(context: Context) -> list[shown.Placed]:
    placed: list[shown.Placed] = []
    for record in all_placed(context):
        with contextlib.suppress(SandboxNotFound):  # it was removed since
            placed.append(_shown(Sandbox(context, record)))
    return placed


def _alive(context: Context, pod: str) -> Sandbox:
    sandbox = sandbox_in(context, pod)
    if sandbox is None or sandbox.state not in (Phase.RUNNING, Phase.FROZEN):
        raise SandboxNotFound(f"no clone lives in the pod {pod}", remediation="ask for another one")
    return sandbox


def _bring(context: Context, snapshot: SnapshotId, url: str) -> tuple[SnapshotId, ...]:
    """See to it that a snapshot is here; returns those of its chain that were not."""
    from thawbox.store.backends import open_backend
    from thawbox.store.pull import pull

    try:
        context.store.record(snapshot)
    except SnapshotNotFound:
        if not url:
            raise
        return pull(context.store, [open_backend(url)], snapshot).snapshots
    return ()


def _send(context: Context, snapshot: SnapshotId, url: str) -> None:
    from thawbox.store.backends import open_backend
    from thawbox.store.push import push

    if url:
        push(context.store, open_backend(url), snapshot)
