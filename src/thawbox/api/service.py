"""What `thawbox serve` keeps: the node's pools, open; its supervision; its events, tokens and operations.

`create_app` puts routes over it; whatever a route needs of the node it asks for here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from thawbox.api.awaited import Awaited
from thawbox.api.book import Book
from thawbox.api.crowd import Crowd
from thawbox.api.elsewhere import Elsewhere
from thawbox.api.events import Events
from thawbox.api.facts import Doctor, facts_of
from thawbox.api.fence import Fence
from thawbox.api.node_metrics import NodeMetrics
from thawbox.api.observing import Observing
from thawbox.api.operations import Operations, Progress
from thawbox.api.owners import Owners
from thawbox.api.tokens import Caller, Tokens
from thawbox.api.watch import Watch, subject
from thawbox.audit import Audit
from thawbox.errors import Busy, Cancelled, LimitReached, LockTimeout, NotFound, SandboxNotFound, Unavailable
from thawbox.model import Restart, SandboxId, SnapshotId
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.restart_plan import Policy, policy_of
from thawbox.sandbox import Context, Sandbox, Snapshot
from thawbox.sandbox.recovering import Supervised, remember_supervised
from thawbox.store import Store
from thawbox.store.recheck import Recheck
from thawbox.supervisor import Event, Supervisor

if TYPE_CHECKING:
    from thawbox.api import shown

_log = structlog.get_logger()
_RECOVERIES = {
    "recover.started": "recovery.started",
    "recover.complete": "recovery.done",
    "recover.gave_up": "recovery.gave_up",
}
"""What the supervisor says, and the events it becomes."""


class Service:
    """A node as a service, for the length of the block. At its end pools are closed, not drained; sandboxes run on."""

    def __init__(self, node: Node, *, observing: Observing | None = None) -> None:
        self.node = node
        self.observing = observing or Observing()
        self.started_at = time.time()
        self._undo = ExitStack()
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()
        self._is_ready = False
        self.doctor = Doctor()
        self.ending = asyncio.Event()
        """Set when the service stops: streams end by it."""
        self.awaited = Awaited()
        self.crowd = Crowd()
        self._over_limit: set[SandboxId] = set()

    def __enter__(self) -> Self:
        context = self.node.context
        with ExitStack() as undo:
            self.audit = undo.enter_context(Audit(self.node.settings.home))
            self.book = Book(self.node.settings.home)
            undo.callback(self.book.close)
            self.tokens = Tokens(self.book)
            self.events = Events(self.book)
            self.operations = Operations(self.book, self.events)
            self.owners = Owners(self.book, context)
            self.owners.forget_gone()
            self.events.on_event(self.owners.hear)
            self.watch = undo.enter_context(Watch(context, self.events))
            period, telemetry = self.node.settings.verify_every, self.observing.telemetry
            self.recheck = undo.enter_context(Recheck(context.store, period=period, telemetry=telemetry))
            undo.enter_context(self.node.mirroring())
            self.supervisor = undo.enter_context(Supervisor(context, tell=self._hear, allow=self._check_limit))
            self.fence = undo.enter_context(Fence(context))
            pools = self.node.pools()
            self._draining = undo.enter_context(ThreadPoolExecutor(max(1, len(pools)), "thawbox-drain"))
            undo.callback(self._close_pools)
            self._elsewhere = undo.enter_context(Elsewhere(self._take_up))
            self._elsewhere.open_all([spec.name for spec in pools if not spec.drained])
            self.observing.metrics.include(
                NodeMetrics(self.node, pools=self.pools, supervised=self.supervisor.statuses)
            )
            undo.callback(self._stop)
            self.watch.levels = self._levels
            self._undo = undo.pop_all()
        self._is_ready = True
        self.events.emit("node.started", self.subject)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def context(self) -> Context:
        """The parts of the node."""
        return self.node.context

    @property
    def store(self) -> Store:
        """The node's snapshots."""
        return self.node.context.store

    @property
    def subject(self) -> dict[str, object]:
        """The node, as events speak of it."""
        return subject("node", self.node.context.tag, self.node.settings.home.name)

    def _stop(self) -> None:
        self.operations.close(timeout=0)

    def stop(self, *, timeout: float) -> bool:
        """Take nothing more on and wait for what is under way; False if some of it had not ended after `timeout` s.

        What had not begun is refused, and so is whoever waits for a clone. Looking goes on being answered. Supervised
        sandboxes have a checkpoint taken whose policy asks for one now.
        """
        self._is_ready = False
        self.events.emit("node.stopping", self.subject)
        for pool in self.pools().values():
            pool.refuse("is stopping with its node")
        deadline = time.monotonic() + timeout
        has_ended = self.operations.close(timeout=timeout)
        left = max(0.0, deadline - time.monotonic())
        return self.supervisor.checkpoint_before_drain(timeout=left) and has_ended

    def check_ready(self) -> None:
        """Raise Busy before the pools are open and once the service is stopping."""
        if not self._is_ready:
            raise Busy("the node is starting or stopping", remediation="ask again soon")

    def check(self) -> None:
        """Raise what ended the tending of a pool, the supervision, the watching or the fence, if anything did."""
        for pool in self.pools().values():
            pool.check()
        self.supervisor.statuses()
        self.watch.check()
        self.fence.check()
        self._elsewhere.check()

    def _hear(self, event: Event) -> None:
        figures = {key: one for key, one in event.details.items() if isinstance(one, (int, float))}
        self.observing.telemetry.happened(event.what, sandbox=event.sandbox, **figures)
        if event.what == "checkpoint.complete" and not event.details["skipped"]:
            with contextlib.suppress(OSError, LockTimeout):  # it is nobody's then, as after a kill
                self.owners.inherit(SnapshotId(str(event.details["snapshot"])), event.sandbox)
        kind = _RECOVERIES.get(event.what)
        if kind is not None:
            with contextlib.suppress(OSError, LockTimeout):  # our own disk: the watch's next look tells
                self.watch.look_at(event.sandbox)
            self.events.emit(kind, subject("sandbox", event.sandbox, event.name), **event.details)

    def _check_limit(self, sandbox: SandboxId) -> None:
        """Raise LimitReached where whoever made the sandbox may have no more snapshots; that is told once."""
        owner = self.owners.of(sandbox)
        caller = self.tokens.caller_of(owner) if owner is not None else None
        try:
            if caller is not None:
                self.owners.check_snapshots(caller)
        except LimitReached as error:
            if sandbox not in self._over_limit:
                self._over_limit.add(sandbox)
                name = self.context.journal.find(sandbox).name
                self.events.emit("snapshot.refused", subject("sandbox", sandbox, name), why=error.cause)
            raise
        self._over_limit.discard(sandbox)

    # --- sandboxes and snapshots -----------------------------------------------------------------------------------

    def sandbox(self, reference: str) -> Sandbox:
        """The sandbox of this name, id or beginning of an id; raises SandboxNotFound."""
        return self.node.sandbox(reference)

    def snapshot(self, reference: str) -> Snapshot:
        """The snapshot of this name, id or beginning of an id; raises SnapshotNotFound."""
        return self.node.snapshot(reference)

    def has_sandbox(self, sandbox: SandboxId) -> bool:
        """Whether there is a sandbox of this id."""
        try:
            self.context.journal.find(sandbox)
        except SandboxNotFound:
            return False
        return True

    @contextmanager
    def changing(self, reference: str) -> Generator[Sandbox]:
        """The sandbox, for a block that changes it: what became of it is told when the block ends, however it does.

        Raises Busy while as many others as may wait for this sandbox do.
        """
        sandbox = self.sandbox(reference)
        with self.crowd.one(sandbox.id):
            try:
                yield sandbox
            finally:
                self.noticed(sandbox.id)

    def noticed(self, *sandboxes: SandboxId) -> None:
        """Tell what became of these sandboxes, and of snapshots."""
        for sandbox in sandboxes:
            self.watch.look_at(sandbox)

    def made(self, caller: Caller, *sandboxes: Sandbox) -> None:
        """Remember who made these sandboxes, and tell of them; where that cannot be remembered they are removed.

        They would be nobody's, and their maker never hears of them.
        """
        with ExitStack() as undo:
            for sandbox in sandboxes:
                undo.callback(sandbox.remove, force=True)
            for sandbox in sandboxes:
                self.owners.add("sandbox", sandbox.id, caller)
            undo.pop_all()
        self.noticed(*(sandbox.id for sandbox in sandboxes))

    def forget_supervision(self, sandbox: Sandbox) -> None:
        """Watch over a sandbox no longer, also where its spec asks for it."""
        self.supervisor.forget(sandbox)
        if policy_of(sandbox.spec) is not None:  # its spec would ask again
            remember_supervised(self.node.context, sandbox.id, Supervised(Policy(restart=Restart.NO)))

    # --- pools -----------------------------------------------------------------------------------------------------

    def _levels(self) -> dict[str, dict[str, object]]:
        now = {name: pool.statistics() for name, pool in self.pools().items()}
        return {
            name: {"parked": one.parked, "leased": one.leased, "restoring": one.restoring, "waiting": one.waiting}
            for name, one in now.items()
        }

    def _close_pools(self) -> None:
        while self._pools:
            self._pools.popitem()[1].close()

    def create(self, spec: PoolSpec) -> Pool:
        """Make a pool and begin to fill it."""
        self.node.create_pool(spec)
        pool = self.open(spec.name)
        self.watch.look()
        return pool

    def open(self, name: str) -> Pool:
        """The pool of this name, opened if it was not."""
        with self._lock:
            if name not in self._pools:
                self._pools[name] = self.node.open_pool(name)
            return self._pools[name]

    def pool(self, name: str) -> Pool:
        """A pool, opened if somebody else has made it meanwhile; raises NotFound, also when it was drained."""
        found = self._pools.get(name)
        return self.open(name) if found is None else found

    def pools(self) -> dict[str, Pool]:
        with self._lock:
            return dict(self._pools)

    def drain(self, name: str, progress: Progress, *, timeout: float | None) -> None:
        """Drain a pool for good: it stays known, empty, until it is removed. Raises Cancelled: it is open again."""
        pool = self.pool(name)
        try:
            with progress.waiting(pool.look_again):
                self.node.drain_pool(pool, timeout=timeout, check=progress.check)
        except Cancelled:
            self._open_again(pool)
            raise
        self._drop_drained(name)

    def _drop_drained(self, name: str) -> None:
        with self._lock:
            self._pools.pop(name, None)
        self.watch.look()

    def _open_again(self, pool: Pool) -> None:
        """Open a pool anew whose drain was cancelled; where the service ends, the next one goes on draining."""
        with self._lock:
            if self._pools.get(pool.name) is not pool:
                return  # another drain of it was cancelled too
            del self._pools[pool.name]
        pool.close()
        if self._is_ready:
            self.node.forget_drain(pool.name)
            self.open(pool.name)

    def _take_up(self, name: str) -> None:
        """Open a pool, and go on with what an earlier life of the service, or another process, had begun."""
        self.open(name)
        drains = self.node.drains()
        if name in drains:
            self._draining.submit(self._go_on_draining, name, drains[name])

    def _go_on_draining(self, name: str, timeout: float | None) -> None:
        """Where this one ends first, the next goes on."""
        try:
            self.node.drain_pool(self.pool(name), timeout=timeout)
            self._drop_drained(name)
        except (Unavailable, NotFound):  # closed with the service, or removed
            return
        except Exception as error:  # noqa: BLE001 - nobody waits for it; a pool that failed tells so in `check`
            _log.error("pool.drain.failed", pool=name, error=repr(error), exc_info=error)

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
        finally:
            self.watch.look()

    def uptime(self) -> float:
        """Seconds since the service began."""
        return time.time() - self.started_at

    def facts(self) -> shown.Node:
        """What the node is and has, as `GET /v1/node` answers."""
        return facts_of(self)
