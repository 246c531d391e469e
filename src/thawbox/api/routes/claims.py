"""Claims: a sandbox of a pool, asked for in one request with all that it is to be given."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from thawbox import views
from thawbox.api import shown
from thawbox.api.access import Reader, User
from thawbox.api.answers import Answer, Body, Injected, Pages, Patience, Reference, resource
from thawbox.api.leasing import acquired, check_own_lease, leased_record, leased_records
from thawbox.api.service import Service
from thawbox.sandbox import Record
from thawbox.shapes import Named

Ttl = Annotated[float | None, Field(gt=0, le=366 * 86_400)]


class MakeClaim(Injected):
    pool: str
    timeout: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    ttl: Ttl = None


class Renewal(Body):
    ttl: Ttl = None


def router(service: Service, patiently: Patience) -> APIRouter:
    routes = resource("/v1/claims", "claims")

    @routes.post("", status_code=201)
    async def make_claim(claim: MakeClaim, request: Request, caller: User) -> (
        Answer[shown.Bound]
    ):  # fmt: skip
        """Acquire a sandbox; it answers when the sandbox is the caller's and has been given what it was to be given."""
        begun = time.perf_counter()
        pool, lease = await acquired(
            service, patiently, request, caller, claim.pool, timeout=claim.timeout, ttl=claim.ttl, **claim.opened()
        )  # fmt: skip
        passed = (time.perf_counter() - begun) * 1000
        sandbox: Named = {"id": lease.sandbox.id, "name": lease.sandbox.name}
        until = views.timestamp(lease.until)
        told: shown.Bound = {
            "id": lease.id, "state": "bound", "pool": pool.name, "sandbox": sandbox, "acquire_ms": round(passed, 3),
            "until": until,
        }  # fmt: skip
        return Answer(told, status_code=201)

    @routes.get("")
    def list_claims(page: Pages, _: Reader) -> Answer[shown.ClaimPage]:
        """Every claim that is bound to a sandbox, oldest sandbox first."""
        records, more = page.of(leased_records(service), lambda record: (record.created_at, record.id))
        return Answer({"claims": [_shown(record) for record in records], "next": more})

    @routes.get("/{claim}")
    def show_claim(claim: Reference, _: Reader) -> Answer[shown.Claim]:
        """A claim and its sandbox."""
        return Answer(_shown(leased_record(service, claim)))

    @routes.patch("/{claim}")
    def renew_claim(claim: Reference, renewal: Renewal, caller: User) -> Answer[shown.Claim]:
        """Let the claim end `ttl` seconds from now (default: the pool's)."""
        check_own_lease(service, claim, caller)
        service.pool(_pool_of(service, claim)).renew(claim, ttl=renewal.ttl)
        return Answer(_shown(leased_record(service, claim)))

    @routes.delete("/{claim}", status_code=204)
    def end_claim(claim: Reference, caller: User, *, reset: bool = False) -> None:
        """Give the sandbox back; it is destroyed."""
        check_own_lease(service, claim, caller)
        pool = _pool_of(service, claim)
        service.pool(pool).release(claim, reset=reset)
        service.watch.released(pool, claim)

    return routes


def _pool_of(service: Service, claim: str) -> str:
    for pool in service.pools().values():
        if pool.has_lease(claim):
            return pool.name
    return views.pool_of(leased_record(service, claim)) or ""


def _shown(record: Record) -> shown.Claim:
    return {
        "id": record.lease, "state": "bound", "pool": views.pool_of(record),
        "sandbox": {"id": record.id, "name": record.name}, "until": views.timestamp(record.lease_until),
    }  # fmt: skip
