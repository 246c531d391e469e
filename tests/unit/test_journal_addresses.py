"""Addresses of sandboxes: each has one of its own, and what a removed one had is given away last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from thawbox.errors import InvalidRequest, Unavailable
from thawbox.model import Phase, SandboxId, Spec
from thawbox.sandbox import Journal, Record

RECORD = Record(
    id=SandboxId("sb-000000000000"), name="one", spec=Spec(("true",)), phase=Phase.RUNNING, created_at=0.0,
    hostname="one", machine_id="0" * 32,
)  # fmt: skip


def named(name: str) -> Record:
    return replace(RECORD, id=SandboxId(f"sb-{name}"), name=name)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def test_the_address_of_a_removed_sandbox_is_given_away_last(journal: Journal) -> None:
    subnet = "10.9.0.0/29"  # five addresses, less the node's own
    first = journal.add_with_address(named("first"), subnet)
    assert first.address == "10.9.0.2"
    journal.remove(first.id)
    others = [journal.add_with_address(named(f"n{number}"), subnet).address for number in range(4)]
    assert others == ["10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]
    assert journal.add_with_address(named("last"), subnet).address == first.address
    with pytest.raises(Unavailable, match="every address"):
        journal.add_with_address(named("more"), subnet)


def test_another_subnet_begins_anew_within_its_bounds(journal: Journal) -> None:
    journal.add_with_address(named("old"), "10.9.0.0/24")
    found = [journal.add_with_address(named(f"n{number}"), "10.8.0.0/29").address for number in range(5)]
    assert sorted(found) == [f"10.8.0.{number}" for number in range(2, 7)]


def test_whose_name_or_address_is_taken_is_told_what_to_do(journal: Journal) -> None:
    journal.add(replace(RECORD, address="10.9.0.2"))
    for taken in (named("one"), replace(named("two"), address="10.9.0.2")):
        with pytest.raises(InvalidRequest, match="is taken") as refused:
            journal.add(taken, remedy="do without it")
        assert refused.value.remediation == "do without it"
