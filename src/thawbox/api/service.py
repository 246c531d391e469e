"""What `thawbox serve` keeps: every pool of the node, open, and the supervision of its sandboxes."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from thawbox.errors import NotFound
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.store.recheck import Recheck
from thawbox.supervisor import Supervisor


class Service:
    """The pools of a node, opened at the start of the block and closed, not drained, at its end; and its supervisor."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._undo = ExitStack()
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(Recheck(self.node.context.store, period=self.node.settings.verify_every))
            self.supervisor = undo.enter_context(Supervisor(self.node.context))
            undo.callback(self._close_pools)
            for spec in self.node.pools():
                if not spec.drained:
                    self.open(spec.name)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def check(self) -> None:
        """Raise what ended the tending of a pool or the supervision, if anything did."""
        for pool in self.pools().values():
            pool.check()
        self.supervisor.statuses()

    def _close_pools(self) -> None:
        while self._pools:
            self._pools.popitem()[1].close()

    def create(self, spec: PoolSpec) -> Pool:
        """Make a pool and begin to fill it."""
        self.node.create_pool(spec)
        return self.open(spec.name)

    def open(self, name: str) -> Pool:
        """The pool of this name, opened if it was not."""
        with self._lock:
            if name not in self._pools:
                self._pools[name] = self.node.open_pool(name)
            return self._pools[name]

    def pool(self, name: str) -> Pool:
        """An open pool; raises NotFound."""
        try:
            return self._pools[name]
        except KeyError:
            spec = self.node.pool(name)
            why = "was drained" if spec.drained else "was made after `thawbox serve` began"
            raise NotFound(f"pool {name} is not open: it {why}", remediation="make a new pool, or restart it") from None

    def pools(self) -> dict[str, Pool]:
        with self._lock:
            return dict(self._pools)

    def drain(self, name: str, *, timeout: float | None) -> None:
        """Drain a pool for good: it stays known, empty, until it is removed."""
        self.pool(name).drain(timeout=timeout)
        self.node.mark_drained(name)
        with self._lock:
            self._pools.pop(name, None)

    def remove(self, name: str, *, force: bool) -> None:
        """Close, destroy and forget a pool; raises InvalidRequest while it has leases, unless `force`."""
        spec = self.node.pool(name)
        with self._lock:
            open_pool = self._pools.pop(name, None)
        if open_pool is not None:
            open_pool.close()
        try:
            self.node.remove_pool(spec.name, force=force)
        except Exception:
            if open_pool is not None:
                self.open(name)
            raise
