"""Since which snapshot the kernel has tracked a sandbox's writes, where the kernel can (CONFIG_MEM_SOFT_DIRTY).

Every dump begins the tracking anew, whether a snapshot comes of it or not: one that fails after its dump must not
leave the belief that writes are known since an older one.

Rule 1: the belief is given up before a dump, and taken up again by the snapshot of that very dump alone.
Rule 2: losing it costs one comparison of every page, never a wrong snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from thawbox.host.files import replace_file
from thawbox.model import SnapshotId

_FILE = "tracked"


@dataclass(frozen=True, slots=True)
class Tracked:
    """The number of the latest dump of this generation, and the snapshot that came of it, if one did."""

    dump: int = 0
    snapshot: SnapshotId | None = None


def begin_dump(generation: Path) -> tuple[int, SnapshotId | None]:
    """Note that a dump begins: its number, and the snapshot since whose dump every write is tracked."""
    before = _read(generation)
    _write(generation, Tracked(before.dump + 1))
    return before.dump + 1, before.snapshot


def note_snapshot(generation: Path, dump: int, snapshot: SnapshotId) -> None:
    """Note which snapshot came of a dump; nothing happens when another dump has begun since."""
    if _read(generation).dump == dump:
        _write(generation, Tracked(dump, snapshot))


def _read(generation: Path) -> Tracked:
    try:
        return msgspec.json.decode((generation / _FILE).read_bytes(), type=Tracked)
    except (FileNotFoundError, msgspec.DecodeError):
        return Tracked()


def _write(generation: Path, tracked: Tracked) -> None:
    replace_file(generation / _FILE, msgspec.json.encode(tracked))
