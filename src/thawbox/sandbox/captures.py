"""What was last captured of a sandbox's writable layers: so that the next capture copies only what changed since.

The marks lie beside the writable layer they describe. Losing them costs one whole copy, never a wrong one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from thawbox.host.files import write_atomically
from thawbox.host.trees import Marks, copy_layer, shared_mappings
from thawbox.model import SnapshotId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import generation_directory, upper_directory

_FILE = "captured"


@dataclass(frozen=True, slots=True)
class Captured:
    """The state of the writable layers in `snapshot`: its layers by overlay, base first, and the marks of each."""

    snapshot: SnapshotId | None
    layers: dict[str, tuple[str, ...]]
    marks: dict[str, Marks] = field(default_factory=dict[str, Marks])


def last_capture(context: Context, record: Record) -> Captured:
    """What the next capture builds upon: the last one of this very writable layer, or none over the frozen layers."""
    try:
        found = msgspec.msgpack.decode(_path(context, record).read_bytes(), type=Captured)
    except (FileNotFoundError, msgspec.DecodeError):
        return Captured(None, record.layers)
    stored = all(context.store.has_layer(digest) for digests in found.layers.values() for digest in digests)
    return found if stored else Captured(None, record.layers)


def capture(context: Context, record: Record, into: Path, since: Captured) -> tuple[dict[str, Marks], bool]:
    """Copy what changed in every writable layer to `into/NAME`, called while no task of the sandbox can run.

    Returns the marks for the next time, and whether anything had changed. An overlay without a change stages nothing.
    """
    mapped = shared_mappings(context.cgroup(record.id).pids())
    marks: dict[str, Marks] = {}
    changed = False
    for name in record.layers:
        target = into / name
        target.mkdir(mode=0o755)
        copied = copy_layer(
            str(upper_directory(context, record, name)), str(target), since=since.marks.get(name), mapped=mapped,
            now_ns=time.time_ns(),
        )  # fmt: skip
        marks[name] = copied.marks
        changed = changed or not copied.is_empty
        if copied.is_empty:
            target.rmdir()
    return marks, changed


def remember_capture(context: Context, record: Record, captured: Captured) -> None:
    """Keep the marks for the next capture, once the snapshot is durable."""
    write_atomically(_path(context, record), msgspec.msgpack.encode(captured))


def _path(context: Context, record: Record) -> Path:
    return generation_directory(context, record) / _FILE
