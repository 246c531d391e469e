"""What the node has at the moment of a scrape: sandboxes, pools, snapshots, supervision, memory.

Rule: a scrape may be asked for every few seconds, so what costs more than a millisecond a sandbox is remembered.
"""

from __future__ import annotations

import time
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thawbox.errors import ThawboxError
from thawbox.host.memory_use import MemoryUse, memory_use
from thawbox.lifecycle import ALIVE
from thawbox.model import Phase, SnapshotKind
from thawbox.node import Node
from thawbox.pool import Pool
from thawbox.sandbox import Record
from thawbox.supervisor import State, Status

MEMORY_SECONDS = 10.0
"""For how long measured memory is told again: it costs about a millisecond for each process."""
NAMES = (
    "thawbox_build_info", "thawbox_sandboxes", "thawbox_sandbox_memory_bytes", "thawbox_pool_clones",
    "thawbox_pool_mark", "thawbox_pool_waiting", "thawbox_pool_events_total", "thawbox_snapshots",
    "thawbox_store_bytes", "thawbox_supervised",
)  # fmt: skip
"""All that is told here."""
_CLONES = ("parked", "leased", "restoring", "stale", "ending")
_MARKS = ("low", "high", "limit", "target")


class NodeMetrics(Collector):
    """Asks the node, its open pools and its supervisor."""

    def __init__(
        self, node: Node, *, pools: Callable[[], Mapping[str, Pool]], supervised: Callable[[], list[Status]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._node = node
        self._pools = pools
        self._supervised = supervised
        self._clock = clock
        self._memory: dict[str, MemoryUse] = {}
        self._measured_at = -MEMORY_SECONDS

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would otherwise collect to find out."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("thawbox_build_info", "Always 1; the version is its label", labels=["version"])
        info.add_metric([version("thawbox")], 1)
        yield info
        records = [sandbox.record for sandbox in self._node.sandboxes()]
        yield from self._sandboxes(records)
        yield from self._memory_of(records)
        yield from self._pool_gauges()
        yield from self._snapshots()
        watched = GaugeMetricFamily("thawbox_supervised", "Sandboxes that are supervised, by state", labels=["state"])
        states = Counted(status.state for status in self._supervised())
        for state in State:
            watched.add_metric([state.value.replace(" ", "-")], states[state])
        yield watched

    def _sandboxes(self, records: list[Record]) -> Iterator[Metric]:
        found = GaugeMetricFamily("thawbox_sandboxes", "Sandboxes, by state", labels=["state"])
        phases = Counted(record.phase for record in records)
        for phase in Phase:
            found.add_metric([phase.value], phases[phase])
        yield found

    def _memory_of(self, records: list[Record]) -> Iterator[Metric]:
        """Of all living sandboxes together, by the pool they belong to; none: empty."""
        if self._clock() - self._measured_at >= MEMORY_SECONDS:
            self._memory, self._measured_at = self._measure(records), self._clock()
        found = GaugeMetricFamily(
            "thawbox_sandbox_memory_bytes",
            "Memory of living sandboxes: their own, shared with others, and their fair share of all",
            labels=["pool", "kind"],
        )
        for pool, used in self._memory.items():
            for kind, size in asdict(used).items():
                found.add_metric([pool, kind], size)
        yield found

    def _measure(self, records: list[Record]) -> dict[str, MemoryUse]:
        found: dict[str, MemoryUse] = {}
        for record in records:
            if record.phase not in ALIVE:
                continue
            try:
                pids = self._node.context.cgroup(record.id).pids()
            except ThawboxError:
                continue  # it ended since
            pool = record.owner.removeprefix("pool:")
            found[pool] = memory_use(pids) + found.get(pool, MemoryUse())
        return found

    def _pool_gauges(self) -> Iterator[Metric]:
        clones = GaugeMetricFamily(
            "thawbox_pool_clones", "Clones of a pool, by what they are", labels=["pool", "state"]
        )
        marks = GaugeMetricFamily("thawbox_pool_mark", "Watermarks: low, high, limit, target", labels=["pool", "mark"])
        waiting = GaugeMetricFamily("thawbox_pool_waiting", "Callers that wait for a clone", labels=["pool"])
        totals = CounterMetricFamily("thawbox_pool_events", "What happened in a pool", labels=["pool", "event"])
        for name, pool in sorted(self._pools().items()):
            now = asdict(pool.statistics())
            for key in _CLONES:
                clones.add_metric([name, key], now[key])
            for key in _MARKS:
                marks.add_metric([name, key], now[key])
            waiting.add_metric([name], now["waiting"])
            for event, count in now["totals"].items():
                totals.add_metric([name, event], count)
        yield from (clones, marks, waiting, totals)

    def _snapshots(self) -> Iterator[Metric]:
        number = GaugeMetricFamily("thawbox_snapshots", "Snapshots in the store, by kind", labels=["kind"])
        size = GaugeMetricFamily("thawbox_store_bytes", "What the snapshots of the store take")
        records = self._node.context.store.records()
        kinds = Counted(stored.manifest.kind for stored in records)
        for kind in SnapshotKind:
            number.add_metric([kind.value], kinds[kind])
        size.add_metric([], sum(stored.bytes for stored in records))
        yield from (number, size)
