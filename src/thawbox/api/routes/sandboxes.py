"""Sandboxes: made, looked at, checkpointed, forked, frozen, stopped, watched over, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal, cast

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from thawbox import shapes, views
from thawbox.api import shown
from thawbox.api.access import Reader, User
from thawbox.api.answers import (
    EVENT_STREAM,
    HEARTBEAT,
    Answer,
    Body,
    Carried,
    Injected,
    Labels,
    Media,
    Pages,
    Reference,
    carry_out,
    event_stream,
    read_labels,
    resource,
    sse,
    to_json,
)
from thawbox.api.events import HEARTBEAT_SECONDS
from thawbox.api.operations import LIFE, PATIENCE, Progress
from thawbox.api.service import Service
from thawbox.api.tokens import Caller, Scope
from thawbox.api.undoing import holder_of, unmake_sandbox, unmake_snapshot
from thawbox.errors import Cancelled, Forbidden, InvalidRequest, SandboxNotFound
from thawbox.host.init_log import LogCursor, LogRecord
from thawbox.lifecycle import ALIVE
from thawbox.model import Health, Mount, Publish, Restart, SandboxId, Spec
from thawbox.restart_plan import Policy
from thawbox.sandbox import Record, RestoreTimes, Sandbox, Snapshot
from thawbox.sandbox.checkpointing import Mode

Positive = Annotated[float, Field(gt=0, le=366 * 86_400)]
MOST_CLONES = 256
"""In one request: each is a restore, and all of them are undone when one fails."""
_NESTED = {"mounts": Mount, "publish": Publish}


def _known_fields(given: Any) -> Any:
    """The spec as it was given; a field that there is not is an error, not a wish unheard."""
    if isinstance(given, dict):
        _check_fields(cast("dict[str, object]", given), Spec, "spec")
    return given  # pyright: ignore[reportUnknownVariableType]


def _check_fields(given: dict[str, object], kind: type[Any], where: str) -> None:
    unknown = sorted(set(given) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0][:80]!r}")
    for name, below in _NESTED.items() if kind is Spec else ():
        for one in cast("list[object]", given[name]) if isinstance(given.get(name), list) else ():
            if isinstance(one, dict):
                _check_fields(cast("dict[str, object]", one), below, f"{where}.{name}")
    if kind is Spec and isinstance(given.get("health"), dict):
        _check_fields(cast("dict[str, object]", given["health"]), Health, f"{where}.health")


GivenSpec = Annotated[Spec, BeforeValidator(_known_fields)]


class Run(Body):
    spec: GivenSpec


class Checkpoint(Body):
    mode: Literal["auto", "full", "delta"] = "auto"
    stop: bool = False
    skip_if_clean: bool = False
    name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    ttl: Positive | None = None
    pinned: bool = False
    when_ready: bool = False


class Fork(Body):
    count: Annotated[int, Field(ge=1, le=MOST_CLONES)] = 1
    name: str = ""
    eager: bool = False


class Stop(Body):
    timeout: Annotated[float, Field(ge=0, le=3600)] | None = None


class GivenHealth(Body):
    probe: str
    interval: Positive = 10.0
    timeout: Positive = 5.0
    threshold: Annotated[int, Field(ge=1, le=1000)] = 3


class Supervise(Body):
    restart: Literal["no", "on-failure", "always"] = "on-failure"
    health: GivenHealth | None = None
    checkpoint_every: Annotated[float, Field(ge=0, le=366 * 86_400)] = 0.0
    checkpoint_on_pressure: bool = False
    checkpoint_on_drain: bool = False
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    spare: bool = False


def check_spec_allowed(spec: Spec, caller: Caller) -> None:
    """Raise Forbidden for a spec that reaches into the host, unless the caller is an admin."""
    if caller.scope >= Scope.ADMIN:
        return
    wishes = {
        "mounts": bool(spec.mounts),
        "publish": bool(spec.publish),
        "rootfs": spec.rootfs != "SYSTEM",
    }
    wished = [name for name, is_wished in wishes.items() if is_wished]
    if wished:
        raise Forbidden(f"a spec with {', '.join(wished)} reaches into the host: that needs the scope admin")


def router(service: Service) -> APIRouter:
    routes = resource("/v1/sandboxes", "sandboxes")
    _looking(service, routes)
    _changing(service, routes)
    _snapshotting(service, routes)
    _living(service, routes)
    return routes


# --- looking ---------------------------------------------------------------------------------------------------------


def _looking(service: Service, routes: APIRouter) -> None:
    def brief(record: Record, owners: dict[str, str]) -> shown.Sandbox:
        return {
            **views.sandbox_brief(record), "memory": _memory_of(service, record), "owner": owners.get(record.id),
            "pool": views.pool_of(record),
        }  # fmt: skip

    @routes.get("")
    def list_sandboxes(
        page: Pages,
        _: Reader,
        *,
        all: bool = False,
        label: Labels = [],  # noqa: B006 - the query's word
    ) -> Answer[shown.SandboxPage]:
        """Sandboxes that have processes; with `all` also those that were suspended, ended or lost. Oldest first."""
        wanted = read_labels(label).items()
        seen = [_observed(service, record) for record in service.context.journal.all()]
        found = [one for one in seen if one is not None and (all or one.phase in ALIVE)]
        found = [record for record in found if wanted <= record.spec.labels.items()]
        owners = service.owners.all("sandbox")
        records, more = page.of(found, lambda record: (record.created_at, record.id))
        return Answer({"sandboxes": [brief(record, owners) for record in records], "next": more})

    @routes.get("/{ref}")
    def show_sandbox(ref: Reference, _: Reader) -> Answer[shown.SandboxWhole]:
        """A sandbox's spec and all that is known of it now."""
        record = service.sandbox(ref).record
        owner = service.owners.of(record.id)
        return Answer({**views.sandbox_whole(service.context, record), "owner": owner, "pool": views.pool_of(record)})

    @routes.get("/{ref}/stats")
    def show_stats(ref: Reference, _: Reader) -> Answer[shapes.SandboxStats]:
        """Memory, CPU and tasks now."""
        return Answer(views.sandbox_stats(service.sandbox(ref)))

    @routes.get("/{ref}/preflight")
    def show_preflight(ref: Reference, _: Reader) -> Answer[shapes.Preflight]:
        """What in it cannot be frozen, or may not."""
        return Answer(views.preflight_findings(service.sandbox(ref).preflight()))

    @routes.get("/{ref}/logs")
    async def show_logs(
        ref: Reference, _: Reader, *, follow: bool = False,
        after: Annotated[str, Query(max_length=80, description="`after` of a record: go on after it")] = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Answer[shown.LogRecords] | Annotated[Response, Media(EVENT_STREAM, shown.PlacedLogRecord)]:  # fmt: skip
        """What its programs printed; with `follow` as a stream, until it ends."""
        cursor = _read_cursor(after)
        sandbox = await to_thread.run_sync(service.sandbox, ref)
        if follow:
            return event_stream(_stream_of(service, sandbox, cursor))
        records = await to_thread.run_sync(partial(_first, sandbox.logs(after=cursor), limit))
        return Answer({"records": [_log_shown(record) for record in records]})


def _observed(service: Service, record: Record) -> Record | None:
    if record.phase not in ALIVE:
        return record
    try:
        return Sandbox(service.context, record).record
    except SandboxNotFound:
        return None


def _memory_of(service: Service, record: Record) -> int | None:
    if record.phase not in ALIVE:
        return None
    try:
        return service.context.cgroup(record.id).stats().memory
    except (SandboxNotFound, OSError):
        return None


def _first(records: Iterator[LogRecord], limit: int) -> list[LogRecord]:
    return [record for record, _ in zip(records, range(limit), strict=False)]


def _log_shown(record: LogRecord) -> shown.PlacedLogRecord:
    return {**views.log_record(record), "after": f"{record.offset}-{record.time_ns}"}


def _read_cursor(text: str) -> LogCursor | None:
    if not text:
        return None
    offset, _, time_ns = text.partition("-")
    if not (offset.isascii() and offset.isdigit() and time_ns.isascii() and time_ns.isdigit()):
        raise InvalidRequest("`after` is none of ours", remediation="give `after` of a record")
    return msgspec.convert({"offset": int(offset), "time_ns": int(time_ns)}, LogCursor)


LOG_PAUSE = 0.2


async def _stream_of(service: Service, sandbox: Sandbox, after: LogCursor | None) -> AsyncIterator[str]:
    """Log records as they come: a look five times a second in a borrowed thread, none held meanwhile."""
    quiet = 0.0
    while not service.ending.is_set():
        try:
            state = await to_thread.run_sync(lambda: sandbox.state)  # first: what it printed last is read below
            records = await to_thread.run_sync(partial(_first, sandbox.logs(after=after), 1000))
        except SandboxNotFound:
            return
        for record in records:
            after = LogCursor(record.offset, record.time_ns)
            yield sse("log", to_json(_log_shown(record)))
        if records:
            quiet = 0.0
            continue
        if state not in ALIVE:
            yield sse("end", to_json({"state": state.value}))
            return
        await asyncio.sleep(LOG_PAUSE)  # the log is a file that the sandbox writes: nothing to wait on
        quiet += LOG_PAUSE
        if quiet >= HEARTBEAT_SECONDS:
            quiet = 0.0
            yield HEARTBEAT


# --- making and changing ---------------------------------------------------------------------------------------------


def _changing(service: Service, routes: APIRouter) -> None:
    @routes.post("", status_code=201)
    async def run_sandbox(run: Run, request: Request, caller: User) -> Carried[shapes.Started]:
        """Start a sandbox; it answers once that is ready."""
        check_spec_allowed(run.spec, caller)

        def act(progress: Progress) -> shapes.Started:
            progress.check()
            with service.owners.room_for(caller, [run.spec.memory]):
                sandbox, create_ms = service.node.run_timed(run.spec)
                service.made(caller, sandbox)
            if progress.is_cancelled:
                unmake_sandbox(service, sandbox)
                progress.check()
            return views.started(sandbox, create_ms)

        return await carry_out(service, request, caller, "sandbox.run", act, lane=LIFE, status=201)

    @routes.delete("/{ref}", status_code=204)
    def remove_sandbox(ref: Reference, caller: User, *, force: bool = False) -> None:
        """Remove an ended sandbox and its files; `force` kills a running one. Snapshots stay, but the supervisor's."""
        with service.changing(ref) as sandbox:
            service.owners.check_own(sandbox.id, caller, what=f"the sandbox {sandbox.name}")
            sandbox.remove(force=force)


def _snapshotting(service: Service, routes: APIRouter) -> None:
    @routes.post("/{ref}/checkpoint", status_code=201)
    async def checkpoint_sandbox(ref: Reference, request: Request, caller: User, wish: Checkpoint | None = None) -> (
        Carried[shapes.Checkpointed]
    ):  # fmt: skip
        """Make a durable snapshot; it answers when that is whole."""
        wished = wish or Checkpoint()

        def act(progress: Progress) -> shapes.Checkpointed:
            progress.check()
            service.owners.check_snapshots(caller)
            service.owners.check_names([wished.name] if wished.name else (), caller)
            holder = holder_of(service, wished.name)
            with service.changing(ref) as sandbox:
                options: dict[str, Any] = wished.model_dump() | {"mode": Mode(wished.mode)}
                made = sandbox.checkpoint(**options)
            assert made.report is not None  # noqa: S101 - a snapshot just made has one
            if not made.report.skipped:
                is_all = wished.stop  # what is left of the sandbox
                if progress.is_cancelled and not is_all and unmake_snapshot(
                    service, made.id, name=wished.name, holder=holder
                ):  # fmt: skip
                    progress.check()
                service.owners.add("snapshot", made.id, caller)
            service.watch.look()
            return views.checkpoint_report(made.report)

        return await carry_out(service, request, caller, "sandbox.checkpoint", act, lane=LIFE, status=201)

    @routes.post("/{ref}/fork", status_code=201)
    async def fork_sandbox(ref: Reference, request: Request, caller: User, wish: Fork | None = None) -> (
        Carried[shown.Forked]
    ):  # fmt: skip
        """Checkpoint a running sandbox and make clones, which run beside it."""
        wished = wish or Fork()

        def act(progress: Progress) -> shown.Forked:
            progress.check()
            service.owners.check_snapshots(caller)
            room = partial(service.owners.room_for, caller)
            with service.changing(ref) as sandbox, room([sandbox.spec.memory] * wished.count):
                snapshot = sandbox.checkpoint()
                service.owners.add("snapshot", snapshot.id, caller)
                try:
                    made = make_clones(progress, snapshot, wished.count, wished.name, eager=wished.eager)
                except Cancelled:
                    unmake_snapshot(service, snapshot.id)
                    raise
                service.made(caller, *(one for one, _ in made))
            assert snapshot.report is not None  # noqa: S101 - a snapshot just made has one
            service.watch.look()
            clones = [views.restored(one, times) for one, times in made]
            return {"sandboxes": clones, "snapshot": views.checkpoint_report(snapshot.report)}

        return await carry_out(service, request, caller, "sandbox.fork", act, lane=LIFE, status=201)


def make_clones(
    progress: Progress, snapshot: Snapshot, count: int, name: str, *, eager: bool, **given: Any
) -> list[tuple[Sandbox, RestoreTimes]]:
    """Clones of a snapshot, told one by one; all are undone when one fails or the operation is cancelled."""
    done = 0

    def another() -> None:
        nonlocal done
        done += 1
        progress.tell(done, count, "clones")

    return snapshot.clones_timed(count, name=name, eager=eager, progress=another, **given)


# --- its life --------------------------------------------------------------------------------------------------------


def _living(service: Service, routes: APIRouter) -> None:
    @routes.post("/{ref}/freeze")
    def freeze_sandbox(ref: Reference, _: User) -> Answer[shapes.SandboxState]:
        """Stop every task until it is thawed: memory is held, no CPU is used."""
        with service.changing(ref) as sandbox:
            sandbox.freeze()
        return Answer(views.sandbox_state(sandbox))

    @routes.post("/{ref}/thaw")
    def thaw_sandbox(ref: Reference, _: User) -> Answer[shapes.SandboxState]:
        """Let every task run again, where it was."""
        with service.changing(ref) as sandbox:
            sandbox.thaw()
        return Answer(views.sandbox_state(sandbox))

    @routes.post("/{ref}/stop")
    async def stop_sandbox(ref: Reference, request: Request, caller: User, wish: Stop | None = None) -> (
        Carried[shapes.SandboxState]
    ):  # fmt: skip
        """End the main program by SIGTERM, after `timeout` seconds by SIGKILL. Files, logs and snapshots stay."""
        timeout = wish.timeout if wish is not None else None

        def act(progress: Progress) -> shapes.SandboxState:
            progress.check()
            with service.changing(ref) as sandbox:
                sandbox.stop(timeout=timeout)
            return views.sandbox_state(sandbox)

        return await carry_out(service, request, caller, "sandbox.stop", act, lane=PATIENCE)

    @routes.post("/{ref}/give", status_code=204)
    def give_to_sandbox(ref: Reference, given: Injected, _: User) -> None:
        """Give its programs secrets and environment now; they are stored nowhere."""
        opened = given.opened()
        with service.changing(ref) as sandbox:
            sandbox.give(**opened)

    @routes.put("/{ref}/supervision")
    async def supervise_sandbox(ref: Reference, request: Request, caller: User, wish: Supervise) -> (
        Carried[shapes.Supervision]
    ):  # fmt: skip
        """Have it brought back when it dies. When this answers there is a snapshot to recover from."""

        def act(progress: Progress) -> shapes.Supervision:
            progress.check()
            service.owners.check_snapshots(caller)
            with service.changing(ref) as sandbox:
                service.supervisor.supervise(sandbox, _policy_of(wish))
            service.watch.look()
            return _supervision_of(service, sandbox.id)

        return await carry_out(service, request, caller, "sandbox.supervise", act, lane=LIFE)

    @routes.get("/{ref}/supervision")
    def show_supervision(ref: Reference, _: Reader) -> Answer[shapes.Supervision]:
        """What is done to keep it alive."""
        return Answer(_supervision_of(service, service.sandbox(ref).id))

    @routes.delete("/{ref}/supervision", status_code=204)
    def forget_supervision(ref: Reference, _: User) -> None:
        """Watch over it no longer; what was recovered is forgotten too."""
        with service.changing(ref) as sandbox:
            service.forget_supervision(sandbox)


def _policy_of(wish: Supervise) -> Policy:
    health = Health(**wish.health.model_dump()) if wish.health is not None else None
    options = wish.model_dump(exclude={"restart", "health"})
    return Policy(restart=Restart(wish.restart), health=health, **options)


def _supervision_of(service: Service, sandbox: SandboxId) -> shapes.Supervision:
    for status in service.supervisor.statuses():
        if status.sandbox == sandbox:
            return views.supervision(status)
    raise SandboxNotFound(f"the sandbox {sandbox} is not supervised", remediation="PUT …/supervision")


__all__ = ["GivenSpec", "check_spec_allowed", "make_clones", "router"]
