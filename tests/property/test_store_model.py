"""The store behaves like a dict of snapshots that refuses to orphan a child, whatever is asked in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from thawbox.errors import InvalidRequest, SnapshotNotFound
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Store, parent_link

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")
NAMES = st.sampled_from(["tip", "a", "b.c", "x-1"])


@dataclass
class Snapshot:
    """What the model knows of one snapshot."""

    content: bytes
    parent: SnapshotId | None
    tree: dict[str, bytes]
    beneath: tuple[str, ...]
    pinned: bool = False
    layers: tuple[str, ...] = field(default=())


class StoreAgainstDict(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="thawbox-model-"))
        self.clock = 1000.0
        self.store = Store(self.root, now=self.tick)
        self.model: dict[SnapshotId, Snapshot] = {}
        self.names: dict[str, SnapshotId] = {}
        self.held: dict[str, SnapshotId] = {}

    def tick(self) -> float:
        self.clock += 1
        return self.clock

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    def children(self, snapshot: SnapshotId) -> set[SnapshotId]:
        return {one for one, known in self.model.items() if known.parent == snapshot}

    def subtree(self, snapshot: SnapshotId) -> set[SnapshotId]:
        return {snapshot}.union(*(self.subtree(child) for child in self.children(snapshot)))

    def put(self, content: bytes, parent: SnapshotId | None, tree: dict[str, bytes], name: str | None) -> SnapshotId:
        beneath = self.model[parent].layers if parent else ()
        with self.store.stage() as staging:
            (staging.images / "pages-1.img").write_bytes(content)
            if parent:
                (staging.images / "parent").symlink_to(parent_link(parent))
            (staging.layer / "root").mkdir()
            for file, text in tree.items():
                (staging.layer / "root" / file).write_bytes(text)
            draft = Draft(
                SnapshotKind.DELTA if parent else SnapshotKind.FULL,
                COMPAT,
                parent=parent,
                layers={"root": beneath} if beneath else {},
            )
            record = self.store.put(staging, draft, name=name or "")
        self.model[record.id] = Snapshot(content, parent, tree, beneath, layers=record.manifest.layers["root"])
        if name:
            self.names[name] = record.id
        return record.id

    @rule(
        target=snapshots,
        content=st.binary(max_size=40),
        tree=st.dictionaries(st.sampled_from("pqr"), st.binary(max_size=5), max_size=2),
        name=st.none() | NAMES,
    )
    def put_full(self, content: bytes, tree: dict[str, bytes], name: str | None) -> SnapshotId:
        return self.put(content, None, tree, name)

    @rule(
        target=snapshots,
        parent=snapshots,
        content=st.binary(max_size=40),
        tree=st.dictionaries(st.sampled_from("pqr"), st.binary(max_size=5), max_size=2),
        name=st.none() | NAMES,
    )
    def put_delta(self, parent: SnapshotId, content: bytes, tree: dict[str, bytes], name: str | None):
        return self.put(content, parent, tree, name) if parent in self.model else multiple()

    @rule(snapshot=snapshots, cascade=st.booleans())
    def remove(self, snapshot: SnapshotId, cascade: bool) -> None:
        going = self.subtree(snapshot) if snapshot in self.model else set()
        blocked = any(self.model[one].pinned or one in self.held.values() for one in going)
        if not going:
            with pytest.raises(SnapshotNotFound):
                self.store.remove(snapshot, cascade=cascade)
        elif blocked or (len(going) > 1 and not cascade):
            with pytest.raises(InvalidRequest):
                self.store.remove(snapshot, cascade=cascade)
        else:
            assert set(self.store.remove(snapshot, cascade=cascade)) == going
            self.forget(going)

    def forget(self, gone: set[SnapshotId]) -> None:
        self.model = {one: known for one, known in self.model.items() if one not in gone}
        self.names = {name: one for name, one in self.names.items() if one not in gone}

    @rule(snapshot=snapshots, name=NAMES)
    def give_a_name(self, snapshot: SnapshotId, name: str) -> None:
        if snapshot in self.model:
            self.store.name(snapshot, name)
            self.names[name] = snapshot

    @rule(snapshot=snapshots, pinned=st.booleans())
    def pin(self, snapshot: SnapshotId, pinned: bool) -> None:
        if snapshot in self.model:
            self.store.pin(snapshot, pinned=pinned)
            self.model[snapshot].pinned = pinned

    @rule(snapshot=snapshots, holder=st.sampled_from(["sandbox:sb-1", "sandbox:sb-2"]))
    def hold(self, snapshot: SnapshotId, holder: str) -> None:
        if snapshot in self.model and holder not in self.held:
            self.store.hold(holder, snapshots=[snapshot])
            self.held[holder] = snapshot

    @rule(holder=st.sampled_from(["sandbox:sb-1", "sandbox:sb-2"]))
    def release(self, holder: str) -> None:
        self.store.release(holder)
        self.held.pop(holder, None)

    @rule(budget=st.integers(min_value=0, max_value=300))
    def collect(self, budget: int) -> None:
        report = self.store.gc(budget=budget)
        gone = {verdict.id for verdict in report.removed}
        for one in gone:
            assert not self.model[one].pinned
            assert one not in self.held.values()
            assert self.children(one) <= gone
        self.forget(gone)
        assert self.store.catalog.layers_on_disk() == {digest for one in self.model.values() for digest in one.layers}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.root, now=self.tick)

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        assert {record.id for record in self.store.records()} == set(self.model)
        assert {name: record.id for record in self.store.records() for name in record.facts.names} == self.names

    @invariant()
    def every_snapshot_comes_back(self) -> None:
        for snapshot, known in self.model.items():
            fetched = self.store.fetch(snapshot)
            assert (fetched.images[-1] / "pages-1.img").read_bytes() == known.content
            assert len(fetched.layers["root"]) == len(known.layers)
            top = fetched.layers["root"][-1]
            if known.tree or not known.beneath:
                assert {path.name: path.read_bytes() for path in top.iterdir()} == known.tree


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
