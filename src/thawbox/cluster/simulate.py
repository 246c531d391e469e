"""The real placement and pool plans against a simulated cluster: what a claim waits for, and what breaks first.

Simulated are time, the API server's throughput, pods coming up, restores and losses; decided is by `placement.Fleet`,
`scale_plan.plan` and `scale_plan.admit`, the very functions that the dispatcher calls.
"""

from __future__ import annotations

import heapq
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from thawbox.cluster.facts import NodeFacts, Reason, Refusal, Wish
from thawbox.cluster.placement import Fleet
from thawbox.cluster.scale_plan import Counts, Demand, Marks, admit, parked_target, plan
from thawbox.cluster.trace import Arrivals, Trace, arrivals


@dataclass(frozen=True, slots=True)
class Costs:
    """What things take in the simulation: assumptions, not results. Milliseconds, seconds and bytes as named."""

    api_ms: float = 4.0
    """One write to an idle API server."""
    api_claims: float = 1500.0
    """Writes per second that the API server does for claims; more wait in line. A priority level of their own."""
    api_rest: float = 2500.0
    """Writes per second that it does for everything else: pods coming up and going."""
    thaw_ms: float = 2.0
    pod_s: float = 4.7
    """From a pod's creation until its placeholder runs."""
    restore_s: float = 0.1
    detect_s: float = 15.0
    """From a node's death until its lease has run out."""
    clone_bytes: int = 2 << 20
    """A parked clone's own memory: the rest it shares with its like on the node."""
    golden_bytes: int = 64 << 20
    """A golden snapshot's memory, held once per node and pool."""
    plan_every_s: float = 0.5


BIND_WRITES, RELEASE_WRITES, PARK_WRITES = 2, 2, 4
"""Writes to the API server per claim (pod, status), per release (claim, pod), per clone parked (create, bind, two
statuses)."""


@dataclass(slots=True)
class _Pool:
    name: str
    marks: Marks
    machines: frozenset[str]
    coming: int = 0
    queue: deque[tuple[int, float]] = field(default_factory=deque[tuple[int, float]])  # claim, since when
    demand: Demand = field(default_factory=Demand)
    handed: float = 0.0
    per_second: float = 0.0
    next_node: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a trace. Latencies are from a claim's coming until its clone runs, of those that were bound."""

    claims: int
    bound: int
    warm: int
    refused: dict[str, int]
    lost: int
    recovered: int
    latency_ms: dict[str, float]
    recovery_ms: dict[str, float]
    writes_per_second: dict[str, int]
    most_parked: int
    most_leased: int
    parked_bytes: int
    seconds: float
    decisions: int
    decision_us: float
    rss_bytes: int
    series: dict[str, list[float]] = field(repr=False)

    @property
    def warm_ratio(self) -> float:
        return self.warm / max(1, self.bound)

    def as_json(self) -> dict[str, Any]:
        """Everything but the series, and the ratio."""
        told = asdict(self)
        told.pop("series")
        return {**told, "warm_ratio": round(self.warm_ratio, 6)}


_ARRIVE, _PARKED, _END, _PLAN, _LOSE, _BACK, _RECOVER = range(7)


