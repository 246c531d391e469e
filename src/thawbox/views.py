"""What the node shows, as JSON objects: the CLI prints with --json what the service answers, because both ask here.

Rule: nothing is imported before it is needed: every command waits for imports.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from thawbox import shapes
    from thawbox.host.init_log import LogRecord
    from thawbox.host.preflight import Finding
    from thawbox.model import SnapshotId
    from thawbox.pool import Lease, Pool, PoolSpec
    from thawbox.sandbox import CheckpointReport, Context, Record, RestoreTimes, Sandbox
    from thawbox.sandbox.templates import Template
    from thawbox.store import GcReport, Problem, Store
    from thawbox.store import Record as Stored
    from thawbox.supervisor import Status

_OF_A_CLOSED_POOL = ("parked", "leased", "restoring", "waiting")
POOL_OWNER = "pool:"


def timestamp(moment: float | None) -> str | None:
    """A moment (seconds since 1970) as JSON carries it: ISO 8601 in UTC, with milliseconds."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Sandboxes


def _sandbox(record: Record) -> shapes.SandboxSeen:
    return {
        "id": record.id,
        "name": record.name,
        "state": record.phase.value,
        "created_at": timestamp(record.created_at),
        "address": record.address or None,
        "parent_snapshot": record.parent_snapshot,
    }


def sandbox_brief(record: Record) -> shapes.SandboxBrief:
    """A sandbox as `ps` lists it."""
    return {**_sandbox(record), "command": list(record.spec.command), "labels": record.spec.labels}


def sandbox_whole(context: Context, record: Record) -> shapes.SandboxKnown:
    """A sandbox as `inspect` shows it: its spec, and all that is known of it now."""
    import msgspec

    from thawbox.lifecycle import ALIVE
    from thawbox.sandbox.observe import exit_status

    is_alive = record.phase in ALIVE
    return {
        **_sandbox(record),
        "pid": _pid_of_init(record.keeper_pid) if is_alive else None,
        "cgroup": str(context.cgroup(record.id).freezer_dir) if is_alive else None,
        "hostname": record.hostname,
        "machine_id": record.machine_id,
        "rootfs": {"kind": record.rootfs_kind.value, "digest": record.rootfs_digest},
        "layers": {name: list(digests) for name, digests in record.layers.items()},
        "ended_at": timestamp(record.ended_at),
        "ended_why": record.ended_why or None,
        "exit_status": None if is_alive else exit_status(context, record),
        "recoveries": recoveries_of(context, record),
        "spec": msgspec.to_builtins(record.spec),
    }


def recoveries_of(context: Context, record: Record) -> list[shapes.Recovery]:
    """The recoveries that brought a sandbox back, oldest first."""
    from thawbox.sandbox import recovering

    found = recovering.recoveries_of(context, record.id)
    shown = [{**one, "at": timestamp(cast("float", one["at"]))} for one in found]
    return cast("list[shapes.Recovery]", shown)


def _pid_of_init(keeper: int) -> int | None:
    """Init is the keeper's one child; all others are below it."""
    from thawbox.host.proc import children

    return next(iter(children(keeper)), None)


def sandbox_state(sandbox: Sandbox) -> shapes.SandboxState:
    """A sandbox after something was done to it."""
    return {"id": sandbox.id, "name": sandbox.name, "state": sandbox.state.value}


def started(sandbox: Sandbox, create_ms: float) -> shapes.Started:
    """A sandbox as `run` tells of it."""
    return {**sandbox_state(sandbox), "create_ms": round(create_ms, 3)}


def sandbox_stats(sandbox: Sandbox) -> shapes.SandboxStats:
    """What a sandbox uses now, and what of its memory is its own, shared, and its fair share of both (bytes)."""
    found = {**sandbox_state(sandbox), **asdict(sandbox.stats()), **asdict(sandbox.memory_use())}
    return cast("shapes.SandboxStats", found)


def preflight_findings(findings: Iterable[Finding]) -> shapes.Preflight:
    """What a sandbox has that cannot be frozen, or may not."""
    found = list(findings)
    return {"ok": not any(one.blocking for one in found), "findings": [cast("Finding", asdict(one)) for one in found]}


def log_record(record: LogRecord) -> shapes.LogRecord:
    """A piece of what a sandbox's programs printed."""
    return {
        "time": timestamp(record.time_ns / 1e9),
        "stream": record.stream.name.lower(),
        "session": record.session,
        "text": record.content.decode("utf-8", "replace"),
    }


def restored(sandbox: Sandbox, times: RestoreTimes) -> shapes.Restored:
    """A sandbox that was restored or cloned, with how long it took."""
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "restore_ms": round(times.restore_ms, 3),
        "ready_ms": round(times.ready_ms, 3),
    }


def supervision(status: Status) -> shapes.Supervision:
    """What is done to keep a sandbox alive."""
    import msgspec

    policy = msgspec.to_builtins(status.policy)
    return {"id": status.sandbox, "name": status.name, "state": status.state.value, "why": status.why or None,
            "policy": policy}  # fmt: skip


