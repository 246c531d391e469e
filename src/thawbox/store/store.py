"""The store: snapshots on this node's disk, by the digest of their manifest.

Rule 1: the rename of a staging directory to `snapshots/<id>` is the only way a snapshot comes to be.
Rule 2: whoever removes takes the lock alone; whoever adds or begins to read takes it shared, and briefly.
Rule 3: bytes are hashed at put and at the first fetch after they changed hands, never once per restore.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Container, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from thawbox.chain import Link
from thawbox.errors import CorruptSnapshot, DumpFailed, InvalidRequest, LockTimeout, SnapshotNotFound, Unavailable
from thawbox.host.files import locked, remove_tree
from thawbox.model import SnapshotId, checked_labels, checked_name
from thawbox.store.catalog import Catalog, Layout
from thawbox.store.listing import Listing, Record
from thawbox.store.manifest import DIGEST_PATTERN, SIGNATURE, Draft, Manifest
from thawbox.store.put import Prepared, check_named_parts, commit, prepare
from thawbox.store.refs import Facts, Outcome, Refs
from thawbox.store.removal import GcReport, Remover, remove_stale_incoming
from thawbox.store.seal import MAX_SIGNATURE_BYTES, NO_KEYS, Keys, check_signature, sign
from thawbox.store.staging import Staging, given_to, new_staging, pending, sweep, taken_over
from thawbox.store.verify import Memory, Problem, Verifier, layer_problems

_OUTCOMES_KEPT = 7 * 24 * 3600.0
_WAIT_STEP = 0.02
"""Seconds between two looks at a put of another process, which says nothing when it ends."""
_INCOMING_KEPT = 24 * 3600.0
"""Seconds after which what is left of an interrupted pull is no longer worth resuming."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified snapshot, ready to restore: images directories and, by overlay, layer trees; both base first."""

    id: SnapshotId
    manifest: Manifest
    images: tuple[Path, ...]
    layers: dict[str, tuple[Path, ...]]


