"""The verified fake of `Parking`: clones in a table. tests/contract/test_parking.py tries it and the real one alike."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from typing import cast

from thawbox.errors import NotFound, RestoreFailed, SandboxNotFound, ThawboxError
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, SandboxId, SnapshotId, Spec
from thawbox.sandbox import Context, Record, Sandbox
from thawbox.sandbox.parking import Inherited, Parked


class FakeParking:
    """Clones that cost nothing. `refuse` is asked before each restore for the error it fails with, if any."""

    def __init__(self, digest: str = "a" * 64) -> None:
        self.golden: SnapshotId | None = SnapshotId(digest)
        self.refuse: Callable[[], ThawboxError | None] = lambda: None
        self.records: dict[SandboxId, Record] = {}
        self.dead: set[SandboxId] = set()
        self.most = 0
        self._lock = threading.Lock()
        self._made = 0
        self._deaths: dict[SandboxId, FileIO] = {}

    def digest(self) -> SnapshotId:
        if self.golden is None:
            raise NotFound("there is no template")
        return self.golden

    def park(self, digest: SnapshotId) -> Parked:
        refusal = self.refuse()
        if digest != self.golden and refusal is None:
            refusal = RestoreFailed(f"snapshot {digest[:12]} is gone")
        if refusal is not None:
            raise refusal
        with self._lock:
            self._made += 1
            record = Record(
                id=SandboxId(f"sb-{self._made:012x}"), name=f"fake-{self._made}", spec=Spec(("true",)),
                phase=Phase.FROZEN, created_at=float(self._made), hostname="fake", machine_id="0" * 32,
                owner="pool:fake", parent_snapshot=digest,
            )  # fmt: skip
            self.records[record.id] = record
            self.most = max(self.most, len(self.records))
        return self._watched(record)

    def inherited(self) -> Inherited:
        with self._lock:
            found = [Parked(record) for record in self.records.values()]
        leased = [clone for clone in found if clone.record.lease]
        parked = [clone for clone in found if not clone.record.lease and clone.record.phase is Phase.FROZEN]
        return Inherited(tuple(parked), tuple(leased), tuple(one for one in found if one not in leased + parked))

    def recheck(self, parked: Parked) -> Parked:
        if parked.id in self.dead or parked.id not in self.records:
            self.destroy(parked)
            raise NotFound(f"{parked.record.name} died while it was parked")
        return self._watched(parked.record)

    def is_unharmed(self, parked: Parked) -> bool:
        with self._lock:
            record = self.records.get(parked.id)
            return record is not None and record.phase is Phase.FROZEN and parked.id not in self.dead

    def hand_over(self, parked: Parked, *, lease: str, until: float) -> Sandbox:
        after = next_phase(parked.record.phase, Verb.THAW, who=parked.record.name)
        if not self.is_unharmed(parked):
            raise NotFound(f"{parked.record.name} was killed or thawed while it was parked")
        leased = replace(parked.record, phase=after, lease=lease, lease_until=until)
        with self._lock:
            self.records[parked.id] = leased
        return Sandbox(cast("Context", None), leased)

    def extend(self, parked: Parked, *, until: float) -> None:
        with self._lock:
            if parked.id not in self.records:
                raise SandboxNotFound(f"there is no sandbox {parked.id}")
            self.records[parked.id] = replace(self.records[parked.id], lease_until=until)

    def is_removed(self, parked: Parked) -> bool:
        return parked.id not in self.records

    def destroy(self, parked: Parked) -> None:
        self.forget(parked)
        with self._lock:
            self.records.pop(parked.id, None)
            self.dead.discard(parked.id)

    def room(self, each: int) -> int | None:
        return None

    def forget(self, parked: Parked) -> None:
        with self._lock:
            if parked.death is not None:
                parked.death.close()
            self._deaths.pop(parked.id, None)

    def close(self) -> None:
        """Nothing of the fake outlives its clones."""

    def kill(self, clone: SandboxId) -> None:
        """What a SIGKILL does to a clone."""
        with self._lock:
            self.dead.add(clone)
            if clone in self._deaths:
                os.eventfd_write(self._deaths[clone].fileno(), 1)

    def _watched(self, record: Record) -> Parked:
        death = FileIO(os.eventfd(0, os.EFD_CLOEXEC))
        with self._lock:
            self._deaths[record.id] = death
        return Parked(record, frozenset(), death)
