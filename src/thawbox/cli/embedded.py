"""What commands ask of the node, done by the command itself: where no `thawbox serve` runs.

Every answer is the object that the command prints with --json; `served.Served` gives the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from thawbox import views
from thawbox.cli.output import counted

if TYPE_CHECKING:
    from thawbox.model import Spec
    from thawbox.node import Node
    from thawbox.pool import Pool
    from thawbox.restart_plan import Policy
    from thawbox.sandbox import Snapshot

Given = Mapping[str, Any]
Tell = Callable[[int, int], None]
"""Hears how much is done, and of how much."""


class Embedded:
    """The node of THAWBOX_HOME, opened by this command."""

    is_served = False

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- sandboxes --------------------------------------------------------------------------------------------

    def sandboxes(self, *, show_all: bool) -> list[Given]:
        from thawbox.lifecycle import ALIVE

        seen = [sandbox.record for sandbox in self._node.sandboxes()]
        return [views.sandbox_brief(record) for record in seen if show_all or record.phase in ALIVE]

    def inspect(self, name: str) -> Given:
        return views.sandbox_whole(self._node.context, self._node.sandbox(name).record)

    def stats(self, name: str) -> Given:
        return views.sandbox_stats(self._node.sandbox(name))

    def preflight(self, name: str) -> Given:
        return views.preflight_findings(self._node.sandbox(name).preflight())

    def run(self, spec: Spec) -> Given:
        return views.started(*self._node.run_timed(spec))

    def stop(self, name: str, *, timeout: float | None) -> Given:
        sandbox = self._node.sandbox(name)
        sandbox.stop(timeout=timeout)
        return views.sandbox_state(sandbox)

    def freeze(self, name: str) -> Given:
        sandbox = self._node.sandbox(name)
        sandbox.freeze()
        return views.sandbox_state(sandbox)

    def thaw(self, name: str) -> Given:
        sandbox = self._node.sandbox(name)
        sandbox.thaw()
        return views.sandbox_state(sandbox)

    def remove(self, name: str, *, force: bool) -> Given:
        from thawbox.host.cgroup import remove_node_group

        sandbox = self._node.sandbox(name)
        sandbox.remove(force=force)
        if not self._node.sandboxes():
            remove_node_group(self._node.context.layout, self._node.context.tag)
        return {"id": sandbox.id, "name": sandbox.name, "state": "removed"}

    def checkpoint(self, name: str, wish: Given) -> Given:
        from thawbox.sandbox.wishes import Mode

        given: Given = {**wish, "mode": Mode(wish["mode"])}
        return _report_of(self._node.sandbox(name).checkpoint(**given))

    def restore(self, reference: str, *, secrets: Mapping[str, bytes], environment: Mapping[str, str]) -> Given:
        return views.restored(*self._node.snapshot(reference).restore(secrets=secrets, environment=environment))

    def clone(
        self, reference: str, count: int, *, name: str, eager: bool, secrets: Mapping[str, bytes],
        environment: Mapping[str, str], tell: Tell,
    ) -> Given:  # fmt: skip
        made = self._node.snapshot(reference).clones_timed(
            count, name=name, eager=eager, progress=counted(count, tell), secrets=secrets, environment=environment
        )
        return {"sandboxes": [views.restored(one, times) for one, times in made]}

    def fork(self, reference: str, count: int, *, name: str, eager: bool, tell: Tell) -> Given:
        snapshot = self._node.sandbox(reference).checkpoint()
        made = snapshot.clones_timed(count, name=name, eager=eager, progress=counted(count, tell))
        return {"sandboxes": [views.restored(one, times) for one, times in made], "snapshot": _report_of(snapshot)}

    def supervise(self, name: str, policy: Policy) -> Given:
        from thawbox.supervisor import ask_for_supervision

        sandbox = self._node.sandbox(name)
        ask_for_supervision(self._node.context, sandbox, policy)
        return {"id": sandbox.id, "name": sandbox.name}

    def leave_alone(self, name: str) -> Given:
        """Supervise a sandbox no longer."""
        from thawbox.sandbox.recovering import stop_supervising

        sandbox = self._node.sandbox(name)
        stop_supervising(self._node.context, sandbox.record)
        return {"id": sandbox.id, "name": sandbox.name}

    # --- snapshots --------------------------------------------------------------------------------------------

    def snapshots(self, labels: Mapping[str, str]) -> list[Given]:
        records = self._node.context.store.records()
        return [views.snapshot_brief(one) for one in records if labels.items() <= one.facts.labels.items()]

    def snapshot(self, reference: str) -> Given:
        return views.snapshot_whole(self._node.context.store, self._node.context.store.resolve(reference))

    def chain(self, reference: str) -> Given:
        return views.snapshot_chain(self._node.context.store, self._node.context.store.resolve(reference))

    def flatten(self, reference: str, *, name: str) -> Given:
        return views.snapshot_brief(self._node.snapshot(reference).flatten(name=name).stored)

    def verify(self, references: Sequence[str], *, deep: bool, tell: Tell) -> Given:
        """All where none is named, also those whose manifest cannot be read."""
        from thawbox.store.recheck import verify_each

        store = self._node.context.store
        wanted = [store.resolve(reference) for reference in references] or sorted(store.catalog.ids())
        return {**views.verification(verify_each(store, wanted, deep=deep, tell=tell)), "verified": len(wanted)}

    def remove_snapshots(self, references: Sequence[str], *, cascade: bool) -> list[str]:
        store = self._node.context.store
        removed: list[str] = []
        for snapshot in [store.resolve(reference) for reference in references]:
            if snapshot not in removed:
                removed += store.remove(snapshot, cascade=cascade)
        return removed

    def collect(self, *, dry_run: bool, budget: int | None) -> Given:
        allowed = self._node.settings.disk_budget if budget is None else budget
        return views.collection(self._node.context.store.gc(budget=allowed, dry_run=dry_run))

    def change_snapshot(
        self, reference: str, *, name: str = "", labels: Mapping[str, str | None] | None = None,
        pinned: bool | None = None, ttl: float | None = None, never_expires: bool = False,
    ) -> Given:  # fmt: skip
        store = self._node.context.store
        snapshot = store.resolve(reference)
        if name:
            store.name(snapshot, name)
        for key, value in (labels or {}).items():
            store.label(snapshot, key, value)
        if pinned is not None:
            store.pin(snapshot, pinned=pinned)
        if ttl is not None or never_expires:
            store.expire(snapshot, None if ttl is None else store.now() + ttl)
        return views.snapshot_brief(store.record(snapshot))

    # --- templates --------------------------------------------------------------------------------------------

    def create_template(self, name: str, spec: Spec) -> Given:
        return views.template_brief(self._node.create_template(name, spec))

    def rebuild_template(self, name: str) -> Given:
        return views.template_brief(self._node.rebuild_template(name))

    def templates(self) -> list[Given]:
        return [views.template_brief(template) for template in self._node.templates()]

    def template(self, name: str) -> Given:
        return views.template_whole(self._node.template(name))

    def remove_template(self, name: str) -> None:
        self._node.remove_template(name)

    # --- pools: kept by this command for as long as it takes; what is parked stays when it ends ------------------

    def create_pool(self, name: str, wish: Given) -> Given:
        from thawbox.pool import PoolSpec

        self._node.create_pool(PoolSpec(name, **wish))
        return self.pool(name)

    def pools(self) -> list[Given]:
        return [self.pool(spec.name) for spec in self._node.pools()]

    def pool(self, name: str) -> Given:
        from thawbox.sandbox.parking import CloneParking

        spec = self._node.pool(name)
        found = CloneParking(self._node.context, name, spec.template).inherited()
        now = {"parked": len(found.parked), "leased": len(found.leased), "restoring": 0, "waiting": 0, "open": False}
        return {**asdict(spec), **now}

    def acquire(self, name: str, *, timeout: float, ttl: float | None) -> Given:
        with self._kept(name) as pool:
            begun = time.perf_counter()
            lease = pool.acquire(timeout=timeout, ttl=ttl)
            return views.leased(pool, lease, (time.perf_counter() - begun) * 1000)

    def release(self, reference: str, *, reset: bool) -> Given:
        released = self._lease_of(reference)
        with self._kept(released["pool"]) as pool:
            pool.release(released["lease"], reset=reset)
        return released

    def drain(self, name: str, *, timeout: float | None) -> None:
        self._node.drain_pool(self._node.open_pool(name, share_memory=False), timeout=timeout)

    def roll(self, name: str, *, timeout: float | None) -> None:
        with self._kept(name) as pool:
            pool.roll(timeout=timeout)

    def remove_pool(self, name: str, *, force: bool) -> None:
        self._node.remove_pool(name, force=force)

    @contextlib.contextmanager
    def _kept(self, name: str) -> Generator[Pool]:
        with self._node.open_pool(name, share_memory=False) as pool:
            yield pool

    def _lease_of(self, reference: str) -> Given:
        leased = [sandbox.record for sandbox in self._node.sandboxes() if sandbox.record.lease]
        record = next((one for one in leased if one.lease == reference), None) or self._node.sandbox(reference).record
        if not record.lease:
            raise not_leased(record.name)
        return {"id": record.id, "name": record.name, "pool": views.pool_of(record) or "", "lease": record.lease}


def not_leased(name: str) -> Exception:
    """What is said of a sandbox that cannot be released."""
    from thawbox.errors import InvalidRequest

    return InvalidRequest(f"{name} is not leased from a pool", remediation="`thawbox rm` removes other sandboxes")


def _report_of(snapshot: Snapshot) -> Given:
    assert snapshot.report is not None  # noqa: S101 - a snapshot just made has one
    return views.checkpoint_report(snapshot.report)
