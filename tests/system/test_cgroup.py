"""Real groups, real processes, both freezers."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from thawbox.errors import InvalidSpec, SandboxNotFound, Unavailable
from thawbox.host.cgroup import Cgroup, list_groups, remove_node_group
from thawbox.host.cgroup_layout import Layout, Placement, detect_layout
from thawbox.host.cgroup_limits import Limits
from thawbox.model import SandboxId

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TICKER = "import sys\nfor _ in sys.stdin:\n    print('tick', flush=True)"
"""Answers each line with one: a frozen one answers nothing."""


@pytest.fixture(params=["as found", "version 2 freezer"])
def layout(request: pytest.FixtureRequest) -> Layout:
    found = detect_layout()
    if request.param == "as found":
        return found
    if found.v2 is None:
        pytest.skip("no version 2 hierarchy on this machine")
    return found.without("freezer")


@pytest.fixture(params=list(Placement))
def cgroup(request: pytest.FixtureRequest, layout: Layout) -> Iterator[Cgroup]:
    tag, sandbox_id = f"test{secrets.token_hex(4)}", SandboxId(f"sb-{secrets.token_hex(6)}")
    group = Cgroup(layout, tag, sandbox_id, request.param)
    yield group
    group.kill_all()
    group.remove()
    remove_node_group(layout, group.node_tag, group.placement)
    assert not list_groups(layout, group.node_tag, group.placement)


def start(cgroup: Cgroup, code: str, undo: ExitStack, *, tree: bool = True) -> subprocess.Popen[str]:
    files = (*cgroup.keeper_procs, *(cgroup.tree_procs if tree else ()))
    entering = "".join(f"open({str(file)!r}, 'w').write('0')\n" for file in files)
    program = undo.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", entering + "print('in', flush=True)\n" + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    undo.callback(program.kill)
    assert program.stdout is not None and program.stdout.readline() == "in\n"
    return program


def answers(program: subprocess.Popen[str], *, within: float) -> bool:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()
    return heard(program, within=within)


def heard(program: subprocess.Popen[str], *, within: float) -> bool:
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], within)
    return bool(ready) and program.stdout.readline() == "tick\n"


def test_a_frozen_tree_answers_nothing_until_thawed_while_the_keeper_runs_on(cgroup: Cgroup) -> None:
    cgroup.create(Limits())
    with ExitStack() as undo:
        keeper, inside = start(cgroup, TICKER, undo, tree=False), start(cgroup, TICKER, undo)
        assert answers(inside, within=10)
        cgroup.freeze()
        assert cgroup.is_frozen()
        assert not answers(inside, within=0.05)
        assert answers(keeper, within=10)
        cgroup.thaw()
        assert heard(inside, within=10)
        assert not cgroup.is_frozen()


def test_an_empty_tree_freezes_and_a_frozen_one_freezes_again(cgroup: Cgroup) -> None:
    cgroup.create(Limits())
    cgroup.freeze()
    cgroup.freeze()
    assert cgroup.is_frozen()


def test_a_frozen_sandbox_is_killed_whole(cgroup: Cgroup) -> None:
    cgroup.create(Limits())
    with ExitStack() as undo:
        programs = [start(cgroup, TICKER, undo, tree=tree) for tree in (True, True, False)]
        cgroup.freeze()
        assert cgroup.pids() == {program.pid for program in programs}
        cgroup.kill_all()
        assert cgroup.pids() == frozenset()
        assert [program.wait(10) for program in programs] == [-signal.SIGKILL] * 3
    cgroup.remove()
    with pytest.raises(SandboxNotFound):
        cgroup.open_existing()


def test_a_group_in_use_is_neither_removed_nor_replaced(cgroup: Cgroup) -> None:
    cgroup.create(Limits())
    with ExitStack() as undo:
        program = start(cgroup, TICKER, undo)
        with pytest.raises(Unavailable, match=str(program.pid)):
            cgroup.remove()
        with pytest.raises(Unavailable):
            cgroup.create(Limits())
        assert answers(program, within=10)
        assert cgroup.open_existing().pids() == {program.pid}


def test_groups_left_by_a_crash_are_found_replaced_and_removed(cgroup: Cgroup) -> None:
    cgroup.create(Limits())
    (cgroup.freezer_dir / "left" / "deeper").mkdir(parents=True)
    assert list_groups(cgroup.layout, cgroup.node_tag, cgroup.placement) == {cgroup.sandbox_id}
    cgroup.create(Limits())
    assert not (cgroup.freezer_dir / "left").exists()
    remove_node_group(cgroup.layout, cgroup.node_tag, cgroup.placement)
    cgroup.open_existing()
    cgroup.remove()
    cgroup.remove()
    assert not list_groups(cgroup.layout, cgroup.node_tag, cgroup.placement)


def test_gone_groups_say_so(cgroup: Cgroup) -> None:
    for ask in (cgroup.is_frozen, cgroup.freeze, cgroup.thaw, cgroup.stats):
        with pytest.raises(SandboxNotFound):
            ask()
    assert cgroup.pids() == frozenset()
    cgroup.kill_all()


def test_stats_tell_limits_and_use(cgroup: Cgroup) -> None:
    cgroup.create(Limits(memory=64 << 20, cpus=0.5, pids=32))
    with ExitStack() as undo:
        program = start(cgroup, "held = bytearray(16 << 20)\n" + TICKER, undo)
        assert answers(program, within=10)
        stats = cgroup.stats()
        assert (stats.memory_limit, stats.pids_limit, stats.pids, stats.oom_kills) == (64 << 20, 32, 1, 0)
        assert 16 << 20 <= stats.memory <= 64 << 20
        assert stats.cpu_usec > 0
        cgroup.set_limits(Limits(memory=128 << 20))
        raised = cgroup.stats()
        assert (raised.memory_limit, raised.pids_limit) == (128 << 20, None)
        cgroup.set_limits(Limits())
        assert cgroup.stats().memory_limit is None


def test_a_process_that_takes_too_much_is_killed_and_seen(cgroup: Cgroup) -> None:
    cgroup.create(Limits(memory=32 << 20))
    events = cgroup.open_oom_events()
    with ExitStack() as undo:
        undo.callback(events.close)
        poll = select.poll()
        poll.register(events.fd, events.mask)
        assert poll.poll(0) == []
        program = start(cgroup, "sys = __import__('sys'); sys.stdin.readline(); bytearray(64 << 20)", undo)
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
        assert poll.poll(10_000)
        assert program.wait(10) == -signal.SIGKILL
        assert cgroup.oom_kills() == 1
        events.drain()


def test_a_limit_below_what_is_in_use_is_refused_and_the_old_one_stays(cgroup: Cgroup) -> None:
    seat = cgroup.layout.seat("memory")
    if seat is None or seat.version == 2:
        pytest.skip("version 2 reclaims and kills instead")
    cgroup.create(Limits(memory=64 << 20))
    with ExitStack() as undo:
        program = start(cgroup, "held = b'x' * (24 << 20)\n" + TICKER, undo)
        assert answers(program, within=10)
        with pytest.raises(InvalidSpec, match="in use"):
            cgroup.set_limits(Limits(memory=8 << 20))
        assert cgroup.stats().memory_limit == 64 << 20
        assert answers(program, within=10)


def test_a_fork_bomb_is_killed_whole(cgroup: Cgroup) -> None:
    cgroup.create(Limits(pids=40))
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except BlockingIOError:\n        pass\n"
    with ExitStack() as undo:
        start(cgroup, bomb, undo)
        cgroup.kill_all()
        assert cgroup.pids() == frozenset()
    cgroup.remove()


def test_sandboxes_come_and_go_while_the_node_group_is_removed(cgroup: Cgroup) -> None:
    def cycle(number: int) -> None:
        mine = Cgroup(cgroup.layout, cgroup.node_tag, SandboxId(f"sb-{number:012x}"), cgroup.placement)
        for _ in range(15):
            mine.create(Limits(pids=10))
            mine.open_existing()
            mine.remove()
            remove_node_group(cgroup.layout, cgroup.node_tag, cgroup.placement)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(cycle, range(4))) == [None] * 4


def test_a_nodes_sandboxes_weigh_together_as_much_as_a_program_on_every_cpu(cgroup: Cgroup) -> None:
    seat, cpus = cgroup.layout.seat("cpu"), os.cpu_count() or 1
    assert seat is not None
    file, expected = ("cpu.shares", 1024 * cpus) if seat.version == 1 else ("cpu.weight", 100 * cpus)
    for _ in range(2):  # a group that was removed and is made again has it, too
        cgroup.create(Limits())
        assert int((seat.parent(cgroup.placement) / f"thawbox-{cgroup.node_tag}" / file).read_text()) == expected
        cgroup.remove()
        remove_node_group(cgroup.layout, cgroup.node_tag, cgroup.placement)


def test_a_limit_the_kernel_refuses_leaves_nothing(cgroup: Cgroup) -> None:
    with pytest.raises(InvalidSpec):
        cgroup.create(Limits(pids=-5))
    assert not list_groups(cgroup.layout, cgroup.node_tag, cgroup.placement)


def test_a_fork_over_the_limit_fails_inside(cgroup: Cgroup) -> None:
    cgroup.create(Limits(pids=1))
    with ExitStack() as undo:
        code = "import os\ntry:\n    os.fork()\nexcept BlockingIOError:\n    print('tick', flush=True)"
        assert heard(start(cgroup, code, undo), within=10)


def test_creating_and_removing_leaves_no_group(cgroup: Cgroup) -> None:
    for _ in range(20):
        cgroup.create(Limits(memory=1 << 26, pids=10))
        cgroup.remove()
    remove_node_group(cgroup.layout, cgroup.node_tag, cgroup.placement)
    roots = {seat.mount for name in ("memory", "cpu", "pids", "freezer") if (seat := cgroup.layout.seat(name))}
    assert not [path for root in roots for path in root.rglob(f"*{cgroup.node_tag}*")]
