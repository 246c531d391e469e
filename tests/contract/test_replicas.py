"""Replicas: what one cannot serve the next does; the bad one is reported and repaired. Directories, and S3."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from s3 import ENVIRONMENT, Proxy, make_bucket, s3_server
from thawbox.errors import BackendUnavailable, CorruptSnapshot, InvalidRequest, SnapshotNotFound
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Record, Store, parent_link
from thawbox.store.backends import Backend, open_backend
from thawbox.store.codec import Codec
from thawbox.store.mirror import Mirror
from thawbox.store.mirror_rules import read_rules
from thawbox.store.pull import remote_snapshots
from thawbox.store.push import push
from thawbox.store.replicas import Replicas
from thawbox.store.transfer import FaultKind
from thawbox.telemetry import Step, Telemetry

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
MINUTE = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "here") as store:
        yield store


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Store]:
    """Another node's store: empty."""
    with Store(tmp_path / "there") as store:
        yield store


MakeBackend = Callable[[], Backend]


@pytest.fixture(params=["directory", "s3"])
def make_backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBackend:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def make() -> Backend:
        name = f"region-{uuid.uuid4().hex[:12]}"
        if request.param == "directory":
            return open_backend(f"file://{tmp_path}/{name}")
        address: str = request.getfixturevalue("server")
        make_bucket(address, name)
        return open_backend(f"s3://{name}/snapshots?endpoint={address}&region=us-east-1", patience=0.0, timeout=MINUTE)

    return make


def put(store: Store, content: bytes, *, parent: Record | None = None, name: str = "") -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(content)
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent.id))
        (staging.layer / "root").mkdir()
        (staging.layer / "root" / "file").write_bytes(content[:1000])
        kind = SnapshotKind.DELTA if parent else SnapshotKind.FULL
        layers = parent.manifest.layers if parent else {}
        draft = Draft(kind, COMPAT, parent=parent.id if parent else None, layers=layers)
        return store.put(staging, draft, name=name)


class Facts:
    """An observer that remembers what happened."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def __call__(self, step: Step) -> Callable[[], None]:
        if step.name == "replica.fault":
            self.faults.append(str(step.fields["kind"]))
        return lambda: None


def replicas(
    store: Store, backends: Sequence[Backend], *, facts: Facts | None = None, patience: float = MINUTE
) -> Replicas:
    telemetry = Telemetry(facts) if facts else Telemetry()
    return Replicas(store, [lambda one=one: one for one in backends], patience=patience, telemetry=telemetry)


def damage(backend: Backend, store: Store, snapshot: SnapshotId) -> None:
    """Change a byte of every chunk of one snapshot's images, and nothing else."""
    for name in backend.names("chunks/"):
        stored = backend.read(name, limit=1 << 30)
        assert stored is not None
        backend.write(name, stored[:-3] + bytes([stored[-3] ^ 1]) + stored[-2:])


def test_a_snapshot_has_one_id_everywhere_and_its_manifest_comes_last(
    here: Store, there: Store, make_backend: MakeBackend
) -> None:
    base = put(here, os.urandom(300_000))
    delta = put(here, b"delta" * 1000, parent=base)
    regions = [make_backend(), make_backend(), make_backend()]
    copies = replicas(here, regions).replicate(delta.id)
    assert [(copied.where, copied.failure) for copied in copies] == [(region.where, None) for region in regions]
    assert all(set(remote_snapshots(region)) == {base.id, delta.id} for region in regions)
    elsewhere = replicas(there, regions)
    assert elsewhere.bring(delta.id[:12]) == delta.id
    assert there.manifest(delta.id) == here.manifest(delta.id)
    assert there.verify(deep=True) == ()
    assert [standing.has for standing in elsewhere.where(delta.id)] == [True, True, True]
    described = Codec().snapshot_name(delta.id)
    assert regions[0].read(described, limit=1 << 20) == regions[2].read(described, limit=1 << 20)


def test_a_damaged_copy_gives_way_to_the_next_is_reported_and_repaired(
    here: Store, there: Store, make_backend: MakeBackend
) -> None:
    record = put(here, os.urandom(300_000))
    bad, good = make_backend(), make_backend()
    replicas(here, [bad, good]).replicate(record.id)
    damage(bad, here, record.id)
    facts = Facts()
    elsewhere = replicas(there, [bad, good], facts=facts)
    elsewhere.bring(record.id)
    assert there.verify([record.id], deep=True) == ()
    assert facts.faults == ["damaged"]
    assert all(not one.faults for one in elsewhere.check([record.id]))


