"""Whatever comes, goes, is parked and leased: the fleet chooses what looking at every node would choose."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thawbox.cluster.facts import NodeFacts, Reason, Refusal, Wish
from thawbox.cluster.placement import Fleet, rank

POOLS, REGIONS, MACHINES = ("web", "job"), ("a", "b"), ("m1", "m2")
NAMES = st.sampled_from([f"n{number}" for number in range(8)])
pools, regions = st.sampled_from(POOLS), st.sampled_from(REGIONS)


@dataclass
class Known:
    facts: NodeFacts
    parked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POOLS, 0))
    leased: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POOLS, 0))

    def rank(self, pool: str) -> int:
        return rank(of_pool=self.leased[pool], leased=sum(self.leased.values()), capacity=self.facts.capacity)


class Placing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.known: dict[str, Known] = {}

    @rule(name=NAMES, region=regions, machine=st.sampled_from(MACHINES), capacity=st.integers(1, 8))
    def come(self, name: str, region: str, machine: str, capacity: int) -> None:
        facts = NodeFacts(name, region, machine, capacity)
        self.fleet.add(facts)
        self.known.setdefault(name, Known(facts)).facts = facts

    @rule(name=NAMES)
    def go(self, name: str) -> None:
        self.fleet.remove(name)
        self.known.pop(name, None)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), pool=pools, count=st.integers(1, 3))
    def park(self, data: st.DataObject, pool: str, count: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.fleet.park(name, pool, count)
        self.known[name].parked[pool] += count

    @precondition(lambda self: any(sum(one.leased.values()) for one in self.known.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        leased = [(name, pool) for name, one in sorted(self.known.items()) for pool in POOLS if one.leased[pool]]
        name, pool = data.draw(st.sampled_from(leased))
        self.fleet.lease(name, pool, -1)
        self.known[name].leased[pool] -= 1

    @rule(
        pool=pools, region=st.sampled_from(("", *REGIONS)), required=st.booleans(),
        machines=st.sets(st.sampled_from(MACHINES)), without=st.sets(NAMES, max_size=3),
    )  # fmt: skip
    def claim(self, pool: str, region: str, required: bool, machines: set[str], without: set[str]) -> None:
        wish = Wish(pool, frozenset(machines), region, required and bool(region))
        fit = {
            name: one for name, one in self.known.items()
            if one.parked[pool] and one.facts.machine in machines and name not in without
        }  # fmt: skip
        near = {name: one for name, one in fit.items() if one.facts.region == region}
        allowed = near or ({} if wish.required else fit)
        chosen = self.fleet.choose(wish, without=without)
        if not allowed:
            assert isinstance(chosen, Refusal)
            there = any(one.facts.region == region and one.facts.machine in machines for one in self.known.values())
            assert (chosen.reason is Reason.REGION_EMPTY) == bool(machines and wish.required and not there)
            return
        assert isinstance(chosen, str)
        assert chosen in allowed
        assert allowed[chosen].rank(pool) == min(one.rank(pool) for one in allowed.values())
        self.fleet.park(chosen, pool, -1)
        self.fleet.lease(chosen, pool)
        self.known[chosen].parked[pool] -= 1
        self.known[chosen].leased[pool] += 1

    @invariant()
    def counts_agree(self) -> None:
        for pool in POOLS:
            assert self.fleet.parked(pool) == sum(one.parked[pool] for one in self.known.values())
            assert self.fleet.leased(pool) == sum(one.leased[pool] for one in self.known.values())


TestPlacing = Placing.TestCase
TestPlacing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
