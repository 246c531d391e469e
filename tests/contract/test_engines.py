"""What every engine promises, tried on the fake and on CRIU with real programs."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import pytest

from roads import TEMPLATE, OneRoad, needs_templates
from thawbox.engines import INIT_PID, Engine, Place
from thawbox.engines.criu import CriuEngine
from thawbox.engines.fake import FakeEngine
from thawbox.errors import BrokenChain, CorruptSnapshot, DumpFailed, RestoreFailed
from thawbox.host.namespaces import destroy_shell
from thawbox.host.proc import children, pid_inside
from thawbox.host.reach import connect_within
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Record
from thawbox.sandbox.identity import new_identity
from thawbox.sandbox.links import direct_link
from thawbox.sandbox.shells import raise_shell, remove_remains, rootfs_of

pytestmark = pytest.mark.timeout(300)
WORKLOADS = Path(__file__).parents[1] / "workloads"
PORT = 8000


class Stage(Protocol):
    """Where an engine is tried: trees are begun, looked at and changed, empty places are prepared."""

    engine: Engine

    def begin(self) -> Place: ...
    def prepare(self) -> Place: ...
    def look(self, place: Place) -> object: ...
    def change(self, place: Place) -> None: ...
    def runs(self, place: Place) -> bool: ...
    def freeze(self, place: Place) -> Place: ...
    def is_frozen(self, place: Place) -> bool: ...
    def about_to_dump(self, place: Place) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        self.fake = FakeEngine()
        self.engine: Engine = self.fake

    def begin(self) -> Place:
        return self.fake.begin({number: secrets.token_hex(8) for number in range(50)})

    def prepare(self) -> Place:
        return self.fake.prepare()

    def look(self, place: Place) -> object:
        assert self.runs(place)
        return dict(self.fake.trees[place.keeper].pages)

    def change(self, place: Place) -> None:
        pages = self.fake.trees[place.keeper].pages
        pages[secrets.randbelow(50)] = pages[len(pages)] = secrets.token_hex(8)

    def runs(self, place: Place) -> bool:
        return self.fake.trees[place.keeper].runs

    def freeze(self, place: Place) -> Place:
        return self.fake.freeze(place)

    def is_frozen(self, place: Place) -> bool:
        return self.fake.trees[place.keeper].frozen

    def about_to_dump(self, place: Place) -> None:
        pass


class CriuStage:
    """Sandboxes of a real node, and shells prepared as a restore would, over the files of the first sandbox."""

    def __init__(self, node: Node, undo: ExitStack, *, road: str) -> None:
        engine = node.context.engine
        self.engine: Engine = cast(Engine, OneRoad(cast(CriuEngine, engine), road)) if road else engine
        self._context, self._node, self._undo = node.context, node, undo
        self._records: dict[int, Record] = {}
        self._files: Record | None = None

    def begin(self) -> Place:
        mount = Mount(str(WORKLOADS), "/workloads", read_only=True)
        spec = Spec(("python3", "threads64.py"), workdir="/workloads", mounts=(mount,), ready=f"tcp:{PORT}")
        sandbox = self._node.run(spec)
        self._files = replace(sandbox.record, layers=sandbox.checkpoint().stored.manifest.layers)
        self._records[sandbox.record.keeper_pid] = sandbox.record
        return Place(sandbox.record.keeper_pid)

    def prepare(self) -> Place:
        assert self._files is not None
        identity, context = new_identity(), self._context
        planned = replace(self._files, id=identity.id, name=identity.name, keeper_pid=0, keeper_started=0, generation=0)
        rootfs = rootfs_of(context, planned.spec, planned.rootfs_kind, digest=planned.rootfs_digest)
        shell = raise_shell(context, planned, rootfs, start_init=False)
        record = replace(planned, keeper_pid=shell.keeper, keeper_started=shell.started)
        self._undo.callback(remove_remains, context, record)
        self._undo.callback(destroy_shell, shell.keeper, started=shell.started)
        self._records[shell.keeper] = record
        cgroup = context.cgroup(record.id)
        return Place(shell.keeper, cgroup_procs=(*cgroup.keeper_procs, *cgroup.tree_procs))

    def look(self, place: Place) -> object:
        return self._ask(place, b"move")["nonces"]

    def change(self, place: Place) -> None:
        self._ask(place, b"grow")

    def runs(self, place: Place) -> bool:
        states = [Path(f"/proc/{pid}/status").read_text().partition("State:\t")[2][0] for pid in self._tree(place)]
        return all(state in "SRD" for state in states)

    def freeze(self, place: Place) -> Place:
        cgroup = self._context.cgroup(self._records[place.keeper].id)
        self.about_to_dump(place)
        cgroup.freeze()
        self._undo.callback(cgroup.thaw)
        return replace(place, freezer=cgroup.freezer_dir)

    def is_frozen(self, place: Place) -> bool:
        return self._context.cgroup(self._records[place.keeper].id).is_frozen()

    def about_to_dump(self, place: Place) -> None:
        if place.freezer is None:
            with direct_link(self._records[place.keeper]) as link:
                link.quiesce()

    def _tree(self, place: Place) -> list[int]:
        (init,) = (pid for pid in children(place.keeper) if pid_inside(pid) == INIT_PID)  # a dump may have copies there
        return [init, *children(init)]

    def _ask(self, place: Place, word: bytes) -> dict[str, object]:
        with connect_within(place.keeper, PORT, timeout=60) as connection:
            connection.sendall(word)
            kept: dict[str, object] = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))["kept"]
        return kept


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ENGINES = ("fake", pytest.param("criu", marks=needs_root))
on_every_road = pytest.mark.parametrize(
    "stage", [*ENGINES, pytest.param(TEMPLATE, marks=[needs_root, needs_templates])], indirect=True
)
"""For what is restored: by a template server, too."""


@pytest.fixture(params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "fake":
        yield FakeStage()
        return
    with ExitStack() as undo:
        yield CriuStage(request.getfixturevalue("node"), undo, road=TEMPLATE if request.param == TEMPLATE else "")


@pytest.fixture
def dumped(stage: Stage, tmp_path: Path) -> Callable[[Place, str], Path]:
    """Dumps a tree into a new directory of this name and returns it; the directories are neighbours."""

    def dump(place: Place, name: str) -> Path:
        images = tmp_path / "images" / name
        images.mkdir(parents=True)
        stage.about_to_dump(place)
        stage.engine.dump(place, images, while_stopped=nothing)
        return images

    return dump


Dumped = Callable[[Place, str], Path]


def nothing() -> None:
    pass


@on_every_road
def test_a_dump_lets_the_tree_run_on_and_a_restore_brings_back_what_it_was(stage: Stage, dumped: Dumped) -> None:
    place = stage.begin()
    was = stage.look(place)
    images = dumped(place, "full")
    assert stage.look(place) == was
    stage.change(place)
    assert stage.look(place) != was
    copy = stage.prepare()
    stage.engine.restore(copy, images, before_resume=nothing)
    assert stage.look(copy) == was


def test_nothing_of_the_tree_runs_while_the_caller_is_told_that_it_is_stopped(stage: Stage, tmp_path: Path) -> None:
    place, seen = stage.begin(), []
    assert stage.runs(place)
    stage.about_to_dump(place)
    stage.engine.dump(place, tmp_path, while_stopped=lambda: seen.append(stage.runs(place)))
    assert seen == [False]
    assert stage.runs(place)


def test_what_the_caller_raises_while_it_is_stopped_fails_the_dump_and_the_tree_runs_on(
    stage: Stage, tmp_path: Path
) -> None:
    place = stage.begin()
    was = stage.look(place)

    def refuse() -> None:
        raise KeyError("no room")

    stage.about_to_dump(place)
    with pytest.raises(KeyError, match="no room"):
        stage.engine.dump(place, tmp_path, while_stopped=refuse)
    assert stage.look(place) == was


@on_every_road
def test_a_tree_that_was_frozen_is_frozen_after_its_dump(stage: Stage, dumped: Dumped) -> None:
    place = stage.begin()
    was = stage.look(place)
    images = dumped(stage.freeze(place), "frozen")
    assert stage.is_frozen(place)
    copy = stage.prepare()
    stage.engine.restore(copy, images, before_resume=nothing)
    assert stage.look(copy) == was


@on_every_road
def test_the_caller_is_told_once_before_a_restored_tree_runs(stage: Stage, dumped: Dumped) -> None:
    images, told = dumped(stage.begin(), "full"), []
    stage.engine.restore(stage.prepare(), images, before_resume=lambda: told.append(True))
    assert told == [True]


def test_many_trees_come_from_one_dump_and_go_their_own_ways(stage: Stage, dumped: Dumped) -> None:
    place = stage.begin()
    images, was = dumped(place, "full"), stage.look(place)
    stage.engine.shrink(images)
    stage.engine.warm([images])
    copies = [stage.prepare() for _ in range(3)]
    for copy in copies:
        stage.engine.restore(copy, images, before_resume=nothing)
    assert [stage.look(copy) for copy in copies] == [was] * 3
    stage.change(copies[1])
    for _ in range(2):
        stage.change(copies[2])
    stage.engine.cool(images)
    seen = [stage.look(copy) for copy in (place, *copies)]
    assert seen[:2] == [was, was]
    assert was not in seen[2:]
    assert seen[2] != seen[3]


def test_a_place_without_a_tree_cannot_be_dumped(stage: Stage, tmp_path: Path) -> None:
    stage.begin()
    with pytest.raises(DumpFailed) as failed:
        stage.engine.dump(stage.prepare(), tmp_path, while_stopped=nothing)
    assert failed.value.remediation


def test_images_that_are_not_there_cannot_be_restored(stage: Stage, tmp_path: Path) -> None:
    stage.begin()
    with pytest.raises((RestoreFailed, CorruptSnapshot, OSError)):
        stage.engine.restore(stage.prepare(), tmp_path, before_resume=nothing)


@on_every_road
def test_every_link_of_a_chain_restores_to_what_was_dumped(stage: Stage, dumped: Dumped) -> None:
    place, chain, was = stage.begin(), [], []
    for number in range(3):
        was.append(stage.look(place))
        images = dumped(place, str(number))
        stage.engine.shrink(images, parents=chain, parent_link=f"../{number - 1}" if chain else "")
        chain.append(images)
        stage.change(place)
    for images, kept in zip(chain, was, strict=True):
        copy = stage.prepare()
        stage.engine.restore(copy, images, before_resume=nothing)
        assert stage.look(copy) == kept


def test_a_delta_of_little_change_is_small_and_not_clean(stage: Stage, dumped: Dumped) -> None:
    place = stage.begin()
    base = dumped(place, "base")
    assert not stage.engine.shrink(base)
    stage.change(place)
    delta = dumped(place, "delta")
    assert not stage.engine.shrink(delta, parents=[base], parent_link="../base")
    assert size(delta) < size(base) / 2


@on_every_road
def test_a_flattened_chain_restores_to_the_same_without_its_parents(
    stage: Stage, dumped: Dumped, tmp_path: Path
) -> None:
    place = stage.begin()
    base = dumped(place, "base")
    stage.engine.shrink(base)
    stage.change(place)
    was = stage.look(place)
    delta = dumped(place, "delta")
    stage.engine.shrink(delta, parents=[base], parent_link="../base")
    flat = tmp_path / "flat"
    flat.mkdir()
    stage.engine.flatten([base, delta], flat)
    base.rename(base.with_name("gone"))
    copy = stage.prepare()
    stage.engine.restore(copy, flat, before_resume=nothing)
    assert stage.look(copy) == was


def test_a_delta_against_a_damaged_parent_is_refused_and_the_dump_stays_whole(stage: Stage, dumped: Dumped) -> None:
    place = stage.begin()
    base = dumped(place, "base")
    stage.change(place)
    was = stage.look(place)
    images = dumped(place, "delta")
    for file in base.iterdir():
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises((CorruptSnapshot, BrokenChain)):
        stage.engine.shrink(images, parents=[base], parent_link="../base")
    copy = stage.prepare()
    stage.engine.restore(copy, images, before_resume=nothing)
    assert stage.look(copy) == was


def test_an_engine_says_its_name_and_version(stage: Stage) -> None:
    assert stage.engine.name
    assert stage.engine.version()


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if not file.is_symlink())