def test_checking_a_replica_names_what_is_wrong_and_repair_makes_it_good_from_another(
    here: Store, there: Store, make_backend: MakeBackend
) -> None:
    record = put(here, os.urandom(300_000))
    bad, good, empty = make_backend(), make_backend(), make_backend()
    replicas(here, [bad, good]).replicate(record.id)
    damage(bad, here, record.id)
    elsewhere = replicas(there, [bad, good, empty])  # a node that has never had the snapshot
    of_bad, of_good, of_empty = elsewhere.check([record.id])
    assert {fault.kind for fault in of_bad.faults} == {FaultKind.DAMAGED}
    assert of_good.faults == ()
    assert [fault.kind for fault in of_empty.faults] == [FaultKind.MISSING]
    repaired = elsewhere.check([record.id], repair=True)
    assert [one.repaired for one in repaired] == [True, False, True]
    assert all(not one.faults for one in elsewhere.check([record.id]))


def test_a_copy_that_cannot_be_repaired_keeps_no_other_from_it(
    here: Store, there: Store, make_backend: MakeBackend
) -> None:
    lost, kept = put(here, os.urandom(50_000)), put(here, os.urandom(50_000))
    bad, good = make_backend(), make_backend()
    push(here, bad, lost.id)
    push(here, bad, kept.id)
    push(here, good, kept.id)
    damage(bad, here, kept.id)  # of both: all chunks are
    of_lost, _, of_kept, _ = replicas(there, [bad, good]).check([lost.id, kept.id], repair=True)
    assert (of_lost.repaired, of_kept.repaired) == (False, True)
    assert of_lost.faults


def test_when_every_copy_is_damaged_nothing_comes_in(here: Store, there: Store, make_backend: MakeBackend) -> None:
    record = put(here, os.urandom(300_000))
    regions = [make_backend(), make_backend()]
    replicas(here, regions).replicate(record.id)
    for region in regions:
        damage(region, here, record.id)
    with pytest.raises(CorruptSnapshot):
        replicas(there, regions).bring(record.id)
    assert there.records() == ()


def test_what_no_replica_has_is_not_found(there: Store, make_backend: MakeBackend) -> None:
    with pytest.raises(SnapshotNotFound):
        replicas(there, [make_backend()]).bring("0" * 64)
    with pytest.raises(SnapshotNotFound, match="nor a replica"):
        replicas(there, [make_backend()]).bring("abcdef")