class Simulation:
    """One run of one trace."""

    def __init__(self, trace: Trace, costs: Costs | None = None) -> None:
        self.trace = trace
        self.costs = costs or Costs()
        self._rng = random.Random(trace.seed)  # noqa: S311 - a simulation is to be repeatable
        self._fleet = Fleet()
        self._alive: dict[str, NodeFacts] = {}
        self._names: list[str] = []
        self._events: list[tuple[float, int, int, Any]] = []
        self._number = 0
        self._claims_free = self._rest_free = 0.0
        self._writes: dict[int, int] = {}
        self._where: list[str | None] = []
        self._on: dict[str, set[int]] = {}
        self._latency: list[float] = []
        self._recovery: list[float] = []
        self._warm = self._lost = self._recovered = self._decisions = 0
        self._bound = 0
        self._refused: Counter[str] = Counter()
        self._series: dict[str, list[float]] = {name: [] for name in ("at", "parked", "leased", "waiting", "p99_ms")}
        self._recent: list[float] = []
        self._most_parked = self._most_leased = 0

    def run(self) -> Result:
        """Play the trace and say what came of it."""
        begun = time.perf_counter()
        came = arrivals(self.trace)
        self._where = [None] * len(came.at)
        self._set_up()
        self._play(came)
        return self._result(time.perf_counter() - begun)

    # --- the cluster ------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        trace = self.trace
        for number in range(trace.nodes):
            region = trace.regions[number % len(trace.regions)]
            machine = f"m{number // len(trace.regions) % trace.machines}"
            facts = NodeFacts(f"n{number}", region, machine, trace.capacity)
            self._names.append(facts.name)
            self._join(facts)
        rate = trace.claims / trace.seconds
        self._pools = [self._pool(number, rate) for number in range(trace.pools)]
        for pool in self._pools:  # a cluster that has run for a while
            for _ in range(pool.marks.low):
                self._fleet.park(self._next_node(pool), pool.name)
        for loss in trace.losses:
            self._push(loss.at, _LOSE, loss)
        at = 0.0
        while at < trace.seconds + 60:
            self._push(at, _PLAN, None)
            at += self.costs.plan_every_s

    def _pool(self, number: int, rate: float) -> _Pool:
        trace = self.trace
        share = rate / (number + 1) / sum(1 / (one + 1) for one in range(trace.pools))
        low = max(len(trace.regions), round(share * 8))  # what comes while a pod comes up, and half as much again
        limit = max(1000, round(share * trace.hold * 20))
        without = f"m{number % trace.machines}" if trace.machines > 1 else ""
        fitting = frozenset(f"m{one}" for one in range(trace.machines)) - {without}
        return _Pool(f"pool-{number}", Marks(low, 20 * low, limit, most_waiting=20_000), fitting, next_node=number * 37)

    def _join(self, facts: NodeFacts) -> None:
        self._alive[facts.name] = facts
        self._on[facts.name] = set()
        self._fleet.add(facts)

    def _next_node(self, pool: _Pool) -> str:
        """Where the scheduler puts the next placeholder: nodes take turns."""
        while True:
            name = self._names[pool.next_node % len(self._names)]
            pool.next_node += 1
            facts = self._alive.get(name)
            if facts is not None and facts.machine in pool.machines and self._fleet.load(name) < facts.capacity:
                return name

    # --- the loop ---------------------------------------------------------------------------------------------

    def _push(self, at: float, kind: int, what: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, kind, what))

    def _play(self, came: Arrivals) -> None:
        acts: dict[int, Callable[[float, Any], None]] = {
            _PARKED: self._parked, _END: self._end, _PLAN: self._plan, _LOSE: self._lose, _BACK: self._back,
            _RECOVER: self._recover,
        }  # fmt: skip
        times, count, claim = came.at, len(came.at), 0
        events, pop = self._events, heapq.heappop
        self._came = came
        while claim < count or events:
            if claim < count and (not events or times[claim] <= events[0][0]):
                self._arrive(times[claim], claim)
                claim += 1
            else:
                at, _, kind, what = pop(events)
                acts[kind](at, what)

    def _write(self, now: float, writes: int) -> float:
        """When so many writes to the API server, none of them for a claim, are done."""
        second = int(now)
        self._writes[second] = self._writes.get(second, 0) + writes
        self._rest_free = (self._rest_free if self._rest_free > now else now) + writes / self.costs.api_rest
        return self._rest_free + self.costs.api_ms / 1000

    def _write_claim(self, now: float) -> float:
        second = int(now)
        self._writes[second] = self._writes.get(second, 0) + BIND_WRITES
        self._claims_free = (
            self._claims_free if self._claims_free > now else now
        ) + BIND_WRITES / self.costs.api_claims
        return self._claims_free + self.costs.api_ms * BIND_WRITES / 1000

    def _arrive(self, now: float, claim: int) -> None:
        pool = self._pools[self._came.pool[claim]]
        pool.demand.add(now)
        if not pool.queue and self._bind(now, claim, pool, since=now, warm=True):
            return
        counts = Counts(len(pool.queue), self._fleet.parked(pool.name), pool.coming, self._fleet.leased(pool.name))
        refusal = admit(counts, pool.marks, timeout=self.trace.timeout, per_second=pool.per_second)
        if refusal is not None:
            self._refused[refusal.reason.value] += 1
            return
        pool.queue.append((claim, now))

    def _bind(self, now: float, claim: int, pool: _Pool, *, since: float, warm: bool) -> bool:
        region = self.trace.regions[self._came.region[claim]]
        self._decisions += 1
        chosen = self._fleet.choose(Wish(pool.name, pool.machines, region))
        if isinstance(chosen, Refusal):
            return False
        recovering = since < 0
        done = self._write_claim(now) + self.costs.thaw_ms / 1000
        if recovering:
            done += self.costs.restore_s
            self._recovery.append((done + since) * 1000)
            self._recovered += 1
        else:
            latency = (done - since) * 1000
            self._latency.append(latency)
            self._recent.append(latency)
            self._bound += 1
            self._warm += warm
        self._fleet.park(chosen, pool.name, -1)
        self._fleet.lease(chosen, pool.name)
        self._where[claim] = chosen
        self._on[chosen].add(claim)
        pool.handed += 1
        self._push(done + self._came.hold[claim], _END, (claim, chosen))
        return True

    def _serve(self, now: float, pool: _Pool) -> None:
        """Hand what is parked to those that wait, in order."""
        queue = pool.queue
        while queue and self._fleet.parked(pool.name):
            claim, since = queue[0]
            if since >= 0 and now - since > self.trace.timeout:
                self._refused[Reason.TIMED_OUT.value] += 1
            elif not self._bind(now, claim, pool, since=since, warm=False):
                return
            queue.popleft()

    def _parked(self, now: float, what: tuple[_Pool, str]) -> None:
        pool, node = what
        pool.coming -= 1
        if node in self._alive:
            self._fleet.park(node, pool.name)
            self._serve(now, pool)

    def _end(self, now: float, what: tuple[int, str]) -> None:
        claim, node = what
        if self._where[claim] != node:
            return  # it was lost, and lives elsewhere
        self._where[claim] = None
        self._on[node].discard(claim)
        self._fleet.lease(node, self._pools[self._came.pool[claim]].name, -1)
        self._write(now, RELEASE_WRITES)

    def _plan(self, now: float, _: None) -> None:
        waiting = parked = leased = 0
        for pool in self._pools:
            there, out = self._fleet.parked(pool.name), self._fleet.leased(pool.name)
            counts = Counts(len(pool.queue), there, pool.coming, out)
            orders = plan(counts, pool.marks, target=self._target(pool, now))
            for _number in range(orders.create):
                done = self._write(now, PARK_WRITES) + self.costs.pod_s + self.costs.restore_s
                pool.coming += 1
                self._push(done, _PARKED, (pool, self._next_node(pool)))
            for _number in range(min(orders.delete, there)):
                chosen = self._fleet.choose(Wish(pool.name, pool.machines))
                if isinstance(chosen, str):
                    self._fleet.park(chosen, pool.name, -1)
                    self._write(now, 1)
            rate = pool.handed / self.costs.plan_every_s
            pool.per_second = rate if not pool.per_second else 0.8 * pool.per_second + 0.2 * rate
            pool.handed = 0.0
            waiting, parked, leased = waiting + len(pool.queue), parked + there, leased + out
        self._most_parked, self._most_leased = max(self._most_parked, parked), max(self._most_leased, leased)
        if int(now * 2) % 20 == 0:
            self._note(now, parked, leased, waiting)

    def _target(self, pool: _Pool, now: float) -> int:
        return parked_target(pool.marks, pool.demand.peak(now), refill=self.costs.pod_s + self.costs.restore_s)

    def _note(self, now: float, parked: int, leased: int, waiting: int) -> None:
        recent = sorted(self._recent)
        p99 = recent[int(len(recent) * 0.99)] if recent else 0.0
        self._recent.clear()
        for name, value in (("at", now), ("parked", parked), ("leased", leased), ("waiting", waiting), ("p99_ms", p99)):
            self._series[name].append(float(value))

    # --- losses -----------------------------------------------------------------------------------------------

    def _lose(self, now: float, loss: Any) -> None:
        names = list(self._alive) if not loss.region else [
            name for name, facts in self._alive.items() if facts.region == loss.region
        ]  # fmt: skip
        gone = [
            self._alive[name]
            for name in (names if loss.region else self._rng.sample(names, min(loss.nodes, len(names))))
        ]
        orphans: list[int] = []
        for facts in gone:
            del self._alive[facts.name]
            self._fleet.remove(facts.name)
            for claim in self._on.pop(facts.name):
                self._where[claim] = None
                orphans.append(claim)
        self._lost += len(orphans)
        self._push(now + self.costs.detect_s, _RECOVER, (now, sorted(orphans)))
        if loss.back is not None:
            self._push(loss.back, _BACK, gone)

    def _recover(self, now: float, what: tuple[float, list[int]]) -> None:
        lost_at, orphans = what
        for claim in orphans:  # before those that wait: they had a clone already
            pool = self._pools[self._came.pool[claim]]
            if not self._bind(now, claim, pool, since=-lost_at, warm=False):
                pool.queue.appendleft((claim, -lost_at))

    def _back(self, _: float, gone: list[NodeFacts]) -> None:
        for facts in gone:
            self._join(facts)

    # --- the result -------------------------------------------------------------------------------------------

    def _result(self, seconds: float) -> Result:
        costs = self.costs
        for pool in self._pools:
            self._refused[Reason.TIMED_OUT.value] += sum(since >= 0 for _, since in pool.queue)
        shelves = min(self.trace.nodes * self.trace.pools, self._most_parked)
        writes = self._writes.values()
        return Result(
            claims=self.trace.claims, bound=self._bound, warm=self._warm,
            refused={reason: count for reason, count in self._refused.items() if count}, lost=self._lost,
            recovered=self._recovered, latency_ms=_percentiles(self._latency), recovery_ms=_percentiles(self._recovery),
            writes_per_second={"mean": sum(writes) // max(1, len(writes)), "most": max(writes, default=0)},
            most_parked=self._most_parked, most_leased=self._most_leased,
            parked_bytes=self._most_parked * costs.clone_bytes + shelves * costs.golden_bytes,
            seconds=round(seconds, 2), decisions=self._decisions,
            decision_us=round(seconds * 1e6 / max(1, self._decisions), 2),
            rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, series=self._series,
        )  # fmt: skip


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    return {name: round(ordered[int(last * part)], 2) for name, part in named.items()} | {"max": round(ordered[-1], 2)}