class Store:
    """An open store. Safe to use from several threads and, over the same directory, from several processes."""

    def __init__(
        self, root: Path, *, now: Callable[[], float] = time.time, lock_timeout: float = 30.0, keys: Keys = NO_KEYS
    ) -> None:
        self.layout = Layout(root)
        self.layout.make()
        self.refs = Refs(self.layout.refs)
        self.catalog = Catalog(self.layout)
        self.memory = Memory(self.layout.verified)
        self.keys = keys
        self._listing = Listing(self.catalog, self.refs)
        self._verifier = Verifier(self.layout, self.catalog, self.memory, now)
        self.now = now
        self._lock_timeout = lock_timeout
        self._tidy()

    def _tidy(self) -> None:
        """Remove what dead processes left: staging directories, rows about snapshots that never came to be."""
        sweep(self.layout.snapshots)
        # Somebody at work on the store holds the lock; what is left then is left to the next open.
        with contextlib.suppress(LockTimeout), locked(self.layout.lock, timeout=0):
            self.refs.sweep({str(one) for one in self.catalog.ids()}, outcomes_before=self.now() - _OUTCOMES_KEPT)

    def close(self) -> None:
        self.refs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.layout.root}>"

    def locked(self, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """The store's own lock: shared to add or to begin reading, alone to remove."""
        return locked(self.layout.lock, timeout=self._lock_timeout, shared=shared, what="the snapshot store")

    def has_layer(self, digest: str) -> bool:
        return self.catalog.has_layer(digest)

    # Putting

    def begin(self) -> Staging:
        """A staging directory that the caller must give to `put` or `discard`. Swept if this process dies."""
        return new_staging(self.layout.snapshots)

    def discard(self, staging: Staging) -> None:
        remove_tree(staging.path)

    def take_over(self, path: Path) -> Staging:
        """Become the owner of a staging directory that another, possibly ended, process began."""
        return taken_over(Staging(path))

    @contextlib.contextmanager
    def stage(self) -> Generator[Staging]:
        """A staging directory for the block; discarded at its end unless it was put."""
        staging = self.begin()
        try:
            yield staging
        finally:
            self.discard(staging)

    def put(
        self,
        staging: Staging,
        draft: Draft,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        ttl: float | None = None,
        pinned: bool = False,
    ) -> Record:
        """Make a snapshot of what was staged. When this returns it is durable, verified and visible, whole.

        `name` moves to it if another snapshot has it; `ttl` is seconds. Raises InvalidRequest for a draft that
        contradicts itself, BrokenChain when the parent is gone; an OSError of our disk is passed on. After an error
        nothing is visible and the staging directory is the caller's to discard.
        """
        now = self.now()
        names = (checked_ref_name(name),) if name else ()
        facts = Facts(pinned=pinned, expires_at=now + ttl if ttl is not None else None, used_at=now)
        signer = partial(sign, keys=self.keys) if self.keys.signing else None
        prepared = prepare(staging, draft, created_at=now, catalog=self.catalog, sign=signer)
        return self.publish(prepared, names=names, labels=labels or {}, facts=facts)

    def publish(
        self,
        prepared: Prepared,
        *,
        names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        facts: Facts,
        replace_damaged: bool = False,
    ) -> Record:
        """Commit a prepared snapshot: from here on it is listed. The last step of put, import and pull.

        With `replace_damaged`, a snapshot that is here already, but damaged, gives way to this sound one.
        """
        names = tuple(names)
        damaged = self._damaged_layers(prepared)
        if replace_damaged and self.catalog.exists(prepared.id) and self.verify([prepared.id]):
            damaged |= {prepared.id}
        with self.locked(shared=True):
            check_named_parts(prepared, self.catalog)
            self.refs.announce(
                prepared.id, names=names, labels=labels or {}, facts=facts, token=prepared.staging.token, at=self.now()
            )
            done = commit(prepared, self.layout, replaceable=damaged)
        for layer in done.layers:
            self.memory.remember(layer.digest, layer.marks, at=self.now())
        if done.is_new:
            self.memory.remember(prepared.id, prepared.marks, at=self.now())
        self.refs.settle_names(names, prepared.id)
        remove_tree(done.trash)
        return self.record(prepared.id)

    def _damaged_layers(self, prepared: Prepared) -> frozenset[str]:
        """Stored layers that a new snapshot would share but whose bytes are wrong, and that no sandbox runs on."""
        held = self.refs.holds("layer")
        damaged: set[str] = set()
        for layer in prepared.layers:
            directory = self.layout.layer(layer.digest)
            if not directory.is_dir() or self.memory.recall(layer.digest, directory) is not None:
                continue
            problems, _ = layer_problems(directory, layer.digest)
            if problems and layer.digest in held:
                raise CorruptSnapshot(f"layer {layer.digest[:12]}: {problems[0][0]} {problems[0][1]}, and it is in use")
            if problems:
                damaged.add(layer.digest)
        return frozenset(damaged)

    def hand_over(self, staging: Staging, pid: int) -> Staging:
        """Make the living process `pid` the owner of what this one began."""
        return given_to(staging, pid)

    def answer(
        self, staging: Staging, snapshot: SnapshotId, *, name: str = "", labels: Mapping[str, str] | None = None
    ) -> None:
        """Say that what was staged is a snapshot that exists, and give that name and labels; nothing is put."""
        if name:
            self.name(snapshot, name)
        for key, value in (labels or {}).items():
            self.label(snapshot, key, value)
        self.refs.record_success(staging.token, snapshot, at=self.now())

    def record_failure(self, token: str, error: str) -> None:
        """Tell whoever waits for `token` that its put failed, in words."""
        self.refs.record_failure(token, error, at=self.now())

    def outcome(self, token: str) -> Outcome | None:
        """How the put with this token ended; None while it has not, also when its process died before the end."""
        outcome = self.refs.outcome(token)
        if outcome is not None and outcome.id is not None and not self.catalog.exists(outcome.id):
            return None
        return outcome

    def pending(self) -> frozenset[str]:
        """Tokens of the puts that are under way in living processes."""
        return pending(self.layout.snapshots)

    def wait(self, token: str, *, timeout: float) -> SnapshotId:
        """Wait until the put with this token has ended, in whatever process; returns its snapshot.

        Raises Unavailable after `timeout` seconds, DumpFailed with the error in words if it failed, and
        SnapshotNotFound if it is unknown or its process died before the end.
        """
        deadline = time.monotonic() + timeout
        while True:
            is_under_way = token in self.pending()  # asked first: it may end between the two questions
            outcome = self.outcome(token)
            if outcome is not None and outcome.id is not None:
                return outcome.id
            if outcome is not None:
                raise DumpFailed(f"the checkpoint {token} failed: {outcome.error}")
            if not is_under_way:
                raise SnapshotNotFound(f"the checkpoint {token} is unknown, or ended before its snapshot was whole")
            if time.monotonic() >= deadline:
                raise Unavailable(f"the checkpoint {token} is not durable after {timeout:g} s")
            time.sleep(_WAIT_STEP)

    # Looking

    def resolve(self, ref: str) -> SnapshotId:
        """The id meant by a full id, a name, or a unique prefix of at least six hex digits.

        Raises SnapshotNotFound, or InvalidRequest listing the candidates when a prefix is ambiguous.
        """
        return self._listing.resolve(ref)

    def manifest(self, snapshot: SnapshotId) -> Manifest:
        return self.catalog.manifest(snapshot)

    def record(self, snapshot: SnapshotId) -> Record:
        """One snapshot with its names and times; raises SnapshotNotFound or CorruptSnapshot."""
        return self._listing.record(snapshot)

    def records(self) -> tuple[Record, ...]:
        """Every usable snapshot, oldest first. One with a damaged manifest is left out; `verify` names it."""
        return self._listing.records()

    def links(self) -> list[Link]:
        """Every snapshot with a readable manifest, as the rules in `chain` see it."""
        return self._listing.links()

    def chain(self, snapshot: SnapshotId) -> tuple[SnapshotId, ...]:
        """Ids of the chain that ends in `snapshot`, base first; raises BrokenChain naming a missing link."""
        return self.catalog.chain(snapshot)

    # Fetching

    def fetch(self, snapshot: SnapshotId) -> Fetched:
        """The whole chain, verified; hashing only what was not hashed since it last changed.

        Raises CorruptSnapshot or BrokenChain, naming the file, and UntrustedSnapshot before anything is read.
        Nothing keeps the snapshot from being removed
        afterwards: hold it, or use `reading`.
        """
        self._check_trust(snapshot)
        chain = self.catalog.chain(snapshot)
        manifest = self.catalog.manifest(snapshot)
        for link in chain[:-1]:
            self._verifier.ensure(link, digests=())
        digests = {digest for digests in manifest.layers.values() for digest in digests}
        self._verifier.ensure(snapshot, digests=sorted(digests))
        self.refs.mark_used(chain, self.now())
        layers = {name: tuple(self.layout.tree(one) for one in digests) for name, digests in manifest.layers.items()}
        return Fetched(snapshot, manifest, tuple(self.layout.images(link) for link in chain), layers)

    @contextlib.contextmanager
    def reading(self, snapshot: SnapshotId) -> Generator[Fetched]:
        """Fetch a snapshot that nobody can remove during the block. Costs no write; ends with the process."""
        with contextlib.ExitStack() as stack:
            with self.locked(shared=True):
                for link in self.catalog.chain(snapshot):
                    self._keep(link, stack)
            yield self.fetch(snapshot)

    def _keep(self, snapshot: SnapshotId, stack: contextlib.ExitStack) -> bool:
        """Keep one snapshot from being removed until the stack unwinds; False if it is not there."""
        try:
            fd = os.open(self.layout.snapshot(snapshot), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return True

    def is_being_read(self, snapshot: SnapshotId) -> bool:
        """Whether a `reading` block is open on it, here or in another process."""
        fd = os.open(self.layout.snapshot(snapshot), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def layer_tree(self, digest: str) -> Path:
        """Where a layer's tree lies, for use as an overlay's lower directory; hold the layer while it is used."""
        return self.layout.tree(digest)

    def verify(self, snapshots: Iterable[SnapshotId] | None = None, *, deep: bool = False) -> tuple[Problem, ...]:
        """Everything that is wrong with these snapshots, by default all; empty if nothing is. `deep` rehashes all.

        What is found damaged here is refused by the next fetch.
        """
        wanted = sorted(self.catalog.ids()) if snapshots is None else list(snapshots)
        with contextlib.ExitStack() as stack:
            with self.locked(shared=True):
                there = [snapshot for snapshot in wanted if self._keep(snapshot, stack)]
            missing = [] if snapshots is None else [one for one in wanted if one not in there]
            for snapshot in missing:
                raise SnapshotNotFound(f"there is no snapshot {snapshot[:12]} in this store")
            return tuple(self._verifier.problems(there, deep=deep))

    def layer_is_sound(self, digest: str) -> bool:
        """Whether a layer is here and is what its digest says; hashed only if it was not since it last changed."""
        return self.catalog.has_layer(digest) and self._verifier.layer_is_sound(digest)

    def least_recently_verified(self, *, but: Container[str] = ()) -> SnapshotId | None:
        """The snapshot whose verification is oldest or unknown, of all `but` these: what to verify next."""
        ids = sorted(one for one in self.catalog.ids() if one not in but)
        return min(ids, key=lambda one: self.memory.verified_at(one) or 0.0, default=None)

    def _check_trust(self, snapshot: SnapshotId) -> None:
        if self.keys.require_signed:
            check_signature(snapshot, self.signature(snapshot), self.keys)

    def signature(self, snapshot: SnapshotId) -> bytes | None:
        """The content of a snapshot's signature file; None if it is not signed."""
        try:
            with (self.layout.snapshot(snapshot) / SIGNATURE).open("rb") as file:
                return file.read(MAX_SIGNATURE_BYTES)
        except FileNotFoundError:
            return None

    # Removing

    def _remover(self) -> Remover:
        return Remover(self.layout, self.catalog, self.refs, self.memory, self.is_being_read)

    def remove(self, snapshot: SnapshotId, *, cascade: bool = False) -> tuple[SnapshotId, ...]:
        """Remove a snapshot, with `cascade` also everything that depends on it; returns what went, children first.

        Raises InvalidRequest when it has children (naming them), is pinned or held, and LockTimeout while a restore
        reads it. Layers that nobody needs any more go too.
        """
        remover = self._remover()
        with self.locked(shared=False):
            links = self.links()
            going = remover.check_removable(snapshot, links, cascade=cascade)
            trash = remover.to_trash(going)
            left = [link for link in links if link.id not in going]
            remover.layers_to_trash(remover.unused_layers(left), trash)
        remove_tree(trash)
        return going

    def gc(self, *, budget: int = 0, dry_run: bool = False) -> GcReport:
        """Remove expired snapshots, then, over `budget` bytes, unpinned leaves by oldest use; then unneeded layers.

        What is held, pinned or being read stays, and so do its ancestors. `dry_run` changes nothing.
        """
        remover = self._remover()
        with self.locked(shared=False):
            links = [
                replace(link, kept_by="a restore") if not link.kept_by and self.is_being_read(link.id) else link
                for link in self.links()
            ]
            going, kept = remover.plan(links, now=self.now(), budget=budget)
            gone = {verdict.id for verdict in going}
            layers = remover.unused_layers([link for link in links if link.id not in gone])
            freed = sum(link.own_bytes for link in links if link.id in gone)
            freed += sum(self.catalog.layer_bytes(digest) for digest in layers)
            report = GcReport(tuple(going), tuple(kept), layers, freed, dry_run)
            if dry_run:
                return report
            trash = remover.to_trash(verdict.id for verdict in going)
            remover.layers_to_trash(layers, trash)
        remove_tree(trash)
        remove_stale_incoming(self.layout.incoming, before=time.time() - _INCOMING_KEPT)
        self.memory.sweep({*self.catalog.ids(), *self.catalog.layers_on_disk()})
        return report

    # Naming and holding

    def hold(self, holder: str, *, snapshots: Iterable[SnapshotId] = (), layers: Iterable[str] = ()) -> None:
        """Keep snapshots (and so their ancestors) and layers from being removed until `release(holder)`.

        Raises SnapshotNotFound or CorruptSnapshot if one of them is not here. `holder` is `sandbox:sb-…`, say.
        """
        snapshots, layers = tuple(snapshots), tuple(layers)
        with self.locked(shared=True):
            for snapshot in snapshots:
                self.catalog.chain(snapshot)
            for digest in layers:
                if not self.catalog.has_layer(digest):
                    raise CorruptSnapshot(f"layer {digest[:12]} is not in this store")
            self.refs.hold(holder, snapshots=snapshots, layers=layers)

    def release(self, holder: str) -> None:
        """Drop everything `holder` holds; nothing happens if that is nothing."""
        self.refs.release(holder)

    def holders(self) -> tuple[str, ...]:
        """Everybody who holds something: the node compares this with what is alive when it starts."""
        return self.refs.holders()

    def name(self, snapshot: SnapshotId, name: str) -> None:
        """Give a name to a snapshot; it moves if another one has it."""
        self._existing(snapshot)
        self.refs.add_name(checked_ref_name(name), snapshot)

    def label(self, snapshot: SnapshotId, key: str, value: str | None) -> None:
        """Set a label, or remove it with None."""
        self._existing(snapshot)
        checked_labels({checked_name(key, "label"): value or ""})
        self.refs.set_label(snapshot, key, value)

    def pin(self, snapshot: SnapshotId, *, pinned: bool = True) -> None:
        """Keep a snapshot, and so its ancestors, from being collected; a removal by hand needs it unpinned too."""
        self._existing(snapshot)
        self.refs.set_pinned(snapshot, pinned)

    def expire(self, snapshot: SnapshotId, at: float | None) -> None:
        """Let gc take the snapshot from the time `at` on (seconds since the epoch); None: never by age."""
        self._existing(snapshot)
        self.refs.set_expiry(snapshot, at)

    def _existing(self, snapshot: SnapshotId) -> None:
        if not self.catalog.exists(snapshot):
            raise SnapshotNotFound(f"there is no snapshot {snapshot[:12]} in this store")


def checked_ref_name(name: str) -> str:
    """A legal name for a snapshot: like any other name, but not what could be taken for an id."""
    if DIGEST_PATTERN.fullmatch(name):
        raise InvalidRequest(f"{name[:12]}… looks like a snapshot id and cannot be a name")
    return checked_name(name, "snapshot name")
