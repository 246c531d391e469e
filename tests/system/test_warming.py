"""Whose memory is held ready, and for how long: the real mechanism in a world of given memory and time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from roads import needs_templates
from thawbox.engines import Engine
from thawbox.errors import CorruptSnapshot, Incompatible
from thawbox.host.machine_memory import total_memory
from thawbox.host.proc import children, command_name
from thawbox.model import SnapshotId, Spec
from thawbox.node import Node, make_criu_engine
from thawbox.pool_plan import IDLE_SECONDS, MOST_BY_DEMAND, SOONEST_RELOAD, WORTH_WARMING
from thawbox.sandbox import Sandbox
from thawbox.sandbox.parking import CloneParking
from thawbox.sandbox.templates import Template
from thawbox.sandbox.warming import hold, look, release, warm_for
from thawbox.supervisor.jobs import Spare, drop_spare, renew_spare
from thawbox.telemetry import Step, Telemetry

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300), needs_templates]

WAIT = 60
PLENTY = total_memory()


@dataclass
class World:
    """The memory that is available and the time, as the node is told; and what it loaded, in order."""

    memory: int = PLENTY
    now: float = field(default_factory=time.time)
    loads: list[object] = field(default_factory=list[object])

    def observe(self, step: Step) -> Callable[[], None]:
        def ended() -> None:
            if step.name == "engine.warm":
                self.loads.append(step.fields["snapshot"])

        return ended

    def open(self, like: Node, *, engine: Engine | None = None) -> Node:
        return Node(
            like.settings, engine=engine, telemetry=Telemetry(self.observe), now=lambda: self.now,
            available_memory=lambda: self.memory,
        )  # fmt: skip


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def given(node: Node, world: World) -> Iterator[Node]:
    """A node in the given world; `node` cleans up."""
    with world.open(node) as given:
        yield given


def snapshots(node: Node, count: int) -> list[SnapshotId]:
    with node.run(Spec(("sleep", "1000"))) as sandbox:
        return [sandbox.checkpoint().id for _ in range(count)]


def warm(node: Node) -> set[SnapshotId]:
    """Those whose memory is held by a living server."""
    there = {snapshot.id for snapshot in node.snapshots()}
    return {one for one in there if node.context.engine.is_warm(node.context.store.layout.images(one))}


def test_all_that_are_asked_for_are_held_and_each_is_loaded_once(given: Node, world: World) -> None:
    wanted = snapshots(given, 2 * MOST_BY_DEMAND)
    for snapshot in wanted:
        assert hold(given.context, snapshot, holder="test", shells=0)
    for _ in range(3):
        look(given.context)
    assert warm(given) == set(wanted)
    assert world.loads == wanted
    for snapshot in wanted:
        release(given.context, snapshot, holder="test")
    assert not warm(given)


def test_many_that_ask_for_the_same_at_once_load_it_once(given: Node, world: World) -> None:
    (snapshot,) = snapshots(given, 1)
    with ThreadPoolExecutor(4) as threads:
        held = [threads.submit(hold, given.context, snapshot, holder=str(number), shells=0) for number in range(4)]
    assert all(one.result() for one in held)
    assert world.loads == [snapshot]


def test_of_those_held_for_demand_alone_the_ones_used_last_stay_and_the_others_are_not_loaded_anew(
    given: Node, world: World
) -> None:
    kept, *asked = snapshots(given, MOST_BY_DEMAND + 3)
    assert hold(given.context, kept, holder="test", shells=0)
    for snapshot in asked:
        world.now += 1
        assert warm_for(given.context, snapshot, WORTH_WARMING)
    for _ in range(3):
        look(given.context)
    assert warm(given) == {kept, *asked[-MOST_BY_DEMAND:]}
    assert world.loads == [kept, *asked]
    world.now += IDLE_SECONDS + 1
    look(given.context)
    assert warm(given) == {kept}


def test_short_memory_takes_everything_and_once_it_is_back_so_is_what_somebody_wants(given: Node, world: World) -> None:
    wanted, demanded = snapshots(given, 2)
    assert hold(given.context, wanted, holder="test", shells=1)
    assert given.context.reserve.wait_full(wanted, timeout=WAIT)
    assert warm_for(given.context, demanded, WORTH_WARMING)
    world.memory = 0
    look(given.context)
    assert not warm(given)
    assert not given.context.reserve.counts()
    world.now += SOONEST_RELOAD
    look(given.context)
    world.memory = PLENTY
    look(given.context)
    assert not warm(given), "memory that comes and goes would be filled each time"
    world.now += SOONEST_RELOAD
    look(given.context)
    assert warm(given) == {wanted}
    assert given.context.reserve.wait_full(wanted, timeout=WAIT)
    assert world.loads == [wanted, demanded, wanted]
    release(given.context, wanted, holder="test")
    assert not warm(given)


def test_what_there_is_no_room_for_is_not_loaded_until_there_is(given: Node, world: World) -> None:
    (snapshot,) = snapshots(given, 1)
    world.memory = 0
    assert not hold(given.context, snapshot, holder="test", shells=0)
    world.memory, world.now = PLENTY, world.now + SOONEST_RELOAD
    look(given.context)
    assert warm(given) == {snapshot}
    assert world.loads == [snapshot]


def test_what_is_released_while_it_is_away_stays_away(given: Node, world: World) -> None:
    (snapshot,) = snapshots(given, 1)
    world.memory = 0
    assert not hold(given.context, snapshot, holder="test", shells=0)
    release(given.context, snapshot, holder="test")
    world.memory, world.now = PLENTY, world.now + SOONEST_RELOAD
    look(given.context)
    assert not warm(given)
    assert not world.loads


PROGRAM = """
import time
state = bytearray(b"x" * (16 << 20))
print("there", flush=True)
time.sleep(10_000)
"""


@pytest.fixture
def template(given: Node) -> Template:
    return given.create_template("golden", Spec(("python3", "-c", PROGRAM), ready="log:there"))


def test_a_pool_shares_memory_again_after_it_was_short(given: Node, world: World, template: Template) -> None:
    parking = CloneParking(given.context, "p", template.name, clones=WORTH_WARMING)
    world.memory = 0
    heavy = parking.park(template.snapshot)
    assert heavy.bytes > 16 << 20
    world.memory, world.now = PLENTY, world.now + SOONEST_RELOAD
    look(given.context)
    lean = parking.park(template.snapshot)
    assert lean.bytes < 8 << 20
    parking.close()
    assert not warm(given)
    for clone in (heavy, lean):
        parking.destroy(clone)


def test_a_spare_is_there_again_after_memory_was_short(given: Node, world: World) -> None:
    with given.run(Spec(("sleep", "1000"))) as sandbox:
        newest = sandbox.checkpoint().id
        world.memory = 0
        spare = renew_spare(given.context, sandbox.id, Spare())
        assert spare == Spare(newest, is_held=False)
        world.memory, world.now = PLENTY, world.now + SOONEST_RELOAD
        look(given.context)
        assert warm(given) == {newest}
        assert renew_spare(given.context, sandbox.id, spare) == spare
        drop_spare(given.context, sandbox.id, spare)
        assert not warm(given)


def servers() -> list[int]:
    return [pid for pid in children(os.getpid()) if command_name(pid) == "criu-template"]


def damage(node: Node, snapshot: SnapshotId) -> None:
    images = node.context.store.fetch(snapshot).images[-1]
    pages = max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    content = bytearray(pages.read_bytes())
    content[len(content) // 2] ^= 1
    pages.chmod(0o600)
    pages.write_bytes(content)


def damaged(node: Node, sandbox: Sandbox) -> Any:
    snapshot = sandbox.checkpoint()
    damage(node, snapshot.id)
    with pytest.raises(CorruptSnapshot):
        snapshot.clone()  # forgets that it was whole when it was last looked at
    return snapshot


def test_a_damaged_snapshot_never_gets_a_server_nor_does_what_is_made_of_it(given: Node, world: World) -> None:
    with given.run(Spec(("sleep", "1000"))) as sandbox:
        first = damaged(given, sandbox)
        for _ in range(2):
            with pytest.raises(CorruptSnapshot):
                first.warm()
            with pytest.raises(CorruptSnapshot):
                first.clones(WORTH_WARMING)
        world.now += SOONEST_RELOAD
        look(given.context)
    assert (world.loads, servers()) == ([], [])
    assert not given.context.reserve.counts()


def test_a_snapshot_that_was_damaged_while_it_was_held_is_not_loaded_anew(given: Node, world: World) -> None:
    (snapshot,) = snapshots(given, 1)
    assert hold(given.context, snapshot, holder="test", shells=0)
    world.memory = 0
    look(given.context)
    damage(given, snapshot)
    with pytest.raises(CorruptSnapshot):
        given.snapshot(snapshot).clone()
    world.memory, world.now = PLENTY, world.now + SOONEST_RELOAD
    look(given.context)
    assert (world.loads, servers()) == ([snapshot], [])


class Elsewhere:
    """The real engine on a machine that has another."""

    name = "other"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def test_a_snapshot_of_another_machine_never_gets_a_server(given: Node, node: Node) -> None:
    (snapshot,) = snapshots(given, 1)
    world = World()
    with ExitStack() as undo:
        engine = make_criu_engine(node.settings)
        undo.callback(engine.close)
        other = undo.enter_context(world.open(node, engine=cast(Engine, Elsewhere(engine))))
        with pytest.raises(Incompatible):
            other.snapshot(snapshot).warm()
        with pytest.raises(Incompatible):
            other.snapshot(snapshot).clones(WORTH_WARMING)
        look(other.context)
        assert (world.loads, servers()) == ([], [])
