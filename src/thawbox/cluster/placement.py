"""Where a claim goes: warm first, same region, a compatible machine, spread, least loaded. Pure: no I/O, no clock.

Rule 1: nodes are kept ranked as things change, so that a choice looks at a handful of them, however many there are.
Rule 2: within a rank nodes take turns: claims that come together go apart.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from thawbox.cluster.facts import NodeFacts, Reason, Refusal, Wish

LOAD_STEPS = 16
"""Loads that differ by less than a sixteenth of a node's capacity count as equal: nodes take turns within a step."""
SPREAD_MOST = 64
"""More clones of one pool on a node than this are no worse."""


def rank(*, of_pool: int, leased: int, capacity: int) -> int:
    """How little a node is wanted for one more clone of a pool: first by the pool's clones there, then by its load."""
    load = min(LOAD_STEPS, leased * LOAD_STEPS // max(1, capacity))
    return min(of_pool, SPREAD_MOST) * (LOAD_STEPS + 1) + load


class Ranking:
    """Nodes by rank. Putting and dropping take constant time, the first is found by looking at the ranks in use."""

    __slots__ = ("_at", "_rank")

    def __init__(self) -> None:
        self._rank: dict[str, int] = {}
        self._at: dict[int, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._rank)

    def put(self, node: str, rank: int) -> None:
        """Rank a node, behind those that have this rank already."""
        before = self._rank.get(node)
        if before is not None:
            if before == rank:
                return
            self.drop(node)
        self._rank[node] = rank
        try:
            self._at[rank][node] = None
        except KeyError:
            self._at[rank] = OrderedDict.fromkeys((node,))

    def drop(self, node: str) -> None:
        """Forget a node, if it is there."""
        rank = self._rank.pop(node, None)
        if rank is not None:
            there = self._at[rank]
            del there[node]
            if not there:
                del self._at[rank]

    def first(self) -> tuple[int, str] | None:
        """The least rank and the node whose turn it is there."""
        if not self._at:
            return None
        least = min(self._at)
        return least, next(iter(self._at[least]))

    def in_order(self) -> Iterator[tuple[int, str]]:
        """All, least rank first."""
        for rank in sorted(self._at):
            for node in self._at[rank]:
                yield rank, node


@dataclass(slots=True)
class _Place:
    """A node and what is on it: clones by pool, parked and leased."""

    facts: NodeFacts
    leased: int = 0
    of_pool: dict[str, int] = field(default_factory=dict[str, int])
    parked: dict[str, int] = field(default_factory=dict[str, int])


Shelf = tuple[str, str, str]
"""A pool, a region and a class of machines: the nodes of one shelf differ only by what is on them."""


class Fleet:
    """Every node, ranked for every pool that has parked clones on it."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._shelves: dict[Shelf, Ranking] = {}
        self._regions: dict[str, dict[str, None]] = {}
        self._parked: dict[str, int] = {}
        self._leased: dict[str, int] = {}
        self._there: Counter[tuple[str, str]] = Counter()
        """Nodes by region and class of machine."""

    def __contains__(self, node: str) -> bool:
        return node in self._places

    def nodes(self) -> Collection[str]:
        return self._places.keys()

    def parked(self, pool: str) -> int:
        """Parked clones of a pool on all nodes that are there."""
        return self._parked.get(pool, 0)

    def leased(self, pool: str) -> int:
        return self._leased.get(pool, 0)

    def load(self, node: str) -> int:
        return self._places[node].leased

    def add(self, facts: NodeFacts) -> None:
        """A node has come, or is other than it was; what is on it stays."""
        place = self._places.get(facts.name)
        if place is None:
            self._places[facts.name] = _Place(facts)
            self._there[facts.region, facts.machine] += 1
        elif place.facts != facts:
            self._there[place.facts.region, place.facts.machine] -= 1
            self._there[facts.region, facts.machine] += 1
            for pool in place.parked:
                self._shelf(pool, place.facts).drop(facts.name)
            place.facts = facts
            for pool in place.parked:
                self._rank(place, pool)

    def remove(self, node: str) -> None:
        """A node has gone, with all that was on it."""
        place = self._places.pop(node, None)
        if place is None:
            return
        self._there[place.facts.region, place.facts.machine] -= 1
        for pool, count in place.parked.items():
            self._shelf(pool, place.facts).drop(node)
            self._parked[pool] -= count
        for pool, count in place.of_pool.items():
            self._leased[pool] -= count

    def park(self, node: str, pool: str, count: int = 1) -> None:
        """Clones of a pool have been parked on a node (fewer are, where `count` is negative)."""
        place = self._places[node]
        now = place.parked.get(pool, 0) + count
        self._parked[pool] = self._parked.get(pool, 0) + count
        place.parked[pool] = now
        if now == count or now <= 0:  # the first one, or the last one
            self._rank(place, pool)

    def lease(self, node: str, pool: str, count: int = 1) -> None:
        """Clones of a pool on a node have been leased (fewer are, where `count` is negative)."""
        place = self._places[node]
        place.leased += count
        place.of_pool[pool] = place.of_pool.get(pool, 0) + count
        self._leased[pool] = self._leased.get(pool, 0) + count
        for name in place.parked:
            self._rank(place, name)

    def nowhere(self, wish: Wish) -> Refusal | None:
        """Why no node can ever serve a claim that insists on a region; None where one can."""
        if not wish.required or any(self._there[wish.region, machine] for machine in wish.machines):
            return None
        return Refusal(Reason.REGION_EMPTY, f"no node in {wish.region} can run a clone of pool {wish.pool}")

    def choose(self, wish: Wish, *, without: Collection[str] = ()) -> str | Refusal:
        """The node whose parked clone a claim is to have, or why there is none now. Changes nothing.

        `without` are nodes that were tried in vain.
        """
        if not wish.machines:
            return Refusal(Reason.NO_COMPATIBLE_NODE, f"no node can restore what pool {wish.pool} is cloned from")
        if wish.region:
            found = self._best(wish, (wish.region,), without)
            if found is not None:
                return found
            if wish.required:
                return self.nowhere(wish) or Refusal(
                    Reason.NONE_PARKED, f"no clone of pool {wish.pool} is parked in {wish.region}"
                )
        found = self._best(wish, self._regions.get(wish.pool, {}), without)
        if found is not None:
            return found
        return Refusal(Reason.NONE_PARKED, f"no clone of pool {wish.pool} is parked")

    def _best(self, wish: Wish, regions: Collection[str], without: Collection[str]) -> str | None:
        best: tuple[int, str] | None = None
        for region in regions:
            for machine in wish.machines:
                shelf = self._shelves.get((wish.pool, region, machine))
                if shelf is None:
                    continue
                first = (
                    shelf.first()
                    if not without
                    else next((one for one in shelf.in_order() if one[1] not in without), None)
                )
                if first is not None and (best is None or first[0] < best[0]):
                    best = first
        return best[1] if best else None

    def _shelf(self, pool: str, facts: NodeFacts) -> Ranking:
        key = (pool, facts.region, facts.machine)
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Ranking()
            self._regions.setdefault(pool, {})[facts.region] = None
        return shelf

    def _rank(self, place: _Place, pool: str) -> None:
        facts = place.facts
        shelf = self._shelf(pool, facts)
        if place.parked.get(pool, 0) <= 0:
            place.parked.pop(pool, None)
            shelf.drop(facts.name)
        else:
            taken = place.of_pool.get(pool, 0)
            shelf.put(facts.name, rank(of_pool=taken, leased=place.leased, capacity=facts.capacity))
