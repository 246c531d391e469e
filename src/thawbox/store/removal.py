"""Removal and gc: the only ways a snapshot or layer goes.

Rule 1: the lock is held alone, so nobody adds, begins to read or begins to hold meanwhile.
Rule 2: a directory is renamed to trash in one step, children before parents; deleting the trash comes after.
Rule 3: while any manifest is unreadable no layer is removed: it might be the one that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from thawbox.chain import Link, Verdict, children_of, plan_gc, subtree, unused_layers
from thawbox.errors import InvalidRequest, LockTimeout, SnapshotNotFound
from thawbox.host.files import names_in, remove_tree, rename_durably
from thawbox.model import SnapshotId
from thawbox.store.catalog import Catalog, Layout
from thawbox.store.refs import Refs
from thawbox.store.staging import private_name
from thawbox.store.verify import Memory


@dataclass(frozen=True, slots=True)
class GcReport:
    """What gc removed, or would remove, in order and with reasons; what had to stay; and layers nobody needs."""

    removed: tuple[Verdict, ...]
    kept: tuple[Verdict, ...]
    layers: tuple[str, ...]
    freed_bytes: int
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class Remover:
    """Removes from one store. Every method but `remove_trash` is called with the store locked alone."""

    layout: Layout
    catalog: Catalog
    refs: Refs
    memory: Memory
    is_being_read: Callable[[SnapshotId], bool]

    def check_removable(self, snapshot: SnapshotId, links: Iterable[Link], *, cascade: bool) -> tuple[SnapshotId, ...]:
        """The snapshots that go with `snapshot`, children first; or InvalidRequest, LockTimeout if one must stay."""
        if not self.catalog.exists(snapshot):
            raise SnapshotNotFound(f"there is no snapshot {snapshot[:12]} in this store")
        by_id = {link.id: link for link in links}
        going = subtree(snapshot, children_of(by_id.values()))
        if len(going) > 1 and not cascade:
            shown = ", ".join(child[:12] for child in going[:-1][:4]) + (" …" if len(going) > 5 else "")
            raise InvalidRequest(
                f"snapshot {snapshot[:12]} has {len(going) - 1} that depend on it: {shown}",
                remediation="flatten or remove them first, or use --cascade to remove them too",
            )
        for one in going:
            link = by_id.get(one)
            if link is not None and link.pinned:
                raise InvalidRequest(f"snapshot {one[:12]} is pinned", remediation="unpin it first")
            if link is not None and link.kept_by:
                raise InvalidRequest(
                    f"snapshot {one[:12]} is held by {link.kept_by}", remediation="remove what holds it first"
                )
            if self.is_being_read(one):
                raise LockTimeout(f"snapshot {one[:12]} is being read by a restore")
        return going

    def to_trash(self, snapshots: Iterable[SnapshotId]) -> Path:
        """Rename snapshots away, one by one in this order, and then the layers that nobody needs any more."""
        trash = self.layout.snapshots / private_name("trash")
        trash.mkdir(mode=0o700)
        gone: list[SnapshotId] = []
        for snapshot in snapshots:
            rename_durably(self.layout.snapshot(snapshot), trash / snapshot)
            self.memory.forget(snapshot)
            gone.append(snapshot)
        self.refs.forget(gone)
        return trash

    def unused_layers(self, links: Iterable[Link]) -> tuple[str, ...]:
        """Layers on the disk that no snapshot in `links` names and no sandbox holds."""
        _, damaged = self.catalog.manifests()
        if damaged:
            return ()
        return unused_layers(self.catalog.layers_on_disk(), links, held=self.refs.holds("layer"))

    def layers_to_trash(self, digests: Iterable[str], trash: Path) -> None:
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                self.layout.layer(digest).rename(trash / digest)
            self.memory.forget(digest)

    def plan(self, links: list[Link], *, now: float, budget: int) -> tuple[list[Verdict], list[Verdict]]:
        """What gc would do now; `links` that are being read count as held."""
        layer_bytes = {digest: self.catalog.layer_bytes(digest) for digest in self.catalog.layers_on_disk()}
        return plan_gc(links, now=now, layer_bytes=layer_bytes, held_layers=self.refs.holds("layer"), budget=budget)


def remove_stale_incoming(incoming: Path, *, before: float) -> list[str]:
    """Remove what interrupted pulls left to resume from, if untouched since `before` (seconds since the epoch)."""
    removed: list[str] = []
    for name in names_in(incoming):
        with contextlib.suppress(FileNotFoundError):
            if (incoming / name).lstat().st_mtime < before:
                remove_tree(incoming / name)
                removed.append(name)
    return removed
