"""A link of a chain rewritten as one full snapshot, so that the chain may go and a restore reads one link."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from thawbox.errors import LockTimeout, SandboxNotFound
from thawbox.host.layer_stacks import merge_layers
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.sandbox.body import read_body
from thawbox.sandbox.context import Context
from thawbox.store import Draft, Fetched, Staging


def flatten(context: Context, snapshot: SnapshotId, *, name: str = "") -> SnapshotId:
    """A full snapshot that restores as `snapshot` does; that one stays, and keeps its names.

    The answer is the snapshot itself if it is a full one, and the flattened one of before if there is one. A sandbox
    whose newest snapshot this is makes its next delta against the result. Raises IntegrityError for a damaged chain;
    an OSError of our disk is passed on; nothing is left then.
    """
    manifest = context.store.manifest(snapshot)
    before = (one.id for one in context.store.records() if one.manifest.flattens == snapshot)
    done = snapshot if manifest.kind is SnapshotKind.FULL else next(before, None)
    if done is None:
        with (
            context.telemetry.step("flatten", snapshot=snapshot) as step,
            context.reading(snapshot) as fetched,
            context.store.stage() as staging,
        ):
            stored = context.store.put(staging, _rewrite(context, fetched, staging))
            step.note(bytes=stored.bytes)
            done = stored.id
    if name:
        context.store.name(done, name)
    _follow(context, snapshot, done)
    return done


def _rewrite(context: Context, fetched: Fetched, staging: Staging) -> Draft:
    """Write full images and one layer per overlay into `staging`."""
    context.engine.flatten(fetched.images, staging.images)
    layers: dict[str, tuple[str, ...]] = {}
    for overlay, trees in fetched.layers.items():
        layers[overlay] = () if len(trees) > 1 else fetched.manifest.layers[overlay]
        if len(trees) > 1:
            target = staging.layer / overlay
            target.mkdir(mode=0o755)
            merge_layers(trees, target)
    manifest = fetched.manifest
    return Draft(SnapshotKind.FULL, manifest.compat, layers=layers, flattens=fetched.id, body=manifest.body)


def _follow(context: Context, snapshot: SnapshotId, flattened: SnapshotId) -> None:
    sandbox = read_body(context.store.manifest(snapshot).body, snapshot=snapshot).sandbox
    with contextlib.suppress(LockTimeout, SandboxNotFound), context.exclusive(sandbox):
        record = context.journal.find(sandbox)
        if record.parent_snapshot == snapshot:
            context.journal.update(replace(record, parent_snapshot=flattened))