# Snapshots


def checkpoint_report(report: CheckpointReport) -> shapes.Checkpointed:
    """A checkpoint that was made."""
    return {
        "id": report.id,
        "parent": report.parent,
        "kind": report.kind.value,
        "frozen_ms": round(report.frozen_ms, 3),
        "total_ms": round(report.total_ms, 3),
        "bytes": report.bytes,
        "skipped": report.skipped,
        "freeze": report.freeze.value,
        "why_plain": report.why_plain,
    }


def snapshot_brief(stored: Stored) -> shapes.SnapshotBrief:
    """A snapshot as `snapshots ls` lists it."""
    manifest, facts = stored.manifest, stored.facts
    return {
        "id": stored.id,
        "names": list(facts.names),
        "kind": manifest.kind.value,
        "parent": manifest.parent,
        "sandbox": cast("shapes.MadeOf", {"id": manifest.body.get("sandbox"), "name": manifest.body.get("name")}),
        "created_at": timestamp(manifest.created_at),
        "bytes": stored.bytes,
        "labels": facts.labels,
        "pinned": facts.pinned,
        "expires_at": timestamp(facts.expires_at),
        "used_at": timestamp(facts.used_at or None),
    }


def snapshot_whole(store: Store, snapshot: SnapshotId) -> shapes.SnapshotKnown:
    """A snapshot as `snapshots show` shows it."""
    import msgspec

    stored = store.record(snapshot)
    manifest = stored.manifest
    return {
        **snapshot_brief(stored),
        "chain": list(store.chain(snapshot)),
        "files": msgspec.to_builtins(manifest.files),
        "layers": msgspec.to_builtins(manifest.layers),
        "compat": msgspec.to_builtins(manifest.compat),
        "body": dict(manifest.body),
    }


def snapshot_chain(store: Store, snapshot: SnapshotId) -> shapes.SnapshotChain:
    """A snapshot and the parents it is a delta of, base first."""
    return {"chain": [snapshot_brief(store.record(link)) for link in store.chain(snapshot)]}


def verification(problems: Iterable[Problem]) -> shapes.Verification:
    """What is wrong with stored bytes."""
    found: list[shapes.Damage] = [{"snapshot": one.snapshot, "file": one.file, "cause": one.cause} for one in problems]
    return {"ok": not found, "problems": found}


def collection(report: GcReport) -> shapes.Collection:
    """What `gc` removed, or would."""
    return {
        "removed": [{"id": one.id, "reason": one.reason, "bytes": one.frees} for one in report.removed],
        "kept": [{"id": one.id, "reason": one.reason} for one in report.kept],
        "freed_bytes": report.freed_bytes,
        "dry_run": report.is_dry_run,
    }


# Templates and pools


def template_brief(template: Template) -> shapes.TemplateBrief:
    """A template as `template ls` lists it."""
    return {
        "name": template.name,
        "snapshot": template.snapshot,
        "command": list(template.spec.command),
        "bytes": template.bytes,
        "created_at": timestamp(template.created_at),
        "rebuilt_at": timestamp(template.rebuilt_at),
        "exposures": [str(exposure) for exposure in template.exposures],
    }


def template_whole(template: Template) -> shapes.Template:
    """A template as `template show` shows it."""
    import msgspec

    return {**template_brief(template), "spec": msgspec.to_builtins(template.spec)}


def pool_now(spec: PoolSpec, pool: Pool | None) -> shapes.Pool:
    """A pool as it is said to be, and, where it is open, as it is."""
    now: dict[str, object] = asdict(pool.statistics()) if pool is not None else dict.fromkeys(_OF_A_CLOSED_POOL, 0)
    return cast("shapes.Pool", {**asdict(spec), "open": pool is not None and not pool.has_failed, **now})


def leased(pool: Pool, lease: Lease, acquire_ms: float) -> shapes.Leased:
    """What whoever acquires is told."""
    return {
        "id": lease.sandbox.id, "name": lease.sandbox.name, "pool": pool.name,
        "acquire_ms": round(acquire_ms, 3), "lease": lease.id, "until": lease.until,
    }  # fmt: skip


def pool_of(record: Record) -> str | None:
    """The pool that a sandbox belongs to, parked or leased."""
    return record.owner.removeprefix(POOL_OWNER) if record.owner.startswith(POOL_OWNER) else None


# The node


def recoveries(context: Context, records: Iterable[Record], *, limit: int) -> list[shapes.RecoveryOf]:
    """The last `limit` recoveries of these sandboxes, newest first."""
    found: list[shapes.RecoveryOf] = [
        {"sandbox": {"id": record.id, "name": record.name}, **one}
        for record in records
        for one in recoveries_of(context, record)
    ]
    return list(itertools.islice(sorted(found, key=lambda one: str(one["at"]), reverse=True), limit))
