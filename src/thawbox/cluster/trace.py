"""Traces for the simulation: what happens to a cluster and when, written down in a few lines and replayed exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from thawbox.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Burst:
    """For `seconds` from `at` on, `factor` times as many claims come as otherwise; of one region where it is named."""

    at: float
    seconds: float
    factor: float
    region: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """At `at`, so many `nodes`, or all of a `region`, are gone; at `back` they return, empty (None: never)."""

    at: float
    nodes: int = 0
    region: str = ""
    back: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A cluster and an hour or so of its life. Equal traces give equal simulations: `seed` decides every draw.

    Claims come as a Poisson process, hold their clone for a log-normal time around `hold` seconds, and choose pools by
    Zipf's law. `machines` are classes of machines, in equal parts; a pool's clones fit all but one of them.
    """

    seed: int = 1
    nodes: int = 10_000
    claims: int = 1_000_000
    seconds: float = 3600.0
    regions: tuple[str, ...] = ("us-central", "us-east", "europe-west", "europe-north", "asia-east")
    pools: int = 20
    machines: int = 4
    hold: float = 60.0
    timeout: float = 10.0
    capacity: int = 64
    bursts: tuple[Burst, ...] = (
        Burst(600, 20, 10), Burst(1500, 5, 30, "us-east"), Burst(2700, 60, 5),
    )  # fmt: skip
    losses: tuple[Loss, ...] = (
        Loss(1000, nodes=100), Loss(1800, region="europe-west", back=2400), Loss(3000, nodes=500, back=3300),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Claims in the order in which they come: when, of which pool (by number), from which region, for how long."""

    at: list[float]
    pool: list[int]
    region: list[int]
    hold: list[float]


def read_trace(path: Path) -> Trace:
    """A trace from a JSON file; fields that are not named are as in the default one. Raises InvalidRequest."""
    try:
        return check_trace(msgspec.json.decode(path.read_bytes(), type=Trace))
    except (msgspec.DecodeError, OSError) as error:
        raise InvalidRequest(f"{path} is no trace: {error}") from None


def check_trace(trace: Trace) -> Trace:
    """Return `trace` unchanged if it can be simulated; raises InvalidRequest."""
    counts = (trace.nodes, trace.claims, trace.pools, trace.machines, trace.capacity, len(trace.regions))
    if min(counts) < 1 or not 0 < trace.seconds < 1e9 or not 0 < trace.hold < 1e9 or trace.timeout < 0:
        raise InvalidRequest("a trace has at least one node, claim, pool, machine, region and second")
    for region in {one.region for one in trace.bursts} | {one.region for one in trace.losses}:
        if not region:
            continue
        if region not in trace.regions:
            raise InvalidRequest(f"the trace has no region {region!r}", remediation=f"use {', '.join(trace.regions)}")
    return trace


def arrivals(trace: Trace) -> Arrivals:
    """The claims of a trace, drawn."""
    import numpy as np

    rng = np.random.default_rng(trace.seed)
    interpolated: Any = np.interp  # its stubs are generic beyond what a checker resolves
    edges = np.arange(0.0, trace.seconds + 1.0)
    flow = np.ones(len(edges) - 1)
    extra: list[tuple[np.ndarray[Any, Any], int]] = []
    for burst in trace.bursts:
        inside = (edges[:-1] >= burst.at) & (edges[:-1] < burst.at + burst.seconds)
        if burst.region:
            extra.append((np.where(inside, burst.factor / len(trace.regions), 0.0), trace.regions.index(burst.region)))
        else:
            flow = np.where(inside, flow * burst.factor, flow)
    kinds = [(flow, -1), *extra]
    whole = sum(float(one.sum()) for one, _ in kinds)
    at_parts: list[Any] = []
    region_parts: list[Any] = []
    left = trace.claims
    for number, (one, region) in enumerate(kinds):
        share = left if number == len(kinds) - 1 else round(trace.claims * float(one.sum()) / whole)
        left -= share
        cumulated = np.concatenate(([0.0], np.cumsum(one)))
        at_parts.append(interpolated(rng.random(share) * cumulated[-1], cumulated, edges))
        of: Any = rng.integers(len(trace.regions), size=share) if region < 0 else np.full(share, region)
        region_parts.append(of)
    at = np.concatenate(at_parts)
    order = np.argsort(at, kind="stable")
    weights = 1.0 / np.arange(1, trace.pools + 1)
    pools = rng.choice(trace.pools, size=trace.claims, p=weights / weights.sum())
    hold = rng.lognormal(np.log(trace.hold) - 0.5, 1.0, size=trace.claims)
    return Arrivals(
        at[order].tolist(), pools.tolist(), np.concatenate(region_parts)[order].tolist(), hold.tolist()
    )  # fmt: skip
