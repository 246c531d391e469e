"""Acquiring for a caller: within his limits, told to the events, with what he gives; or not at all.

Rule: a clone that came when its caller had gone is given back, also where he sent an idempotency key. What answered
nobody is not kept, so whoever asks with that key again acquires anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.requests import Request

from thawbox.api.answers import Patience
from thawbox.api.service import Service
from thawbox.api.tokens import NO_LIMITS, Caller, Scope
from thawbox.errors import Cancelled, Forbidden, NotFound
from thawbox.pool import Lease, Pool
from thawbox.sandbox import Record
from thawbox.views import pool_of


async def acquired(
    service: Service, patiently: Patience, request: Request, caller: Caller, name: str, *, timeout: float,
    ttl: float | None, secrets: Mapping[str, bytes] | None = None, environment: Mapping[str, str] | None = None,
) -> tuple[Pool, Lease]:  # fmt: skip
    """A lease of the pool of this name for whoever sent this request, and the pool; raises Cancelled if he is gone."""

    def act() -> tuple[Pool, Lease]:
        pool = service.pool(name)
        lease = acquire(
            service, pool, caller, timeout=timeout, ttl=ttl, secrets=secrets, environment=environment
        )  # fmt: skip
        return pool, lease

    pool, lease = await patiently(act)
    if await request.is_disconnected():
        pool.release(lease.id)
        raise Cancelled("the caller hung up while he waited for a clone; it was given back")
    return pool, lease


def acquire(
    service: Service, pool: Pool, caller: Caller, *, timeout: float, ttl: float | None,
    secrets: Mapping[str, bytes] | None = None, environment: Mapping[str, str] | None = None,
) -> Lease:  # fmt: skip
    """A lease for this caller; what is given is told to the sandbox's hooks. Raises as `Pool.acquire`, LimitReached."""
    begun = time.perf_counter()
    with service.watch.acquiring(pool.name):
        lease = _leased(service, pool, caller, timeout=timeout, ttl=ttl, secrets=secrets, environment=environment)
        service.watch.look_at(lease.sandbox.id, acquire_ms=round((time.perf_counter() - begun) * 1000, 3))
    return lease


def _leased(
    service: Service, pool: Pool, caller: Caller, *, timeout: float, ttl: float | None,
    secrets: Mapping[str, bytes] | None, environment: Mapping[str, str] | None,
) -> Lease:  # fmt: skip
    if caller.limits == NO_LIMITS:
        lease = pool.acquire(timeout=timeout, ttl=ttl)
    else:
        memory = service.node.template(service.node.pool(pool.name).template).spec.memory
        with service.owners.room_for(caller, [memory]):
            lease = pool.acquire(timeout=timeout, ttl=ttl)
            service.owners.add("sandbox", lease.sandbox.id, caller)
    try:
        if caller.limits == NO_LIMITS:
            service.owners.add("sandbox", lease.sandbox.id, caller)
        if secrets or environment:
            lease.sandbox.give(secrets=secrets, environment=environment)
    except BaseException:
        pool.release(lease.id)
        raise
    return lease


def leased_records(service: Service) -> list[Record]:
    """The sandboxes of every lease that runs, oldest first; of one that was released something may be left."""
    pools = service.pools()

    def runs(record: Record) -> bool:
        pool = pools.get(pool_of(record) or "")
        return bool(record.lease) and (pool is None or pool.has_lease(record.lease))

    return [record for record in service.context.journal.all() if runs(record)]


def leased_record(service: Service, lease: str) -> Record:
    """The sandbox of a lease; raises NotFound."""
    for record in leased_records(service):
        if record.lease == lease:
            return record
    raise NotFound(f"there is no lease {lease[:80]!r}", remediation="it has ended, or never was")


def check_own_lease(service: Service, lease: str, caller: Caller) -> None:
    """Raise Forbidden for another's lease, unless the caller is an admin, who needs no look at the journal."""
    if caller.scope >= Scope.ADMIN:
        return
    record = leased_record(service, lease)
    if service.owners.of(record.id) != caller.token_id:
        raise Forbidden(f"the lease {lease} was not given to the token {caller.name}")
