"""Snapshots: looked at, named, kept, cloned, restored, verified, moved, removed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from thawbox import shapes, views
from thawbox.api import shown
from thawbox.api.access import Admin, Reader, User
from thawbox.api.answers import (
    LONGEST_TEXT,
    Answer,
    Body,
    Carried,
    Injected,
    Labels,
    Pages,
    Reference,
    carry_out,
    read_labels,
    resource,
)
from thawbox.api.operations import LIFE, STORE, Progress
from thawbox.api.routes.sandboxes import MOST_CLONES, make_clones
from thawbox.api.service import Service
from thawbox.api.undoing import holder_of, unmake_sandbox, unmake_snapshot
from thawbox.api.watch import subject
from thawbox.model import SandboxId, SnapshotId
from thawbox.sandbox import Snapshot
from thawbox.sandbox.body import read_body
from thawbox.store import Problem
from thawbox.store import Record as Stored
from thawbox.store.recheck import verify_each
from thawbox.store.transfer import Progress as Moved
from thawbox.store.transfer import TransferReport


class Clone(Injected):
    count: Annotated[int, Field(ge=1, le=MOST_CLONES)] = 1
    name: str = ""
    eager: bool = False


class Verify(Body):
    deep: bool = False


class VerifyMany(Verify):
    snapshots: list[Annotated[str, Field(max_length=LONGEST_TEXT)]] = Field(default_factory=list)


class Flatten(Body):
    name: str = ""


class Collect(Body):
    dry_run: bool = False
    budget: Annotated[int, Field(ge=0)] | None = None


class Push(Body):
    snapshot: str
    url: str
    repair: bool = False


class Pull(Body):
    snapshot: str
    url: str
    name: str = ""


class Change(Body):
    """What is to change: `labels` with null are removed; `ttl` null lets it stay for good."""

    add_names: list[str] = Field(default_factory=list)
    remove_names: list[str] = Field(default_factory=list)
    labels: dict[str, str | None] = Field(default_factory=dict)
    pinned: bool | None = None
    ttl: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None


def router(service: Service) -> APIRouter:
    routes = resource("/v1/snapshots", "snapshots")
    _looking(service, routes)
    _many(service, routes)
    _changing(service, routes)
    _reviving(service, routes)
    return routes


def _looking(service: Service, routes: APIRouter) -> None:
    def brief(stored: Stored, lengths: dict[str, int], owners: dict[str, str]) -> shown.Snapshot:
        found = views.snapshot_brief(stored)
        return {
            **found, "sandbox_name": found["sandbox"]["name"], "chain_length": lengths.get(stored.id),
            "owner": owners.get(stored.id),
        }  # fmt: skip

    @routes.get("")
    def list_snapshots(
        page: Pages, _: Reader, *, sandbox: str = "", name: str = "", label: Labels = [],  # noqa: B006 - read only
    ) -> Answer[shown.SnapshotPage]:  # fmt: skip
        """Every snapshot, oldest first: of a sandbox (id or name), of a name, with these labels."""
        wanted = read_labels(label).items()
        stored = service.store.records()
        lengths = _chain_lengths(stored)
        owners = service.owners.all("snapshot")
        found = [
            one for one in stored
            if wanted <= one.facts.labels.items() and (not name or name in one.facts.names)
            and (not sandbox or sandbox in (one.manifest.body.get("sandbox"), one.manifest.body.get("name")))
        ]  # fmt: skip
        snapshots, more = page.of(found, lambda one: (one.manifest.created_at, one.id))
        return Answer({"snapshots": [brief(one, lengths, owners) for one in snapshots], "next": more})

    @routes.get("/{ref}")
    def show_snapshot(ref: Reference, _: Reader) -> Answer[shown.SnapshotWhole]:
        """Everything about a snapshot."""
        snapshot = service.store.resolve(ref)
        return Answer({**views.snapshot_whole(service.store, snapshot), "owner": service.owners.of(snapshot)})

    @routes.get("/{ref}/chain")
    def show_chain(ref: Reference, _: Reader) -> Answer[shapes.SnapshotChain]:
        """A snapshot and the parents it is a delta of, base first."""
        return Answer(views.snapshot_chain(service.store, service.store.resolve(ref)))


def _chain_lengths(stored: tuple[Stored, ...]) -> dict[str, int]:
    """How many links each chain has; a parent that is not here ends one."""
    parents = {one.id: one.manifest.parent for one in stored}
    lengths: dict[str, int] = {}
    for one in stored:
        links: list[str] = []
        link: str | None = one.id
        while link is not None and link in parents and link not in lengths:
            links.append(link)
            link = parents[SnapshotId(link)]
        length = lengths.get(link or "", 0)
        for number, name in enumerate(reversed(links), length + 1):
            lengths[name] = number
    return lengths


def _many(service: Service, routes: APIRouter) -> None:
    """What concerns the whole store: before the routes with a reference, so that `gc` is not taken for one."""

    @routes.post("/gc")
    async def collect_snapshots(request: Request, caller: Admin, wish: Collect | None = None) -> (
        Carried[shapes.Collection]
    ):  # fmt: skip
        """Remove what expired, then, over the budget, what was longest unused."""
        wished = wish or Collect()
        budget = service.node.settings.disk_budget if wished.budget is None else wished.budget

        def act(progress: Progress) -> shapes.Collection:
            progress.check()
            report = service.store.gc(budget=budget, dry_run=wished.dry_run)
            service.watch.look()
            return views.collection(report)

        return await carry_out(service, request, caller, "snapshot.gc", act, lane=STORE)

    @routes.post("/verify")
    async def verify_snapshots(request: Request, caller: User, wish: VerifyMany | None = None) -> (
        Carried[shown.Verified]
    ):  # fmt: skip
        """Check these snapshots, by default all, also those whose manifest cannot be read."""
        wished = wish or VerifyMany()

        def act(progress: Progress) -> shown.Verified:
            store = service.store
            wanted = [store.resolve(ref) for ref in wished.snapshots] or sorted(store.catalog.ids())
            found = verify_each(
                store, wanted, deep=wished.deep, tell=lambda done, total: progress.tell(done, total, "snapshots")
            )
            _tell_damage(service, found)
            return {**views.verification(found), "verified": len(wanted)}

        return await carry_out(service, request, caller, "snapshot.verify", act, lane=STORE)

    @routes.post("/push")
    async def push_snapshot(request: Request, caller: Admin, wish: Push) -> Carried[TransferReport]:
        """Send a snapshot and all it depends on to s3://, gs://, az:// or file://; only what is not there travels."""

        def act(progress: Progress) -> TransferReport:
            from thawbox.store.backends import open_backend
            from thawbox.store.push import push

            snapshot = service.store.resolve(wish.snapshot)
            with service.observing.telemetry.step("push", snapshot=snapshot) as step:
                report = push(
                    service.store, open_backend(wish.url), snapshot, on_progress=_moving(progress), repair=wish.repair
                )
                step.note(bytes=report.moved_bytes)
            return report

        return await carry_out(service, request, caller, "snapshot.push", act, lane=STORE)

    @routes.post("/pull")
    async def pull_snapshot(request: Request, caller: Admin, wish: Pull) -> Carried[TransferReport]:
        """Bring a snapshot, by its id or a beginning of it there, and all it depends on that is not here."""

        def act(progress: Progress) -> TransferReport:
            from thawbox.store.backends import open_backend
            from thawbox.store.pull import pull, resolve_remote

            backend = open_backend(wish.url)
            snapshot = resolve_remote(backend, wish.snapshot)
            with service.observing.telemetry.step("pull", snapshot=snapshot) as step:
                report = pull(service.store, [backend], snapshot, name=wish.name, on_progress=_moving(progress))
                step.note(bytes=report.moved_bytes)
            service.watch.look()
            return report

        return await carry_out(service, request, caller, "snapshot.pull", act, lane=STORE)


