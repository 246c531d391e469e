"""What a cancelled operation has made is taken back, where that can be."""

from __future__ import annotations

import contextlib

from thawbox.api.service import Service
from thawbox.errors import ThawboxError
from thawbox.model import SnapshotId
from thawbox.sandbox import Sandbox


def unmake_sandbox(service: Service, sandbox: Sandbox) -> None:
    """Remove a sandbox that was just made."""
    with service.changing(sandbox.id):
        sandbox.remove(force=True)


def holder_of(service: Service, name: str) -> SnapshotId | None:
    """Which snapshot has this name now, and is to have it again."""
    return next(iter(service.store.refs.named(name)), None) if name else None


def unmake_snapshot(
    service: Service, snapshot: SnapshotId, *, name: str = "", holder: SnapshotId | None = None
) -> bool:  # fmt: skip
    """Remove a snapshot that was just made, and give its name back; False where something needs it already."""
    try:
        service.store.pin(snapshot, pinned=False)
        service.store.remove(snapshot)
    except ThawboxError:
        return False
    if holder is not None:
        with contextlib.suppress(ThawboxError):  # that one was removed meanwhile
            service.store.name(holder, name)
    service.watch.look()
    return True
