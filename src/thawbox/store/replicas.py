"""Replicas: stores elsewhere that hold copies of this node's snapshots. Theirs and ours have the same ids.

The node's disk is where snapshots are made and restored from; replicas are where they survive the node, and where
other nodes get them. A snapshot's id covers its whole chain, so a copy is either the same or damaged.

Rule 1: the manifest is a replica's commit, as it is ours: what is described there is whole there, or damaged.
Rule 2: one replica that is away, slow or damaged never fails what another can serve; it is reported, and, where it is
damaged, repaired from what was found sound.
Rule 3: nothing here trusts what comes from a replica (`pull`), or waits for one longer than it must (`hedging`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from thawbox.errors import BackendUnavailable, IntegrityError, InvalidRequest, SnapshotNotFound, ThawboxError
from thawbox.model import SnapshotId
from thawbox.store.backends import Backend
from thawbox.store.codec import Codec
from thawbox.store.events import log_error, log_notice
from thawbox.store.hedging import answered_within
from thawbox.store.manifest import DIGEST_PATTERN
from thawbox.store.pull import pull, remote_snapshots, resolve_remote
from thawbox.store.push import push
from thawbox.store.replica_check import check_replica
from thawbox.store.seal import sealer_of
from thawbox.store.store import Store
from thawbox.store.transfer import Fault, FaultKind, OnProgress, TransferReport
from thawbox.telemetry import NOBODY, Telemetry

PATIENCE = 2.0
"""Seconds after which the next replica is asked beside one that has not answered; a chunk takes tens of ms."""
_SLOWEST_ANSWER = 10.0
"""Seconds after which one that is merely asked whether it has something counts as away."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one replica's copy: the report of what was sent, or why it failed."""

    where: str
    report: TransferReport | None
    failure: ThawboxError | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a replica has a snapshot: `has` is None when it did not say, and then `cause` says why."""

    where: str
    has: bool | None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found when every byte of a replica's copy was read; `repaired` says that it was made good since."""

    where: str
    snapshot: SnapshotId
    faults: tuple[Fault, ...]
    repaired: bool = False


