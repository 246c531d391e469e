"""When a snapshot's memory is worth holding ready, so that its clones share it instead of reading it each."""

from __future__ import annotations

from pathlib import Path

from thawbox.model import SnapshotId
from thawbox.sandbox.context import Context

WORTH_WARMING = 3
"""Clones at once from which on loading a snapshot's memory once (about one restore) pays for itself."""
LARGEST_SHARE = 0.5
"""Of the machine's available memory: a template that takes more would push out what clones are for."""


def warm_for(context: Context, snapshot: SnapshotId, clones: int) -> bool:
    """Hold the snapshot's memory ready if that many clones at once are worth it; whether it is held now."""
    with context.reading(snapshot) as fetched:
        resident = sum(path.stat().st_size for images in fetched.images for path in images.glob("pages-*.img"))
        if not is_worth_warming(clones, resident=resident, available=available_memory()):
            return False
        with context.telemetry.step("engine.warm", snapshot=snapshot) as step:
            is_held = context.engine.warm(fetched.images)
            step.note(is_held=is_held)
        return is_held


def is_worth_warming(clones: int, *, resident: int, available: int) -> bool:
    """Whether to hold `resident` bytes for that many clones with `available` bytes of memory left."""
    return clones >= WORTH_WARMING and resident < LARGEST_SHARE * available


def available_memory() -> int:
    """Bytes that can be had without swapping (MemAvailable of /proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
