"""What was last captured of a sandbox's writable layers: so that the next capture copies only what changed since.

A capture has two parts. What changed is copied ahead, while the sandbox runs; what changed during that copy is copied
again in the frozen moment, which then is short whatever was written before. `join` makes one layer of both.

The marks lie beside the writable layer they describe. Losing them costs one whole copy, never a wrong one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from thawbox.host.cgroup import Cgroup
from thawbox.host.files import replace_file
from thawbox.host.layer_stacks import stack_onto
from thawbox.host.lower_names import OverlayView
from thawbox.host.trees import Mark, Marks, copy_layer, shared_mappings
from thawbox.model import Phase, SnapshotId
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import generation_directory, rootfs_of, upper_directory
from thawbox.sandbox.uppers import overlay_name

_FILE = "captured"
_ATTEMPTS = 5


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """How a capture lies on the disk: file names are bytes."""

    snapshot: SnapshotId | None
    layers: dict[str, tuple[str, ...]]
    marks: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Captured:
    """The state of the writable layers in `snapshot`: its layers by overlay, base first, and the marks of each."""

    snapshot: SnapshotId | None
    layers: dict[str, tuple[str, ...]]
    marks: dict[str, Marks] = field(default_factory=dict[str, Marks])


@dataclass(frozen=True, slots=True)
class Capture:
    """What the newest part of a capture saw of each overlay."""

    views: dict[str, OverlayView]
    marks: dict[str, Marks]


def last_capture(context: Context, record: Record) -> Captured:
    """What the next capture builds upon: the last one of this very writable layer, or none over the frozen layers."""
    try:
        kept = msgspec.msgpack.decode(_path(context, record).read_bytes(), type=_Kept)
    except (FileNotFoundError, msgspec.DecodeError):
        return Captured(None, record.layers)
    if not all(context.store.has_layer(digest) for digests in kept.layers.values() for digest in digests):
        return Captured(None, record.layers)
    seen = msgspec.msgpack.decode(kept.marks, type=dict[str, dict[bytes, Mark]])
    marks = {name: {os.fsdecode(path): mark for path, mark in paths.items()} for name, paths in seen.items()}
    return Captured(kept.snapshot, kept.layers, marks)


def encode_marks(marks: Mapping[str, Marks]) -> bytes:
    """Marks as they lie on the disk: file names are bytes."""
    return msgspec.msgpack.encode(
        {name: {os.fsencode(path): mark for path, mark in seen.items()} for name, seen in marks.items()}
    )


def remember_capture(
    context: Context, record: Record, snapshot: SnapshotId, layers: Mapping[str, tuple[str, ...]], marks: bytes
) -> None:
    """Keep the (encoded) marks for the next capture, once the snapshot is durable. Nothing if the sandbox is gone."""
    kept = _Kept(snapshot, dict(layers), msgspec.Raw(marks))
    with contextlib.suppress(FileNotFoundError):
        replace_file(_path(context, record), msgspec.msgpack.encode(kept))


def _path(context: Context, record: Record) -> Path:
    return generation_directory(context, record) / _FILE


def capture_ahead(context: Context, record: Record, since: Captured, into: Path) -> Capture:
    """Copy what changed in every writable layer to `into/NAME` while the sandbox may run; nothing for a frozen one."""
    begun = Capture(_views(context, record), dict(since.marks))
    if record.phase is Phase.FROZEN:
        return begun
    now = time.time_ns()
    mapped = _mapped_while_running(context.cgroup(record.id))
    return begun if mapped is None else _copy(context, record, begun, into, mapped=mapped, now_ns=now, live=True)


def capture_frozen(context: Context, record: Record, begun: Capture, into: Path) -> Capture:
    """Copy what changed since `capture_ahead` to `into/NAME`, called while no task of the sandbox can run."""
    mapped = shared_mappings(context.cgroup(record.id).pids())
    return _copy(context, record, begun, into, mapped=mapped, now_ns=time.time_ns(), live=False)


def join(names: Iterable[str], *, ahead: Path, late: Path) -> None:
    """Leave one layer of both parts in `ahead/NAME`; none for an overlay in which nothing changed."""
    for name in names:
        early, newer = ahead / name, late / name
        if not early.is_dir() and newer.is_dir():
            newer.rename(early)
        elif newer.is_dir():
            stack_onto(newer, early)


def _views(context: Context, record: Record) -> dict[str, OverlayView]:
    rootfs = rootfs_of(context, record.spec, record.rootfs_kind, digest=record.rootfs_digest)
    views: dict[str, OverlayView] = {}
    for overlay in rootfs.overlays:
        name = overlay_name(overlay.mountpoint)
        frozen = [context.store.layer_tree(digest) for digest in reversed(record.layers.get(name, ()))]
        work = upper_directory(context, record, name).with_name("work")
        views[name] = OverlayView(
            f"/proc/{record.keeper_pid}/root{overlay.mountpoint.rstrip('/')}",
            tuple(map(str, (*frozen, *overlay.lowers))), str(work / "index"),
        )  # fmt: skip
    return views


def _mapped_while_running(cgroup: Cgroup) -> frozenset[int] | None:
    """What the sandbox's processes have mapped; None if they come and go too fast for the answer to be whole."""
    for _ in range(_ATTEMPTS):
        pids = cgroup.pids()
        mapped = shared_mappings(pids)
        if cgroup.pids() == pids:
            return mapped
    return None


def _copy(
    context: Context, record: Record, begun: Capture, into: Path, *, mapped: frozenset[int], now_ns: int, live: bool
) -> Capture:
    marks: dict[str, Marks] = {}
    for name, view in begun.views.items():
        target = into / name
        target.mkdir(mode=0o755)
        copied = copy_layer(
            str(upper_directory(context, record, name)), str(target), since=begun.marks.get(name), mapped=mapped,
            now_ns=now_ns, live=live, overlay=view,
        )  # fmt: skip
        marks[name] = copied.marks
        if copied.is_empty:
            target.rmdir()
    return Capture(begun.views, marks)
