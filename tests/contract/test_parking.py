"""What a pool may rely on, tried on real clones and on the fake that the pool's own tests use."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fake_parking import FakeParking
from thawbox.errors import NotFound, SandboxNotFound, ThawboxError
from thawbox.model import Mount, SandboxId, SnapshotId, Spec
from thawbox.sandbox.parking import CloneParking, Parked, Parking

WORKLOADS = Path(__file__).parents[1] / "workloads"
FAR = 4e9
"""A lease's end in the far future, seconds since the epoch."""


class Trial(Protocol):
    parking: Parking

    def kill(self, clone: Parked) -> None: ...

    def owned(self) -> set[SandboxId]: ...


class FakeTrial:
    def __init__(self) -> None:
        self.parking = FakeParking()

    def kill(self, clone: Parked) -> None:
        self.parking.kill(clone.id)

    def owned(self) -> set[SandboxId]:
        return set(self.parking.records)


class RealTrial:
    def __init__(self, request: pytest.FixtureRequest) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        self.node = request.getfixturevalue("node")
        mount = Mount(str(WORKLOADS), "/workloads", read_only=True)
        spec = Spec(("python3", "-B", "/workloads/tiny.py"), mounts=(mount,), ready="tcp:8000")
        self.node.create_template("tiny", spec)
        self.parking = CloneParking(self.node.context, "trial", "tiny")

    def kill(self, clone: Parked) -> None:
        os.kill(clone.record.keeper_pid, signal.SIGKILL)

    def owned(self) -> set[SandboxId]:
        return {sandbox.id for sandbox in self.node.sandboxes()}


@pytest.fixture(params=["fake", "real"])
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    yield FakeTrial() if request.param == "fake" else RealTrial(request)


@pytest.fixture
def parked(trial: Trial) -> Iterator[Parked]:
    clone = trial.parking.park(trial.parking.digest())
    yield clone
    trial.parking.destroy(clone)


def test_a_parked_clone_says_what_it_was_made_of_and_is_unharmed(trial: Trial, parked: Parked) -> None:
    assert parked.digest == trial.parking.digest()
    assert trial.parking.is_unharmed(parked)
    assert not trial.parking.is_removed(parked)
    assert trial.owned() == {parked.id}


def test_a_clone_is_handed_over_once(trial: Trial, parked: Parked) -> None:
    sandbox = trial.parking.hand_over(parked, lease="one", until=FAR)
    assert sandbox.id == parked.id
    assert not trial.parking.is_unharmed(parked)
    with pytest.raises(ThawboxError):
        trial.parking.hand_over(parked, lease="two", until=FAR)
    assert [clone.record.lease for clone in trial.parking.inherited().leased] == ["one"]


def test_a_killed_clone_is_not_unharmed_and_not_handed_over(trial: Trial, parked: Parked) -> None:
    trial.kill(parked)
    assert not trial.parking.is_unharmed(parked)
    with pytest.raises(ThawboxError):
        trial.parking.hand_over(parked, lease="one", until=FAR)


def test_a_clone_that_dies_while_it_runs_is_told_by_its_descriptor(trial: Trial, parked: Parked) -> None:
    assert parked.death is not None
    trial.parking.hand_over(parked, lease="one", until=FAR)
    trial.kill(parked)
    assert select.select([parked.death], [], [], 30)[0]


def test_destroying_leaves_nothing_and_may_be_done_twice(trial: Trial, parked: Parked) -> None:
    trial.parking.destroy(parked)
    trial.parking.destroy(parked)
    assert trial.owned() == set()
    assert trial.parking.is_removed(parked)
    assert parked.death is not None
    assert parked.death.closed


def test_a_leased_or_killed_clone_can_be_destroyed(trial: Trial, parked: Parked) -> None:
    trial.parking.hand_over(parked, lease="one", until=FAR)
    other = trial.parking.park(trial.parking.digest())
    trial.kill(other)
    trial.parking.destroy(parked)
    trial.parking.destroy(other)
    assert trial.owned() == set()


def test_a_failed_restore_leaves_nothing(trial: Trial) -> None:
    with pytest.raises(ThawboxError):
        trial.parking.park(SnapshotId("0" * 64))
    assert trial.owned() == set()


def test_what_an_earlier_life_parked_is_found_checked_and_handed_over(trial: Trial, parked: Parked) -> None:
    trial.parking.forget(parked)
    (found,) = trial.parking.inherited().parked
    again = trial.parking.recheck(found)
    assert again.id == parked.id
    assert again.digest == parked.digest
    assert trial.parking.is_unharmed(again)
    trial.parking.hand_over(again, lease="one", until=FAR)
    trial.parking.forget(again)


def test_what_died_meanwhile_is_destroyed_when_it_is_checked(trial: Trial, parked: Parked) -> None:
    trial.kill(parked)
    (found,) = trial.parking.inherited().parked
    with pytest.raises(ThawboxError):
        trial.parking.recheck(found)
    assert trial.owned() == set()


def test_a_lease_is_extended_for_as_long_as_its_sandbox_is_there(trial: Trial, parked: Parked) -> None:
    trial.parking.hand_over(parked, lease="one", until=FAR)
    trial.parking.extend(parked, until=FAR + 5)
    (leased,) = trial.parking.inherited().leased
    assert leased.record.lease_until == FAR + 5
    trial.parking.destroy(parked)
    with pytest.raises(SandboxNotFound):
        trial.parking.extend(parked, until=FAR)


def test_without_a_template_there_is_no_digest(trial: Trial) -> None:
    if isinstance(trial, RealTrial):
        trial.node.remove_template("tiny")
    else:
        trial.parking.golden = None  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        trial.parking.digest()