@pytest.fixture
def region(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[Proxy, Backend]]]:
    """Makes regions whose store is behind a proxy that can be told to misbehave."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made: list[Proxy] = []

    def make() -> tuple[Proxy, Backend]:
        bucket = f"region-{uuid.uuid4().hex[:12]}"
        make_bucket(server, bucket)
        made.append(Proxy(server))
        address = f"s3://{bucket}/x?endpoint={made[-1].url}&region=us-east-1"
        return made[-1], open_backend(address, patience=0.0, timeout=MINUTE)

    yield make
    for proxy in made:
        proxy.close()


def test_a_store_that_hangs_is_passed_over_reported_and_asked_last_from_then_on(
    here: Store, there: Store, region: Callable[[], tuple[Proxy, Backend]]
) -> None:
    record = put(here, os.urandom(3_000_000))
    (slow, tardy), (_, good) = region(), region()
    replicas(here, [tardy, good]).replicate(record.id)
    slow.hangs = True
    facts = Facts()
    replicas(there, [tardy, good], facts=facts, patience=0.2).bring(record.id)
    assert there.verify([record.id], deep=True) == ()
    assert facts.faults == ["slow"]
    assert there.fetch(record.id).id == record.id


def test_a_store_that_is_away_is_passed_over_and_reported_and_the_others_get_their_copies(
    here: Store, there: Store, region: Callable[[], tuple[Proxy, Backend]]
) -> None:
    record = put(here, os.urandom(300_000))
    (gone, away), (_, good) = region(), region()
    gone.refuses = True
    copies = replicas(here, [away, good]).replicate(record.id)
    assert [type(copied.failure) for copied in copies] == [BackendUnavailable, type(None)]
    facts = Facts()
    elsewhere = replicas(there, [away, good], facts=facts)
    elsewhere.bring(record.id)
    assert facts.faults == ["unreachable"]
    assert [standing.has for standing in elsewhere.where(record.id)] == [None, True]
    with Store(there.layout.root.with_name("third")) as third, pytest.raises(BackendUnavailable):
        replicas(third, [away]).bring(record.id)


def test_mirroring_copies_what_the_rules_name_and_nothing_else(here: Store, make_backend: MakeBackend) -> None:
    regions = [make_backend(), make_backend()]
    first = put(here, b"1" * 5000, name="keep-1")
    with Mirror(here, replicas(here, regions), read_rules("name:keep-*"), period=0.01) as mirror:
        assert mirror.wait_for(first.id, timeout=MINUTE)
        other = put(here, b"2" * 5000, name="other")
        second = put(here, b"3" * 5000, name="keep-2")
        assert mirror.wait_for(second.id, timeout=MINUTE)
    assert all(set(remote_snapshots(region)) == {first.id, second.id} for region in regions)
    assert other.id in here.catalog.ids()


def test_a_replica_that_is_away_holds_up_no_other_and_gets_its_copies_once_it_is_back(
    here: Store, region: Callable[[], tuple[Proxy, Backend]]
) -> None:
    (gone, away), (_, good) = region(), region()
    gone.refuses = True
    record = put(here, os.urandom(100_000))
    with Mirror(here, replicas(here, [away, good]), read_rules("all"), period=0.01) as mirror:
        with Mirror(here, replicas(here, [good]), read_rules("all"), period=0.01) as of_good:
            assert of_good.wait_for(record.id, timeout=MINUTE)
        gone.refuses = False
        assert mirror.wait_for(record.id, timeout=MINUTE)
    assert remote_snapshots(away) == (record.id,)


def test_a_damaged_snapshot_is_never_copied(here: Store, make_backend: MakeBackend) -> None:
    damaged, sound = put(here, b"1" * 5000), put(here, b"2" * 5000)
    (here.layout.images(damaged.id) / "pages-1.img").write_bytes(b"3" * 5000)
    backend = make_backend()
    with Mirror(here, replicas(here, [backend]), read_rules("all"), period=0.01) as mirror:
        assert mirror.wait_for(sound.id, timeout=MINUTE)
    assert damaged.id not in remote_snapshots(backend)


class Telling:
    """A backend that tells of each snapshot before whoever asked for it hears of it."""

    def __init__(self, backend: Backend, committed: Callable[[], None]) -> None:
        self._backend = backend
        self._committed = committed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def write_once(self, name: str, content: bytes) -> bool:
        written = self._backend.write_once(name, content)
        if name.startswith("snapshots/"):
            self._committed()
        return written


def test_a_snapshot_that_goes_as_it_was_copied_ends_no_mirroring(here: Store, make_backend: MakeBackend) -> None:
    gone, is_copied = put(here, b"1" * 5000).id, threading.Event()

    def remove_once() -> None:
        if not is_copied.is_set():
            shutil.rmtree(here.layout.snapshot(gone))  # as another process may: whoever pushes only reads it
            is_copied.set()

    backend: Any = Telling(make_backend(), remove_once)
    with Mirror(here, replicas(here, [backend]), read_rules("all"), period=0.01) as mirror:
        assert is_copied.wait(MINUTE)
        kept = put(here, b"2" * 5000).id
        assert mirror.wait_for(kept, timeout=MINUTE)


def test_an_address_carries_where_a_store_is_and_never_a_credential(tmp_path: Path) -> None:
    shown = open_backend("s3://bucket/x?endpoint=http://127.0.0.1:1&region=here").where
    assert shown == "s3://bucket/x"
    for key in ("secret_access_key", "access_key_id", "token"):
        with pytest.raises(InvalidRequest, match="credentials belong into the environment") as caught:
            open_backend(f"s3://bucket/x?{key}=hidden-value")
        assert "hidden-value" not in str(caught.value)


def test_pushing_again_to_a_damaged_replica_trusts_it_and_checking_does_not(
    here: Store, make_backend: MakeBackend
) -> None:
    record = put(here, os.urandom(50_000))
    backend = make_backend()
    push(here, backend, record.id)
    damage(backend, here, record.id)
    assert push(here, backend, record.id).moved_bytes == 0
    (checked,) = replicas(here, [backend]).check([record.id], repair=True)
    assert checked.repaired
    assert replicas(here, [backend]).check([record.id])[0].faults == ()