def _moving(progress: Progress) -> Any:
    def moved(now: Moved) -> None:
        progress.tell(now.done_bytes, now.total_bytes, "bytes")

    return moved


def _changing(service: Service, routes: APIRouter) -> None:
    @routes.patch("/{ref}")
    def change_snapshot(ref: Reference, change: Change, caller: User) -> Answer[shapes.SnapshotBrief]:
        """Give and take names, set and remove labels, pin, let it expire. A name moves here if another has it."""
        snapshot = service.store.resolve(ref)
        service.owners.check_own(snapshot, caller, what=f"the snapshot {snapshot[:12]}")
        service.owners.check_names(change.add_names, caller)
        _apply(service, snapshot, change)
        return Answer(views.snapshot_brief(service.store.record(snapshot)))

    @routes.delete("/{ref}")
    def remove_snapshot(ref: Reference, caller: User, *, cascade: bool = False) -> Answer[shown.RemovedSnapshots]:
        """Remove a snapshot; with `cascade` what depends on it too, which only an admin may."""
        snapshot = service.store.resolve(ref)
        service.owners.check_own("" if cascade else snapshot, caller, what=f"the snapshot {snapshot[:12]}")
        removed = service.store.remove(snapshot, cascade=cascade)
        service.watch.look()
        return Answer({"removed": list(removed)})

    @routes.post("/{ref}/verify")
    async def verify_snapshot(ref: Reference, request: Request, caller: User, wish: Verify | None = None) -> (
        Carried[shapes.Verification]
    ):  # fmt: skip
        """Check that a snapshot and its chain are byte for byte what their ids say."""
        deep = wish is not None and wish.deep

        def act(progress: Progress) -> shapes.Verification:
            problems: list[Any] = []
            chain = service.store.chain(service.store.resolve(ref))
            for number, link in enumerate(chain):
                progress.tell(number, len(chain), "snapshots")
                problems += service.store.verify([link], deep=deep)
            _tell_damage(service, problems)
            return views.verification(problems)

        return await carry_out(service, request, caller, "snapshot.verify", act, lane=STORE)

    @routes.post("/{ref}/flatten")
    async def flatten_snapshot(ref: Reference, request: Request, caller: User, wish: Flatten | None = None) -> (
        Carried[shapes.SnapshotBrief]
    ):  # fmt: skip
        """Make a full snapshot that restores as this link of a chain does; the chain stays."""
        name = wish.name if wish is not None else ""

        def act(progress: Progress) -> shapes.SnapshotBrief:
            progress.check()
            service.owners.check_snapshots(caller)
            service.owners.check_names([name] if name else (), caller)
            snapshot, there = service.snapshot(ref), service.store.catalog.ids()
            holder = holder_of(service, name)
            made = snapshot.flatten(name=name)
            if made.id not in there:  # else it is whose it was
                if progress.is_cancelled and unmake_snapshot(service, made.id, name=name, holder=holder):
                    progress.check()
                service.owners.add("snapshot", made.id, caller)
            service.watch.look()
            service.events.emit("snapshot.flattened", subject("snapshot", made.id, name), of=snapshot.id)
            return views.snapshot_brief(made.stored)

        return await carry_out(service, request, caller, "snapshot.flatten", act, lane=STORE)


