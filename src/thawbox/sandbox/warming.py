"""Holding a snapshot's memory ready for its clones to share, and shells beside it, while that is worth it.

Rule 1: `pool_plan` decides what is worth holding, what there is room for and what goes; nothing here does.
Rule 2: only what was fetched is held: verified, and of this very machine.
Rule 3: nothing depends on it: a clone whose memory is not held, or no longer, reads it from the files.
Rule 4: whoever asks for it says so once, and once that it is over; in between the look brings it back whenever it can.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from thawbox.errors import ThawboxError
from thawbox.host.machine_memory import total_memory
from thawbox.model import SnapshotId
from thawbox.pool_plan import has_room, is_demanded, is_worth_warming, templates_to_drop
from thawbox.sandbox.cloning import prepare_clone
from thawbox.sandbox.context import Context
from thawbox.sandbox.reserve import PER_SNAPSHOT
from thawbox.sandbox.reviving import check_machine
from thawbox.store import Fetched


def hold(context: Context, snapshot: SnapshotId, *, holder: str, shells: int = PER_SNAPSHOT) -> bool:
    """Hold the snapshot's memory ready until `release` by the same holder; False where that cannot be now.

    `shells` are kept ready for clones, too. Memory that gets short takes both away. What is not held is tried again:
    where there is room again, or after a while that grows from failure to failure.
    Raises SnapshotNotFound, IntegrityError, Incompatible; then nothing is tried again.
    """
    with context.reading(snapshot) as fetched:
        check_machine(context, fetched)
        context.warmth.want(snapshot, holder, now=context.now(), shells=shells)
        try:
            is_held = _load(context, fetched)
        except BaseException:
            release(context, snapshot, holder=holder)
            raise
    context.warmth.start(partial(look, context))
    return is_held


def release(context: Context, snapshot: SnapshotId, *, holder: str) -> None:
    """Give up what this holder holds; memory that nobody else wants goes. Clones run on."""
    if context.warmth.let_go(snapshot, holder):
        _give_up(context, snapshot)
        context.warmth.rest()


def leave(context: Context, *, holder: str) -> None:
    """This holder, which holds one snapshot at most, wants it no more; the memory stays as if held for demand alone.

    For whoever may soon ask again: nothing is waited for.
    """
    context.warmth.leave(holder, now=context.now())


def warm_for(context: Context, snapshot: SnapshotId, clones: int) -> bool:
    """Hold the snapshot's memory ready if that many clones at once are worth it; whether it is held now."""
    if context.engine.is_warm(_images(context, snapshot)):
        return True
    with context.reading(snapshot) as fetched:
        resident = _resident(fetched.images)
        if not is_worth_warming(clones, resident=resident, available=context.available_memory()):
            context.warmth.refused(snapshot, now=context.now())
            return False
        check_machine(context, fetched)
        is_held = _load(context, fetched, by_demand=True)
    if is_held:
        context.warmth.start(partial(look, context))
    return is_held


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


def _load(context: Context, fetched: Fetched, *, by_demand: bool = False) -> bool:
    resident = _resident(fetched.images)
    with context.warmth.loading(fetched.id, resident=resident) as promised:
        if not context.engine.is_warm(fetched.images[-1]) and not _warm(context, fetched, resident + promised):
            return False
        if not context.warmth.loaded(fetched.id, resident=resident, now=context.now(), by_demand=by_demand):
            _give_up(context, fetched.id)
            return False
    if shells := context.warmth.shells(fetched.id):
        context.reserve.keep(fetched.id, partial(prepare_clone, context, fetched.id), count=shells)
    _give_up_what_is_too_much(context)
    return True


def _warm(context: Context, fetched: Fetched, needed: int) -> bool:
    if not has_room(needed, available=context.available_memory(), total=total_memory()):
        context.warmth.given_up(fetched.id, now=context.now())
        return False
    with context.telemetry.step("engine.warm", snapshot=fetched.id) as step:
        is_held = context.engine.warm(fetched.images)
        step.note(is_held=is_held)
    if not is_held:
        context.warmth.failed(fetched.id, now=context.now())
    return is_held


def look(context: Context) -> None:
    """Give up what idles or what memory is too short for; bring back what somebody wants, where that can be."""
    _give_up_what_is_too_much(context)
    for held in context.warmth.held():
        if not context.engine.is_warm(_images(context, SnapshotId(held.snapshot))):
            context.warmth.died(SnapshotId(held.snapshot), now=context.now())
            if not held.is_kept:
                context.reserve.drop(SnapshotId(held.snapshot))
    for snapshot in context.warmth.due(now=context.now()):
        try:
            with context.reading(snapshot) as fetched:
                check_machine(context, fetched)
                _load(context, fetched)
        except (ThawboxError, OSError):  # whoever clones next is told what is wrong
            context.warmth.failed(snapshot, now=context.now())


def _give_up_what_is_too_much(context: Context) -> None:
    books, now = context.warmth, context.now()
    drop = templates_to_drop(books.held(), now=now, available=context.available_memory(), total=total_memory())
    for snapshot in map(SnapshotId, sorted(drop)):
        books.given_up(snapshot, now=now)
        _give_up(context, snapshot)
    for snapshot in books.wanted():
        if not _images(context, snapshot).is_dir():  # removed, and not to be brought from a replica for this
            books.drop(snapshot)
            _give_up(context, snapshot)


def _give_up(context: Context, snapshot: SnapshotId) -> None:
    context.reserve.drop(snapshot)
    context.engine.cool(_images(context, snapshot))


def _images(context: Context, snapshot: SnapshotId) -> Path:
    return context.store.layout.images(snapshot)


def _resident(chain: tuple[Path, ...]) -> int:
    """Bytes of the pages files: what the memory takes, or somewhat more."""
    return sum(path.stat().st_size for images in chain for path in images.glob("pages-*.img"))
