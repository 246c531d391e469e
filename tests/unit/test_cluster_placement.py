"""Placement and pool plans, example by example; tests/property holds placement to a model."""

from __future__ import annotations

from thawbox.cluster.facts import Machines, NodeFacts, Reason, Refusal, Wish
from thawbox.cluster.placement import Fleet
from thawbox.cluster.scale_plan import Counts, Demand, Marks, Orders, admit, parked_target, plan
from thawbox.store.compat import Compat

ANY = frozenset({"m"})


def fleet(*nodes: tuple[str, str], machine: str = "m", parked: int = 2) -> Fleet:
    made = Fleet()
    for name, region in nodes:
        made.add(NodeFacts(name, region, machine, capacity=16))
        made.park(name, "web", parked)
    return made


def take(made: Fleet, wish: Wish) -> str:
    chosen = made.choose(wish)
    assert isinstance(chosen, str)
    made.park(chosen, wish.pool, -1)
    made.lease(chosen, wish.pool)
    return chosen


def test_claims_go_to_their_region_while_it_has_a_clone_and_elsewhere_after() -> None:
    made = fleet(("a1", "a"), ("b1", "b"))
    assert [take(made, Wish("web", ANY, "b")) for _ in range(3)] == ["b1", "b1", "a1"]


def test_a_claim_that_insists_on_its_region_waits_for_it() -> None:
    made = fleet(("a1", "a"), ("b1", "b"))
    wish = Wish("web", ANY, "b", required=True)
    while made.parked("web") > 2:
        take(made, wish)
    refused = made.choose(wish)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NONE_PARKED
    made.remove("b1")
    nowhere = made.choose(wish)
    assert isinstance(nowhere, Refusal)
    assert nowhere.reason is Reason.REGION_EMPTY


def test_claims_that_come_together_are_spread_over_the_nodes() -> None:
    made = fleet(("a1", "a"), ("a2", "a"), ("a3", "a"))
    assert sorted(take(made, Wish("web", ANY)) for _ in range(3)) == ["a1", "a2", "a3"]
    assert sorted(take(made, Wish("web", ANY)) for _ in range(3)) == ["a1", "a2", "a3"]


def test_of_nodes_with_as_many_of_the_pool_the_least_loaded_is_chosen() -> None:
    made = fleet(("a1", "a"), ("a2", "a"))
    made.lease("a1", "other", 8)
    assert take(made, Wish("web", ANY)) == "a2"


def test_only_machines_that_can_restore_the_snapshot_are_chosen() -> None:
    machines = Machines()
    machines.add("old", Compat("x86_64", "6.1.0", "criu 4.2.1", ("avx",)))
    machines.add("new", Compat("x86_64", "6.8.0", "criu 4.2.1", ("avx", "avx512f")))
    machines.add("arm", Compat("aarch64", "6.8.0", "criu 4.2.1"))
    assert machines.fitting(Compat("x86_64", "6.8.0", "criu 4.2.1", ("avx512f",))) == {"new"}
    assert machines.fitting(Compat("x86_64", "6.1.0", "criu 4.2.1", ("avx",))) == {"old", "new"}
    made = fleet(("a1", "a"), machine="old")
    refused = made.choose(Wish("web", machines.fitting(Compat("x86_64", "6.8.0", "criu 5.0", ()))))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NO_COMPATIBLE_NODE


def test_a_node_that_goes_takes_its_clones_out_of_every_count() -> None:
    made = fleet(("a1", "a"), ("a2", "a"))
    take(made, Wish("web", ANY))
    made.remove("a1")
    assert (made.parked("web"), made.leased("web")) == (2, 0)
    assert [take(made, Wish("web", ANY)) for _ in range(2)] == ["a2", "a2"]


def test_a_pool_grows_by_what_waits_and_what_bursts_bring_and_never_over_its_limit() -> None:
    marks = Marks(2, 10, 20)
    assert plan(Counts(), marks, target=2) == Orders(create=2)
    assert plan(Counts(waiting=5, coming=1), marks, target=2) == Orders(create=6)
    assert plan(Counts(waiting=50, leased=15, coming=2), marks, target=10) == Orders(create=3)
    assert plan(Counts(leased=20, waiting=9), marks, target=10) == Orders()
    assert parked_target(marks, 3, refill=4.0) == 6
    assert parked_target(marks, 100, refill=4.0) == 10


def test_a_pool_shrinks_a_part_at_a_time_and_not_while_anybody_waits() -> None:
    marks = Marks(2, 10, 20)
    assert plan(Counts(parked=10), marks, target=2) == Orders(delete=2)
    assert plan(Counts(parked=3), marks, target=2) == Orders(delete=1)
    assert plan(Counts(parked=10, waiting=9), marks, target=2) == Orders(create=1)


def test_demand_remembers_the_largest_burst_of_the_last_minute() -> None:
    demand = Demand()
    for number in range(30):
        demand.add(10.0 + number / 100)
    demand.add(40.0)
    assert demand.peak(40.0) == 30
    assert demand.peak(69.0) == 30
    assert demand.peak(71.0) == 1
    assert demand.peak(200.0) == 0


def test_back_pressure_has_a_reason_and_says_when_to_come_back() -> None:
    marks = Marks(1, 4, 8, most_waiting=5)
    assert admit(Counts(parked=1), marks, timeout=1, per_second=0) is None
    assert admit(Counts(waiting=2), marks, timeout=1, per_second=0) is None
    exhausted = admit(Counts(leased=8), marks, timeout=30, per_second=0.1)
    crowded = admit(Counts(waiting=5), marks, timeout=30, per_second=100)
    late = admit(Counts(waiting=4), marks, timeout=1, per_second=0.5)
    told = [(one.reason, one.retry_after) for one in (exhausted, crowded, late) if one is not None]
    assert told == [(Reason.POOL_EXHAUSTED, 10.0), (Reason.TOO_MANY_WAITING, 1.0), (Reason.TOO_MANY_WAITING, 9.0)]