def _tell_damage(service: Service, problems: list[Problem]) -> None:
    for damaged in {problem.snapshot: problem for problem in problems}.values():
        about = subject("snapshot", damaged.snapshot, "")
        service.events.emit("snapshot.damaged", about, file=damaged.file, cause=damaged.cause)


def _apply(service: Service, snapshot: SnapshotId, change: Change) -> None:
    store = service.store
    mine = set(store.record(snapshot).facts.names)
    for name in change.remove_names:
        if name in mine:
            store.refs.drop_name(name)
    for name in change.add_names:
        store.name(snapshot, name)
    for key, value in change.labels.items():
        store.label(snapshot, key, value)
    if change.pinned is not None:
        store.pin(snapshot, pinned=change.pinned)
    if "ttl" in change.model_fields_set:
        store.expire(snapshot, None if change.ttl is None else store.now() + change.ttl)


def _reviving(service: Service, routes: APIRouter) -> None:
    @routes.post("/{ref}/clone", status_code=201)
    async def clone_snapshot(ref: Reference, request: Request, caller: User, wish: Clone | None = None) -> (
        Carried[shown.Cloned]
    ):  # fmt: skip
        """Make new sandboxes that go on from a snapshot; if one fails, none is left."""
        wished = wish or Clone()
        given = wished.opened()

        def act(progress: Progress) -> shown.Cloned:
            progress.check()
            snapshot = service.snapshot(ref)
            with service.owners.room_for(caller, [_memory_of(snapshot)] * wished.count):
                made = make_clones(progress, snapshot, wished.count, wished.name, eager=wished.eager, **given
                )  # fmt: skip
                service.made(caller, *(one for one, _ in made))
            return {"sandboxes": [views.restored(one, times) for one, times in made]}

        return await carry_out(service, request, caller, "snapshot.clone", act, lane=LIFE, status=201)

    @routes.post("/{ref}/restore", status_code=201)
    async def restore_snapshot(ref: Reference, request: Request, caller: User, wish: Injected | None = None) -> (
        Carried[shapes.Restored]
    ):  # fmt: skip
        """Bring the very sandbox back that a snapshot was made of. Refused while that sandbox runs."""
        given = (wish or Injected()).opened()

        def act(progress: Progress) -> shapes.Restored:
            progress.check()
            snapshot = service.snapshot(ref)
            sandbox = SandboxId(str(snapshot.stored.manifest.body.get("sandbox")))
            is_new = not service.has_sandbox(sandbox)
            try:
                with service.crowd.one(sandbox), service.owners.room_for(caller, [_memory_of(snapshot)]):
                    restored, times = snapshot.restore(**given)
                    if is_new:  # its first owner removed it: it counts as whose wish brought it back
                        service.owners.add("sandbox", sandbox, caller)
            finally:
                service.noticed(sandbox)
            if progress.is_cancelled and is_new:  # else what it was before is not there any more
                unmake_sandbox(service, restored)
                progress.check()
            return views.restored(restored, times)

        return await carry_out(service, request, caller, "snapshot.restore", act, lane=LIFE, status=201)


def _memory_of(snapshot: Snapshot) -> int | None:
    return read_body(snapshot.stored.manifest.body, snapshot=snapshot.id).spec.memory
