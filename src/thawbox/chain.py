"""Chains of snapshots: pure rules over plain values. No I/O, no clock.

Rule 1: a chain is listed base first. It cannot loop: an id is the digest of a manifest that names the parent.
Rule 2: a snapshot with children is never removed without them; children go first.
Rule 3: what is pinned, held by a sandbox or being read is never evicted, nor is any of its ancestors.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from thawbox.errors import BrokenChain
from thawbox.model import SnapshotId

MAX_LINKS = 1000
"""More links than this are a damaged or hostile store, whatever the cap on new chains is."""


@dataclass(frozen=True, slots=True)
class Link:
    """One snapshot as the rules see it. `own_bytes` are its images alone; times are seconds since the epoch.

    `layers` are the digests of all rootfs layers it needs, many shared with others.
    """

    id: SnapshotId
    parent: SnapshotId | None = None
    own_bytes: int = 0
    layers: frozenset[str] = field(default_factory=frozenset[str])
    used_at: float = 0.0
    expires_at: float | None = None
    pinned: bool = False
    kept_by: str = ""
    """Who needs it now: a sandbox that holds it, a restore that reads it; empty: nobody."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What gc would do with one snapshot, and why. `frees` are bytes, layers included."""

    id: SnapshotId
    reason: str
    frees: int = 0


def chain_of(snapshot: SnapshotId, parent_of: Callable[[SnapshotId], SnapshotId | None]) -> tuple[SnapshotId, ...]:
    """The chain that ends in `snapshot`, base first. What `parent_of` raises for a missing link is passed on."""
    links = [snapshot]
    while (parent := parent_of(links[-1])) is not None:
        links.append(parent)
        if len(links) > MAX_LINKS:
            raise BrokenChain(f"the chain of snapshot {snapshot[:12]} has more than {MAX_LINKS} links")
    return tuple(reversed(links))


def children_of(links: Iterable[Link]) -> dict[SnapshotId, tuple[SnapshotId, ...]]:
    """Direct children by parent, in the order of `links`."""
    found: dict[SnapshotId, tuple[SnapshotId, ...]] = {}
    for link in links:
        if link.parent is not None:
            found[link.parent] = (*found.get(link.parent, ()), link.id)
    return found


def subtree(root: SnapshotId, children: Mapping[SnapshotId, Sequence[SnapshotId]]) -> tuple[SnapshotId, ...]:
    """`root` and all its descendants, children before parents: the order in which they may be removed."""
    order = [root]
    for snapshot in order:
        order.extend(children.get(snapshot, ()))
    return tuple(reversed(order))


def unused_layers(on_disk: Iterable[str], links: Iterable[Link], *, held: Iterable[str]) -> tuple[str, ...]:
    """Layers that no snapshot names and no sandbox holds, sorted."""
    needed = set(held).union(*(link.layers for link in links))
    return tuple(sorted(set(on_disk) - needed))


def plan_gc(
    links: Sequence[Link],
    *,
    now: float,
    layer_bytes: Mapping[str, int],
    held_layers: Iterable[str] = (),
    budget: int = 0,
) -> tuple[list[Verdict], list[Verdict]]:
    """Which snapshots go, in the order to remove them, and which would have gone but must stay.

    First the expired ones; then, while more than `budget` bytes are used (0: no budget), unpinned leaves, least
    recently used first. A parent becomes a leaf when its last child has gone.
    """
    plan = _Plan(links, layer_bytes, frozenset(held_layers))
    expired = frozenset(link.id for link in links if link.expires_at is not None and link.expires_at <= now)
    plan.evict(lambda link: link.id in expired, until=lambda: False, reason="its time to live has passed")
    kept = [
        Verdict(link.id, f"expired, but {plan.obstacle(link)}") for link in plan.left.values() if link.id in expired
    ]
    if budget:

        def fits() -> bool:
            return plan.used <= budget

        plan.evict(lambda _: True, until=fits, reason=f"over the disk budget of {budget} bytes, least recently used")
        if not fits():
            kept += [
                Verdict(link.id, f"over the disk budget, but {plan.obstacle(link)}") for link in plan.left.values()
            ]
    return plan.going, kept


class _Plan:
    """What is left after the removals decided so far."""

    def __init__(self, links: Sequence[Link], layer_bytes: Mapping[str, int], held_layers: frozenset[str]) -> None:
        self.left = {link.id: link for link in links}
        self.going: list[Verdict] = []
        self._layer_bytes = layer_bytes
        self._users = Counter(held_layers)
        for link in links:
            self._users.update(link.layers)
        self._children = {parent: set(kids) for parent, kids in children_of(links).items()}
        self.used = sum(link.own_bytes for link in links) + sum(layer_bytes.get(layer, 0) for layer in self._users)

    def obstacle(self, link: Link) -> str:
        """Why a snapshot cannot go now, in words; empty if it can."""
        if link.pinned:
            return "it is pinned"
        if link.kept_by:
            return f"it is in use by {link.kept_by}"
        kids = self._children.get(link.id)
        return f"{min(kids)[:12]} is a delta of it" if kids else ""

    def evict(self, wanted: Callable[[Link], bool], *, until: Callable[[], bool], reason: str) -> None:
        """Remove wanted leaves, least recently used first, until there are none or `until` says so."""
        free = [(link.used_at, link.id) for link in self.left.values() if wanted(link) and not self.obstacle(link)]
        heapq.heapify(free)
        while free and not until():
            link = self.left[heapq.heappop(free)[1]]
            self._remove(link, reason)
            parent = self.left.get(link.parent) if link.parent is not None else None
            if parent is not None and wanted(parent) and not self.obstacle(parent):
                heapq.heappush(free, (parent.used_at, parent.id))

    def _remove(self, link: Link, reason: str) -> None:
        del self.left[link.id]
        if link.parent is not None:
            self._children[link.parent].discard(link.id)
        self._users.subtract(link.layers)
        freed = link.own_bytes + sum(self._layer_bytes.get(layer, 0) for layer in link.layers if not self._users[layer])
        self.used -= freed
        self.going.append(Verdict(link.id, reason, freed))