class Replicas:
    """The replicas of one node, nearest first; the first is its region's home store. Safe to use from several threads.

    `backends` are opened when they are first needed. `later` runs what nobody waits for.
    """

    def __init__(
        self, store: Store, open_backends: Sequence[Callable[[], Backend]], *, patience: float = PATIENCE,
        later: Callable[[Callable[[], None]], None] = lambda work: work(), telemetry: Telemetry = NOBODY,
    ) -> None:  # fmt: skip
        self._store = store
        self._open = open_backends
        self._patience = patience
        self._later = later
        self._telemetry = telemetry
        self._opened: tuple[Backend, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The replicas in order; raises InvalidRequest for an address that is none."""
        if self._opened is None:
            self._opened = tuple(make() for make in self._open)
        return self._opened

    # --- bringing ---------------------------------------------------------------------------------------------

    def bring(self, reference: str, *, on_progress: OnProgress | None = None) -> SnapshotId:
        """Pull a snapshot, by its id or a beginning of it, that is not here or is damaged here; returns its id.

        Replicas that failed while another served are reported; damaged ones are repaired afterwards. Raises
        SnapshotNotFound where none has it, BackendUnavailable where none that has it answers, IntegrityError where
        all copies are damaged.
        """
        snapshot = self.resolve(reference)
        with self._telemetry.step("replica.pull", snapshot=snapshot) as step:
            report = pull(self._store, self.backends, snapshot, on_progress=on_progress, patience=self._patience)
            step.note(bytes=report.moved_bytes, faults=len(report.faults))
        self._tell(snapshot, report.faults)
        damaged = {fault.where for fault in report.faults if fault.kind.wants_repair}
        for backend in self.backends:
            if backend.where in damaged:
                self._later(partial(self._repair_behind, backend, snapshot))
        return snapshot

    def resolve(self, reference: str) -> SnapshotId:
        """The id meant by a full id, or by the beginning of one that a replica has; raises as `bring` does."""
        if DIGEST_PATTERN.fullmatch(reference):
            return SnapshotId(reference)
        away: list[str] = []
        for backend in self.backends:
            try:
                ask: Callable[[], SnapshotId | None] = partial(resolve_remote, backend, reference)
                found = answered_within(ask, seconds=_SLOWEST_ANSWER, otherwise=None)
                if found:
                    return found
                away.append(backend.where)
            except SnapshotNotFound:
                continue
            except BackendUnavailable:
                away.append(backend.where)
        if away:
            raise BackendUnavailable(
                f"no replica that answers has {reference[:80]!r}; {', '.join(away)} did not answer"
            )
        raise SnapshotNotFound(
            f"neither this store nor a replica has a snapshot {reference[:80]!r}",
            remediation="`thawbox snapshots where` lists what the replicas have",
        )

    # --- copying ----------------------------------------------------------------------------------------------

    def replicate(self, snapshot: SnapshotId, *, on_progress: OnProgress | None = None) -> tuple[Copied, ...]:
        """Copy a snapshot with its chain to every replica, one after the other; one that fails stops no other."""
        return tuple(self.copy_to(backend, snapshot, on_progress=on_progress) for backend in self.backends)

    def copy_to(self, backend: Backend, snapshot: SnapshotId, *, on_progress: OnProgress | None = None) -> Copied:
        """Copy a snapshot with its chain to one replica; raises only for what is wrong here."""
        with self._telemetry.step("replica.push", snapshot=snapshot) as step:
            try:
                report = push(self._store, backend, snapshot, on_progress=on_progress)
            except BackendUnavailable as error:
                step.note(failure=error.code)
                return Copied(backend.where, None, error)
            step.note(bytes=report.moved_bytes)
        return Copied(backend.where, report, None)

    # --- looking ----------------------------------------------------------------------------------------------

    def where(self, snapshot: SnapshotId) -> tuple[Standing, ...]:
        """Which replicas have a snapshot described; whether the bytes are sound only `check` says."""
        name = Codec().snapshot_name(snapshot)
        return tuple(self._standing(backend, name) for backend in self.backends)

    def listing(self) -> dict[str, tuple[SnapshotId, ...] | None]:
        """By replica, every snapshot that is described there; None for one that does not answer."""
        return {backend.where: self._listing(backend) for backend in self.backends}

    @staticmethod
    def _listing(backend: Backend) -> tuple[SnapshotId, ...] | None:
        def look() -> tuple[SnapshotId, ...] | None:
            try:
                return remote_snapshots(backend)
            except BackendUnavailable:
                return None

        return answered_within(look, seconds=_SLOWEST_ANSWER, otherwise=None)

    def _standing(self, backend: Backend, name: str) -> Standing:
        slow = Standing(backend.where, None, f"did not answer within {_SLOWEST_ANSWER:g} s")

        def look() -> Standing:
            try:
                return Standing(backend.where, backend.exists(name))
            except BackendUnavailable as error:
                return Standing(backend.where, None, error.cause)

        return answered_within(look, seconds=_SLOWEST_ANSWER, otherwise=slow)

    def check(
        self, snapshots: Iterable[SnapshotId], *, repair: bool = False, progress: Callable[[], None] = lambda: None
    ) -> tuple[Checked, ...]:
        """Read every byte of every replica's copy; with `repair`, damaged ones are made good from a sound one.

        What cannot be made good is told by its faults, and why by the log; the rest is read and repaired all the same.
        """
        found: list[Checked] = []
        for snapshot in snapshots:
            for backend in self.backends:
                faults = check_replica(backend, Codec(sealer_of(self._store.keys)), snapshot)
                self._tell(snapshot, faults, is_logged=False)  # the caller is told
                wanted = repair and any(fault.kind.wants_repair for fault in faults)
                found.append(Checked(backend.where, snapshot, faults, wanted and self._is_repaired(backend, snapshot)))
                progress()
        return tuple(found)

    # --- repairing --------------------------------------------------------------------------------------------

    def _repair_behind(self, backend: Backend, snapshot: SnapshotId) -> None:
        self._is_repaired(backend, snapshot)

    def _is_repaired(self, backend: Backend, snapshot: SnapshotId) -> bool:
        """Replace what is wrong in a replica's copy; False, and the log says why, when that cannot be."""
        try:
            self._repair(backend, snapshot)
        except (BackendUnavailable, IntegrityError, InvalidRequest, SnapshotNotFound) as error:
            log_error("replica.repair-failed", where=backend.where, snapshot=snapshot, cause=error.cause)
        except OSError as error:
            log_error("replica.repair-failed", where=backend.where, snapshot=snapshot, cause=str(error))
        else:
            log_notice("replica.repaired", where=backend.where, snapshot=snapshot)
            return True
        return False

    def _repair(self, backend: Backend, snapshot: SnapshotId) -> None:
        """By what is right here, or in another replica."""
        others = [one for one in self.backends if one.where != backend.where]
        with self._telemetry.step("replica.repair", snapshot=snapshot):
            if others:  # brings nothing where ours is whole and sound
                pull(self._store, others, snapshot, patience=self._patience)
            push(self._store, backend, snapshot, repair=True)

    def _tell(self, snapshot: SnapshotId, faults: Sequence[Fault], *, is_logged: bool = True) -> None:
        """Report each replica that failed, once for each way in which it did."""
        told: dict[tuple[str, FaultKind], Fault] = {}
        for fault in faults:
            told.setdefault((fault.where, fault.kind), fault)
        for fault in told.values():
            self._telemetry.happened("replica.fault", snapshot=snapshot, kind=fault.kind.value)
            if not is_logged:
                continue
            log_error(
                "replica.fault", where=fault.where, kind=fault.kind.value, snapshot=snapshot, object=fault.name,
                cause=fault.cause,
            )  # fmt: skip
