"""Holding a snapshot's memory ready for its clones to share, and shells beside it, while that is worth it.

Rule 1: `pool_plan` decides what is worth holding and what goes; nothing here does.
Rule 2: only what was fetched is held: verified, and of this very machine.
Rule 3: nothing depends on it: a clone whose memory is not held, or no longer, reads it from the files.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from thawbox.errors import ThawboxError
from thawbox.host.machine_memory import available_memory, total_memory
from thawbox.model import SnapshotId
from thawbox.pool_plan import is_demanded, is_worth_warming, templates_to_drop
from thawbox.sandbox.cloning import prepare_clone
from thawbox.sandbox.context import Context
from thawbox.sandbox.reserve import PER_SNAPSHOT
from thawbox.sandbox.reviving import check_machine


def hold(context: Context, snapshot: SnapshotId, *, holder: str, shells: int = PER_SNAPSHOT) -> bool:
    """Hold the snapshot's memory ready until `release` by the same holder; False where that cannot be.

    `shells` are kept ready for clones, too. Memory that gets short takes it away all the same.
    Raises SnapshotNotFound, IntegrityError, Incompatible.
    """
    if not _load(context, snapshot, holder=holder):
        return False
    if shells:
        context.reserve.keep(snapshot, partial(prepare_clone, context, snapshot), count=shells)
    return True


def release(context: Context, snapshot: SnapshotId, *, holder: str) -> None:
    """Give up what this holder holds; memory that nobody else wants goes. Clones run on."""
    if context.warmth.let_go(snapshot, holder):
        _give_up(context, snapshot)
        context.warmth.rest()


def warm_for(context: Context, snapshot: SnapshotId, clones: int) -> bool:
    """Hold the snapshot's memory ready if that many clones at once are worth it; whether it is held now."""
    if context.engine.is_warm(_images(context, snapshot)):
        return True
    with context.reading(snapshot) as fetched:
        resident = _resident(fetched.images)
    if not is_worth_warming(clones, resident=resident, available=available_memory()):
        context.warmth.refused(snapshot, now=context.now())
        return False
    return _load(context, snapshot)


def note_clone(context: Context, snapshot: SnapshotId) -> None:
    """A clone is asked for: where they are asked for again and again, the memory is loaded in the background."""
    now = context.now()
    times = context.warmth.asked(snapshot, now=now)
    if is_demanded(times, now=now) and context.warmth.may_try(snapshot, now=now):
        context.warmth.refused(snapshot, now=now)  # until it is loaded: nobody else begins meanwhile
        context.threads.start(partial(_warm_by_demand, context, snapshot), name=f"thawbox-warm-{snapshot[:12]}")


def _warm_by_demand(context: Context, snapshot: SnapshotId) -> None:
    with contextlib.suppress(ThawboxError, OSError):  # whoever clones next is told what is wrong
        if warm_for(context, snapshot, PER_SNAPSHOT):
            context.reserve.keep(snapshot, partial(prepare_clone, context, snapshot))


def _load(context: Context, snapshot: SnapshotId, *, holder: str = "") -> bool:
    with context.reading(snapshot) as fetched:
        check_machine(context, fetched)
        images = fetched.images
        is_held = context.engine.is_warm(images[-1])
        if not is_held:
            with context.telemetry.step("engine.warm", snapshot=snapshot) as step:
                is_held = context.engine.warm(images)
                step.note(is_held=is_held)
    if not is_held:
        context.warmth.refused(snapshot, now=context.now())
    else:
        context.warmth.loaded(snapshot, resident=_resident(images), now=context.now(), holder=holder)
        context.warmth.start(partial(look, context))
    return is_held


def look(context: Context) -> None:
    """Give up what idles or what memory is too short for; bring back what somebody wants and whose server died."""
    drop = templates_to_drop(
        context.warmth.held(), now=context.now(), available=available_memory(), total=total_memory()
    )
    for held in context.warmth.held():
        snapshot = SnapshotId(held.snapshot)
        images = _images(context, snapshot)
        if held.snapshot in drop or not images.is_dir():
            context.warmth.drop(snapshot)
            _give_up(context, snapshot)
        elif not context.engine.is_warm(images):
            with contextlib.suppress(ThawboxError, OSError):
                if not (held.is_kept and _load(context, snapshot)):
                    context.warmth.drop(snapshot)
                    context.reserve.drop(snapshot)


def _give_up(context: Context, snapshot: SnapshotId) -> None:
    context.reserve.drop(snapshot)
    context.engine.cool(_images(context, snapshot))


def _images(context: Context, snapshot: SnapshotId) -> Path:
    return context.store.layout.images(snapshot)


def _resident(chain: tuple[Path, ...]) -> int:
    """Bytes of the pages files: what the memory takes, or somewhat more."""
    return sum(path.stat().st_size for images in chain for path in images.glob("pages-*.img"))
