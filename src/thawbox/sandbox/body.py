"""What a snapshot says of the sandbox it was made of: enough to restore it where its journal record is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from thawbox.errors import CorruptSnapshot
from thawbox.host.clocks import Clocks
from thawbox.host.databases import OpenDatabase
from thawbox.host.file_locks import SharedLock
from thawbox.host.rootfs import RootfsKind
from thawbox.model import SandboxId, SnapshotId, Spec
from thawbox.sandbox.journal import Record


@dataclass(frozen=True, slots=True)
class Moment:
    """The frozen moment: the sandbox's clocks, and which guests (names of sockets) must answer after a restore.

    `databases` are those of SQLite, whose files will have another identity; `locks` those on files of mounts, which
    others may hold when the tree wants them back.
    """

    clocks: Clocks
    guests: tuple[str, ...] = ()
    databases: tuple[OpenDatabase, ...] = ()
    locks: tuple[SharedLock, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """The sandbox's side of a manifest. `frozen_ms` is how long the sandbox could not run."""

    sandbox: SandboxId
    name: str
    spec: Spec
    hostname: str
    machine_id: str
    address: str
    rootfs_kind: RootfsKind
    frozen_ms: float = 0.0
    moment: Moment | None = None


def body_of(record: Record, moment: Moment, *, frozen_ms: float) -> dict[str, object]:
    """The JSON object to store with a snapshot of this sandbox."""
    body = Body(
        record.id, record.name, record.spec, record.hostname, record.machine_id, record.address, record.rootfs_kind,
        frozen_ms, moment,
    )  # fmt: skip
    built: dict[str, object] = msgspec.to_builtins(body)
    return built


def read_body(body: Mapping[str, object], *, snapshot: SnapshotId) -> Body:
    """The typed body of a manifest; raises CorruptSnapshot when it is not one of ours."""
    try:
        return msgspec.convert(body, type=Body)
    except msgspec.ValidationError as error:
        raise CorruptSnapshot(f"snapshot {snapshot[:12]}: its manifest does not describe a sandbox: {error}") from None
