"""Pools and their leases. Each route does one call and says what came of it.

A caller that waits for a clone must not keep one that releases out, so waiting has threads of its own.
"""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request

from thawbox import shapes, views
from thawbox.api import shown
from thawbox.api.access import Admin, Reader, User
from thawbox.api.answers import Answer, Carried, Pages, Patience, Reference, carry_out, resource
from thawbox.api.leasing import acquired, check_own_lease
from thawbox.api.operations import PATIENCE, Progress
from thawbox.api.service import Service
from thawbox.pool import PoolSpec

Span = Annotated[float | None, Body(embed=True, ge=0, le=366 * 86_400, allow_inf_nan=False)]
PositiveSpan = Annotated[float | None, Body(embed=True, gt=0, le=366 * 86_400, allow_inf_nan=False)]
Force = Annotated[bool, Query(description="end its leases too")]


def router(service: Service, patiently: Patience) -> APIRouter:
    routes = resource("/v1/pools", "pools")

    def now(name: str) -> shapes.Pool:
        return views.pool_now(service.node.pool(name), service.pools().get(name))

    @routes.get("")
    def list_pools(page: Pages, _: Reader) -> Answer[shown.PoolPage]:
        """Every pool, open or not."""
        pools, more = page.of(service.node.pools(), lambda spec: (spec.name, ""))
        return Answer({"pools": [now(spec.name) for spec in pools], "next": more})

    @routes.post("", status_code=201)
    def create_pool(spec: PoolSpec, _: Admin) -> Answer[shapes.Pool]:
        """Make a pool and begin to fill it."""
        return Answer(views.pool_now(spec, service.create(spec)), status_code=201)

    @routes.get("/{name}")
    def show_pool(name: Reference, _: Reader) -> Answer[shapes.Pool]:
        """A pool as it was made and as it is."""
        return Answer(now(name))

    @routes.delete("/{name}", status_code=204)
    def remove_pool(name: Reference, _: Admin, *, force: Force = False) -> None:
        """Destroy and forget a pool."""
        service.remove(name, force=force)

    @routes.post("/{name}/drain")
    async def drain_pool(name: Reference, request: Request, caller: Admin, timeout: Span = None) -> (
        Carried[shown.PoolName]
    ):  # fmt: skip
        """Drain a pool for good; leases are ended after `timeout` seconds. Cancelled, it is open again."""

        def act(progress: Progress) -> shown.PoolName:
            service.drain(name, progress, timeout=timeout)
            return {"name": name}

        return await carry_out(service, request, caller, "pool.drain", act, lane=PATIENCE)

    @routes.post("/{name}/roll")
    async def roll_pool(name: Reference, request: Request, caller: Admin, timeout: Span = None) -> (
        Carried[shapes.Pool]
    ):  # fmt: skip
        """Wait until no parked clone is of an older template. Cancelled, they are replaced nevertheless."""

        def act(progress: Progress) -> shapes.Pool:
            pool = service.pool(name)
            with progress.waiting(pool.look_again):
                pool.roll(timeout=timeout, check=progress.check)
            return now(name)

        return await carry_out(service, request, caller, "pool.roll", act, lane=PATIENCE)

    @routes.post("/{name}/leases", status_code=201)
    async def acquire_lease(
        name: Reference, request: Request, caller: User,
        timeout: Annotated[float, Body(ge=0, le=86_400, allow_inf_nan=False)] = 30.0,
        ttl: Annotated[float | None, Body(gt=0, le=366 * 86_400, allow_inf_nan=False)] = None,
    ) -> Answer[shapes.Leased]:  # fmt: skip
        """Acquire: a running sandbox that nobody else has."""
        begun = time.perf_counter()
        pool, lease = await acquired(service, patiently, request, caller, name, timeout=timeout, ttl=ttl)
        return Answer(views.leased(pool, lease, (time.perf_counter() - begun) * 1000), status_code=201)

    @routes.delete("/{name}/leases/{lease}", status_code=204)
    def release_lease(name: Reference, lease: Reference, caller: User, *, reset: bool = False) -> None:
        """Release: the sandbox is destroyed; with `reset` the pool parks a new one in its place."""
        check_own_lease(service, lease, caller)
        service.pool(name).release(lease, reset=reset)
        service.watch.released(name, lease)

    @routes.patch("/{name}/leases/{lease}")
    def renew_lease(name: Reference, lease: Reference, caller: User, ttl: PositiveSpan = None) -> (
        Answer[shown.Renewed]
    ):  # fmt: skip
        """Let the lease end `ttl` seconds from now (default: the pool's)."""
        check_own_lease(service, lease, caller)
        return Answer({"lease": lease, "until": service.pool(name).renew(lease, ttl=ttl)})

    return routes
