"""What a caller asks of a checkpoint, and what it is told of a finished one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from thawbox.model import SnapshotId, SnapshotKind


class Mode(enum.Enum):
    """What kind of snapshot is wanted: AUTO makes a delta where there is a parent to make it against."""

    AUTO = "auto"
    FULL = "full"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of a checkpoint. `ttl` is seconds; with `stop` the sandbox does not run on."""

    mode: Mode = Mode.AUTO
    stop: bool = False
    skip_if_clean: bool = False
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    ttl: float | None = None
    pinned: bool = False
    when_ready: bool = False
    """Wait until the programs say that they may be checkpointed."""


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A finished checkpoint. `frozen_ms` is how long the sandbox could not run; `bytes` what was stored for it.

    With `skipped` nothing had changed since `id`, which existed before.
    """

    id: SnapshotId
    parent: SnapshotId | None
    kind: SnapshotKind
    frozen_ms: float
    total_ms: float
    bytes: int
    skipped: bool = False
