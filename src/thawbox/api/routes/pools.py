"""Pools and their leases. Each route does one call and says what came of it.

A caller that waits for a clone must not keep one that releases out, so waiting has threads of its own.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request
from starlette.responses import Response

from thawbox import views
from thawbox.api.access import Admin, Reader, User
from thawbox.api.answers import Answer, Page, Patience, Reference, carry_out, is_gone, resource
from thawbox.api.leasing import acquire, check_own_lease
from thawbox.api.operations import PATIENCE, Progress
from thawbox.api.service import Service
from thawbox.pool import PoolSpec

Span = Annotated[float | None, Body(embed=True, ge=0, le=366 * 86_400, allow_inf_nan=False)]
PositiveSpan = Annotated[float | None, Body(embed=True, gt=0, le=366 * 86_400, allow_inf_nan=False)]
Pages = Annotated[Page, Depends()]
Force = Annotated[bool, Query(description="end its leases too")]


def router(service: Service, patiently: Patience) -> APIRouter:
    routes = resource("/v1/pools", "pools")

    def shown(name: str) -> dict[str, object]:
        return views.pool_now(service.node.pool(name), service.pools().get(name))

    @routes.get("")
    def list_pools(page: Pages, _: Reader) -> Response:
        """Every pool, open or not."""
        return page.of("pools", service.node.pools(), lambda spec: (spec.name, ""), lambda spec: shown(spec.name))

    @routes.post("", status_code=201)
    def create_pool(spec: PoolSpec, _: Admin) -> Response:
        """Make a pool and begin to fill it."""
        return Answer(views.pool_now(spec, service.create(spec)), status_code=201)

    @routes.get("/{name}")
    def show_pool(name: Reference, _: Reader) -> Response:
        """A pool as it was made and as it is."""
        return Answer(shown(name))

    @routes.delete("/{name}", status_code=204)
    def remove_pool(name: Reference, _: Admin, *, force: Force = False) -> None:
        """Destroy and forget a pool."""
        service.remove(name, force=force)

    @routes.post("/{name}/drain")
    async def drain_pool(name: Reference, request: Request, caller: Admin, timeout: Span = None) -> Response:
        """Drain a pool for good; leases are ended after `timeout` seconds."""

        def act(_: Progress) -> object:
            service.drain(name, timeout=timeout)
            return {"name": name}

        return await carry_out(service, request, caller, "pool.drain", act, lane=PATIENCE)

    @routes.post("/{name}/roll")
    async def roll_pool(name: Reference, request: Request, caller: Admin, timeout: Span = None) -> Response:
        """Wait until no parked clone is of an older template."""

        def act(_: Progress) -> object:
            service.pool(name).roll(timeout=timeout)
            return shown(name)

        return await carry_out(service, request, caller, "pool.roll", act, lane=PATIENCE)

    @routes.post("/{name}/leases", status_code=201)
    async def acquire_lease(
        name: Reference, request: Request, caller: User,
        timeout: Annotated[float, Body(ge=0, le=86_400, allow_inf_nan=False)] = 30.0,
        ttl: Annotated[float | None, Body(gt=0, le=366 * 86_400, allow_inf_nan=False)] = None,
    ) -> Response:  # fmt: skip
        """Acquire: a running sandbox that nobody else has."""
        begun = time.perf_counter()
        pool = service.pool(name)
        lease = await patiently(partial(acquire, service, pool, caller, timeout=timeout, ttl=ttl))
        if await is_gone(request):  # nobody is there to use it, or to give it back
            pool.release(lease.id)
        return Answer(views.leased(pool, lease, (time.perf_counter() - begun) * 1000), status_code=201)

    @routes.delete("/{name}/leases/{lease}", status_code=204)
    def release_lease(name: Reference, lease: Reference, caller: User, *, reset: bool = False) -> None:
        """Release: the sandbox is destroyed; with `reset` the pool parks a new one in its place."""
        check_own_lease(service, lease, caller)
        service.pool(name).release(lease, reset=reset)
        service.watch.released(name, lease)

    @routes.patch("/{name}/leases/{lease}")
    def renew_lease(name: Reference, lease: Reference, caller: User, ttl: PositiveSpan = None) -> Response:
        """Let the lease end `ttl` seconds from now (default: the pool's)."""
        check_own_lease(service, lease, caller)
        return Answer({"lease": lease, "until": service.pool(name).renew(lease, ttl=ttl)})

    return routes
