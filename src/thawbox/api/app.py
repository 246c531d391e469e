"""The routes: pools and their leases. Each does one call and says what came of it.

Rule 1: names and specs are validated by the core; here only JSON is read and written.
Rule 2: a caller that waits for a clone must not keep one that releases out, so waiting has threads of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError

from thawbox.api.problems import tell_error, tell_invalid
from thawbox.api.service import Service
from thawbox.errors import ThawboxError
from thawbox.pool import Lease, Pool, PoolSpec

_Result = TypeVar("_Result")
_CLOSED = ("parked", "leased", "restoring", "waiting")
MOST_WAITING = 1000
"""Callers that may wait for clones or drains at the same time; further ones wait to wait."""


def create_app(service: Service) -> FastAPI:
    """The application over a service that is open."""
    app = FastAPI(title="thawbox", version="1", docs_url=None, redoc_url=None)
    app.add_exception_handler(ThawboxError, tell_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    waiting = CapacityLimiter(MOST_WAITING)

    async def patiently(act: Callable[[], _Result]) -> _Result:
        return await to_thread.run_sync(act, limiter=waiting)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        service.check()
        return {"status": "ok"}

    @app.get("/v1/pools")
    def pools() -> dict[str, list[dict[str, object]]]:
        opened = service.pools()
        return {"pools": [describe(spec, opened.get(spec.name)) for spec in service.node.pools()]}

    @app.post("/v1/pools", status_code=201)
    def create(spec: PoolSpec) -> dict[str, object]:
        return describe(spec, service.create(spec))

    @app.get("/v1/pools/{name}")
    def show(name: str) -> dict[str, object]:
        return describe(service.node.pool(name), service.pools().get(name))

    @app.delete("/v1/pools/{name}", status_code=204)
    def remove(name: str, *, force: bool = False) -> None:
        service.remove(name, force=force)

    @app.post("/v1/pools/{name}/drain")
    async def drain(name: str, timeout: Annotated[float | None, Body(embed=True)] = None) -> dict[str, str]:
        await patiently(partial(service.drain, name, timeout=timeout))
        return {"name": name}

    @app.post("/v1/pools/{name}/roll")
    async def roll(name: str, timeout: Annotated[float | None, Body(embed=True)] = None) -> dict[str, object]:
        await patiently(partial(service.pool(name).roll, timeout=timeout))
        return describe(service.node.pool(name), service.pool(name))

    @app.post("/v1/pools/{name}/leases", status_code=201)
    async def acquire(
        name: str, request: Request,
        timeout: Annotated[float, Body(ge=0)] = 30.0, ttl: Annotated[float | None, Body(gt=0)] = None,
    ) -> dict[str, object]:  # fmt: skip
        begun = time.perf_counter()
        pool = service.pool(name)
        lease = await patiently(partial(pool.acquire, timeout=timeout, ttl=ttl))
        if await request.is_disconnected():  # nobody is there to use it, or to give it back
            pool.release(lease.id)
        return leased(pool, lease, begun)

    @app.delete("/v1/pools/{name}/leases/{lease}", status_code=204)
    def release(name: str, lease: str, *, reset: bool = False) -> None:
        service.pool(name).release(lease, reset=reset)

    @app.patch("/v1/pools/{name}/leases/{lease}")
    def renew(name: str, lease: str, ttl: Annotated[float | None, Body(embed=True, gt=0)] = None) -> dict[str, object]:
        return {"lease": lease, "until": service.pool(name).renew(lease, ttl=ttl)}

    return app


def leased(pool: Pool, lease: Lease, begun: float) -> dict[str, object]:
    """What whoever acquires is told; `acquire_ms` counts from `begun` (perf_counter)."""
    return {
        "id": lease.sandbox.id, "name": lease.sandbox.name, "pool": pool.name,
        "acquire_ms": round((time.perf_counter() - begun) * 1000, 3), "lease": lease.id, "until": lease.until,
    }  # fmt: skip


def describe(spec: PoolSpec, pool: Pool | None) -> dict[str, object]:
    """A pool as it is said to be, and, where it is open, as it is."""
    now: dict[str, object] = asdict(pool.statistics()) if pool is not None else dict.fromkeys(_CLOSED, 0)
    return {**asdict(spec), "open": pool is not None, **now}
