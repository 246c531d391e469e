"""The rules of chains, over plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawbox.chain import Link, chain_of, children_of, plan_gc, subtree, unused_layers
from thawbox.errors import BrokenChain
from thawbox.model import SnapshotId


def one(name: str, parent: str | None = None, **options: object) -> Link:
    return Link(SnapshotId(name), SnapshotId(parent) if parent else None, own_bytes=100, **options)  # type: ignore[arg-type]


def ids(verdicts: list) -> list[str]:
    return [verdict.id for verdict in verdicts]


def test_a_chain_is_listed_base_first() -> None:
    parents = {"c": "b", "b": "a", "a": None}
    assert chain_of(SnapshotId("c"), parents.__getitem__) == ("a", "b", "c")  # type: ignore[arg-type]


def test_an_endless_chain_is_broken() -> None:
    with pytest.raises(BrokenChain):
        chain_of(SnapshotId("a"), lambda snapshot: snapshot)


def test_children_are_removed_before_their_parents() -> None:
    links = [one("a"), one("b", "a"), one("c", "b"), one("d", "a")]
    order = subtree(SnapshotId("a"), children_of(links))
    assert set(order) == {"a", "b", "c", "d"}
    assert order.index(SnapshotId("c")) < order.index(SnapshotId("b")) < order.index(SnapshotId("a"))


def test_without_budget_and_expiry_nothing_goes() -> None:
    assert plan_gc([one("a"), one("b", "a")], now=5.0, layer_bytes={}) == ([], [])


def test_over_the_budget_the_least_recently_used_leaf_goes_first() -> None:
    links = [one("a", used_at=1.0), one("b", "a", used_at=9.0), one("c", used_at=5.0)]
    going, kept = plan_gc(links, now=10.0, layer_bytes={}, budget=200)
    assert (ids(going), kept) == (["c"], [])


def test_a_parent_is_a_leaf_once_its_last_child_has_gone() -> None:
    links = [one("a", used_at=1.0), one("b", "a", used_at=2.0), one("c", used_at=5.0)]
    going, _ = plan_gc(links, now=10.0, layer_bytes={}, budget=100)
    assert ids(going) == ["b", "a"]


def test_what_must_stay_is_told_with_its_reason() -> None:
    links = [
        one("a"),
        one("b", "a", pinned=True),
        one("c", kept_by="sandbox:sb-1"),
        one("d", expires_at=1.0, pinned=True),
    ]
    going, kept = plan_gc(links, now=10.0, layer_bytes={}, budget=1)
    reasons = {verdict.id: verdict.reason for verdict in kept}
    assert going == []
    assert "b is a delta of it" in reasons[SnapshotId("a")]
    assert "pinned" in reasons[SnapshotId("b")]
    assert "sandbox:sb-1" in reasons[SnapshotId("c")]
    assert any(verdict.id == "d" and "expired" in verdict.reason for verdict in kept)


def test_an_expired_parent_goes_only_after_its_children() -> None:
    links = [one("a", expires_at=1.0), one("b", "a"), one("c", expires_at=1.0), one("d", "c", expires_at=2.0)]
    going, kept = plan_gc(links, now=10.0, layer_bytes={})
    assert ids(going) == ["d", "c"]
    assert ids(kept) == ["a"]


def test_a_shared_layer_is_freed_with_its_last_user() -> None:
    links = [one("a", layers=frozenset("x"), used_at=1.0), one("b", layers=frozenset("xy"), used_at=2.0)]
    going, _ = plan_gc(links, now=10.0, layer_bytes={"x": 1000, "y": 10}, budget=1)
    assert [(verdict.id, verdict.frees) for verdict in going] == [("a", 100), ("b", 1110)]


def test_a_held_layer_counts_as_used_and_is_not_unused() -> None:
    links = [one("a", layers=frozenset("x"))]
    going, _ = plan_gc(links, now=1.0, layer_bytes={"x": 1000}, held_layers=["x"], budget=1)
    assert going[0].frees == 100
    assert unused_layers(["x", "y", "z"], [one("b", layers=frozenset("z"))], held=["x"]) == ("y",)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), st.integers(0, 5)), max_size=12),
    st.integers(0, 1500),
)
def test_no_plan_orphans_a_child_or_touches_what_is_kept(shape: list[tuple[int, bool, bool, int]], budget: int) -> None:
    links = [
        Link(
            SnapshotId(str(number)),
            SnapshotId(str(parent)) if parent < number else None,
            own_bytes=100,
            pinned=pinned,
            kept_by="sandbox" if held else "",
            expires_at=float(expiry) if expiry else None,
        )
        for number, (parent, pinned, held, expiry) in enumerate(shape)
    ]
    by_id = {link.id: link for link in links}
    children = children_of(links)
    gone: set[str] = set()
    going, _ = plan_gc(links, now=3.0, layer_bytes={}, budget=budget)
    for verdict in going:
        assert not by_id[verdict.id].pinned
        assert not by_id[verdict.id].kept_by
        assert set(children.get(verdict.id, ())) <= gone
        gone.add(verdict.id)
