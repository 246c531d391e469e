"""What a caller asks of a checkpoint, and what it is told of a finished one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from thawbox.engines import Freeze
from thawbox.model import SnapshotId, SnapshotKind, checked_labels, checked_name
from thawbox.store.store import checked_ref_name


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


def check_wish(wish: Wish) -> Wish:
    """Return `wish` if its snapshot can bear that name and those labels; raises InvalidRequest."""
    if wish.name:
        checked_ref_name(wish.name)
    for key in checked_labels(wish.labels):
        checked_name(key, "label")
    return wish


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A finished checkpoint. `frozen_ms` is how long the sandbox could not run; `bytes` what was stored for it.

    With `skipped` nothing had changed since `id`, which existed before. `freeze` says how its memory was dumped, and
    `why_plain` why not in a short freeze.
    """

    id: SnapshotId
    parent: SnapshotId | None
    kind: SnapshotKind
    frozen_ms: float
    total_ms: float
    bytes: int
    skipped: bool = False
    freeze: Freeze = Freeze.PLAIN
    why_plain: str = ""
