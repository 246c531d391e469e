"""Prometheus metrics of what the node does, made of the steps it tells of; and, at each scrape, of what it has.

Rule 1: a label holds only what there is a bounded number of: pools, routes, states, codes. Never an id.
Rule 2: every metric is named in docs/service.md; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from thawbox.telemetry import Step

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30, 120)
"""An acquire takes 1 to 40 ms, a clone 5 to 100, a dump of a gigabyte a second, a recovery in a crash loop a minute."""


class Metrics:
    """An observer of steps. The registry is its own: nothing else of this process is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._acquire = self._histogram("acquire", "From the call until a pool gave a sandbox", "pool")
        self._run = self._histogram("run", "From the spec until the sandbox was ready")
        self._restore = self._histogram("restore", "From the snapshot until the tree ran", "kind")
        self._ready = self._histogram("restore_ready", "From the snapshot until the sandbox answered", "kind")
        self._frozen = self._histogram("dump_frozen", "How long a dump held the sandbox up")
        self._dump = self._histogram("dump", "A whole dump by the engine")
        self._checkpoint = self._histogram("checkpoint", "From the call until the snapshot was durable")
        self._recovery = self._histogram(
            "recovery", "From a death until the sandbox was healthy, or given up", "outcome"
        )
        self._request = self._histogram(
            "http_request", "From a request until its answer began", "method", "route", "status"
        )
        self._step = Summary(
            "thawbox_step_seconds", "Every step, CRIU's own phases too", ["step"], registry=self.registry
        )
        self._failures = self._counter("failures", "Steps that failed", "step", "code")
        self._written = self._counter("snapshot_written_bytes", "Bytes that new snapshots added to the store", "kind")
        self._moved = self._counter("moved_bytes", "Bytes of snapshots sent and fetched", "direction")
        self._facts = self._counter("facts", "What happened without taking time: damage, refusals", "fact")
        self._by_name: dict[str, Callable[[Step], None]] = {
            "pool.acquire": lambda step: self._acquire.labels(step.fields["pool"]).observe(step.seconds),
            "run": lambda step: self._run.observe(step.seconds),
            "restore": self._restored,
            "clone": self._restored,
            "engine.dump": self._dumped,
            "checkpoint": lambda step: self._checkpoint.observe(step.seconds),
            "store.put": self._put,
            "flatten": self._put,
            "push": self._transferred,
            "pull": self._transferred,
        }

    def __call__(self, step: Step) -> Callable[[], None]:
        return partial(self._ended, step)

    def text(self) -> bytes:
        """What a scrape is answered."""
        return generate_latest(self.registry)

    def include(self, collector: Collector) -> None:
        """Ask this collector too at every scrape."""
        self.registry.register(collector)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(f"thawbox_{name}_seconds", what, labels, registry=self.registry, buckets=SECONDS)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"thawbox_{name}", what, labels, registry=self.registry)

    def _ended(self, step: Step) -> None:
        if step.name == "http.request":
            self._request.labels(*(str(step.fields.get(key, "")) for key in ("method", "route", "status"))).observe(
                step.seconds
            )
            return
        if step.is_fact:
            self._facts.labels(step.name).inc()
            return
        self._step.labels(step.name).observe(step.seconds)
        if step.name == "recovery" and "outcome" in step.fields:
            self._recovery.labels(step.fields["outcome"]).observe(_number(step, "healthy_ms") / 1000)
        if step.error is not None:
            self._failures.labels(step.name, step.failure).inc()
        elif step.name in self._by_name:
            self._by_name[step.name](step)

    def _restored(self, step: Step) -> None:
        self._restore.labels(step.name).observe(_number(step, "restore_ms") / 1000)
        self._ready.labels(step.name).observe(step.seconds)

    def _dumped(self, step: Step) -> None:
        self._frozen.observe(_number(step, "frozen_ms") / 1000)
        self._dump.observe(step.seconds)

    def _put(self, step: Step) -> None:
        self._written.labels(str(step.fields.get("kind", "full"))).inc(_number(step, "bytes"))

    def _transferred(self, step: Step) -> None:
        self._moved.labels(step.name).inc(_number(step, "bytes"))


def _number(step: Step, name: str) -> float:
    return float(cast("float", step.fields.get(name, 0)))
