"""The pools that a node was told to keep: made, opened by one process at a time, removed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from thawbox.errors import InvalidRequest, LockTimeout, NotFound, Unavailable
from thawbox.host.files import locked, private_directory
from thawbox.pool.pool import Pool
from thawbox.pool.spec import PoolSpec, check_pool
from thawbox.sandbox import Context
from thawbox.sandbox.parking import CloneParking
from thawbox.sandbox.templates import find_template, remove_template

_KIND = "pool"
_DRAIN = "drain"
"""Pools that are being drained, and when what is leased is ended (seconds since the epoch; none: at its own end)."""


def create_pool(context: Context, spec: PoolSpec) -> PoolSpec:
    """Keep a new pool; nothing is restored before it is opened.

    Raises InvalidRequest when its name is taken or its watermarks cannot be kept, NotFound without its template.
    """
    find_template(context, check_pool(spec).template)
    context.journal.write_entry(_KIND, spec.name, msgspec.json.encode(spec), is_new=True)
    return spec


def find_pool(context: Context, name: str) -> PoolSpec:
    """What was said of this pool when it was made; raises NotFound."""
    return msgspec.json.decode(context.journal.entry(_KIND, name), type=PoolSpec)


def all_pools(context: Context) -> list[PoolSpec]:
    """Every pool of the node, by name."""
    return [msgspec.json.decode(content, type=PoolSpec) for content in context.journal.entries(_KIND).values()]


def open_pool(context: Context, name: str, *, share_memory: bool = True) -> Pool:
    """Take up what is parked and leased, and begin to fill the pool; the caller closes or drains it.

    With `share_memory` the golden snapshot's memory is loaded once and shared by clones, copy on write, where the
    engine can: worth it for a pool that is kept, not for one acquire.

    Where a drain was begun it gives nothing out: `drain_pool` goes on with it. Raises NotFound, also when it was
    drained, and Unavailable while another process keeps it.
    """
    spec = find_pool(context, name)
    if spec.drained:
        raise NotFound(f"pool {name} was drained", remediation="remove it and make a new one")
    with ExitStack() as undo:
        _claim(context, name, undo)
        claim = undo.pop_all()
    parking = CloneParking(context, name, spec.template, clones=spec.limit if share_memory else 0)
    pool = Pool(
        name, parking, spec.marks, lease_ttl=spec.lease_ttl, parallel=spec.parallel, now=context.now,
        on_close=claim.close, telemetry=context.telemetry,
    )  # fmt: skip
    with ExitStack() as undo:
        undo.callback(pool.close)
        if name in drains(context):
            pool.refuse("is draining")
        pool.start()
        undo.pop_all()
    return pool


def drain_pool(context: Context, pool: Pool, *, until: float | None, check: Callable[[], None]) -> None:
    """Drain an open pool for good: it stays known, empty. Leases are ended at `until` (seconds since the epoch).

    That it is to be empty is remembered first: whoever opens it after a crash goes on with it, or after `check` raised
    (as `Pool.drain` asks it), until `forget_drain`.
    """
    find_pool(context, pool.name)
    context.journal.write_entry(_DRAIN, pool.name, msgspec.json.encode(until))
    pool.drain(timeout=None if until is None else max(0.0, until - context.now()), check=check)
    spec = replace(find_pool(context, pool.name), drained=True)
    context.journal.write_entry(_KIND, pool.name, msgspec.json.encode(spec))
    context.journal.remove_entry(_DRAIN, pool.name)


def forget_drain(context: Context, name: str) -> None:
    """Whoever opens this pool next does not go on draining it."""
    context.journal.remove_entry(_DRAIN, name)


def drains(context: Context) -> dict[str, float | None]:
    """The pools whose drain has begun and not ended, and until when."""
    return {
        name: msgspec.json.decode(content, type=float | None)
        for name, content in context.journal.entries(_DRAIN).items()
    }


def remove_pool(context: Context, name: str, *, force: bool = False) -> None:
    """Destroy what the pool has parked, and forget it. Raises InvalidRequest while leases run, unless `force`."""
    spec = find_pool(context, name)
    with ExitStack() as undo:
        _claim(context, name, undo)
        parking = CloneParking(context, name, spec.template)
        found = parking.inherited()
        if found.leased and not force:
            raise InvalidRequest(
                f"pool {name} has {len(found.leased)} leases",
                remediation="release them, or use --force",
            )
        for clone in (*found.parked, *found.leased, *found.rest):
            parking.destroy(clone)
        context.journal.remove_entry(_DRAIN, name)  # first: it is not to be said of the next pool of that name
        context.journal.remove_entry(_KIND, name)
        _lock_of(context, name).unlink()  # held by us alone: whoever waits for it makes a new one, and finds no pool


def remove_unused_template(context: Context, name: str) -> None:
    """Remove a template that no pool is made from; raises InvalidRequest naming one that is."""
    for pool in all_pools(context):
        if pool.template == name:
            raise InvalidRequest(f"pool {pool.name} is made from template {name}", remediation="remove that pool first")
    remove_template(context, name)


def _claim(context: Context, name: str, undo: ExitStack) -> None:
    """Be the only process that keeps this pool until `undo` unwinds, or the process ends."""
    try:
        undo.enter_context(locked(_lock_of(context, name), timeout=0))
    except LockTimeout:
        raise Unavailable(
            f"pool {name} is kept by another process", remediation="use it through that process, or stop it"
        ) from None


def _lock_of(context: Context, name: str) -> Path:
    return private_directory(context.home / "locks") / f"pool-{name}"
