"""Pools of real clones: who gets what, what parked ones cost, what dies, what a killed node leaves to the next."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from thawbox.engines.criu import CriuEngine
from thawbox.errors import InvalidRequest, NotFound, StartFailed, Unavailable
from thawbox.host.init_client import Completed, Exited
from thawbox.host.proc import children
from thawbox.model import Mount, Phase, SandboxId, Spec
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.sandbox import Sandbox
from thawbox.sandbox.templates import find_template

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

WORKLOADS = Path(__file__).parents[1] / "workloads"
TINY = Spec(
    ("python3", "-B", "/workloads/tiny.py"),
    mounts=(Mount(str(WORKLOADS), "/workloads", read_only=True),), ready="tcp:8000",
)  # fmt: skip
SOON = 120.0
"""Seconds within which anything that is going to happen has happened."""
OpenPool = Callable[..., Pool]


def ask(sandbox: Sandbox) -> tuple[str, str, str]:
    """The nonce in the program's memory, and the hostname and machine id that it sees."""
    with sandbox.connect(8000, timeout=60) as connection:
        nonce, hostname, machine = b"".join(iter(lambda: connection.recv(4096), b"")).decode().split()
    return nonce, hostname, machine


def nonce_of(node: Node, template: str) -> str:
    """What a clone of the template must have in its memory: one that was started anew has another."""
    with node.snapshot(find_template(node.context, template).snapshot).clone() as clone:
        return ask(clone)[0]


@pytest.fixture
def template(node: Node) -> str:
    node.create_template("tiny", TINY)
    return "tiny"


@pytest.fixture
def open_pool(node: Node, template: str) -> Iterator[OpenPool]:
    with ExitStack() as stack:

        def open_one(low: int, high: int, limit: int, **options: object) -> Pool:
            name = f"pool{len(node.pools())}"
            node.create_pool(PoolSpec(name, template, low, high, limit, **options))  # type: ignore[arg-type]
            return stack.enter_context(node.open_pool(name))

        yield open_one


def wait_for(pool: Pool, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds: the tender tells after every change."""
    with pool._lock:
        assert pool._lock.wait_for(condition, SOON), pool.statistics()


def parked(node: Node) -> list[Sandbox]:
    return [sandbox for sandbox in node.sandboxes() if sandbox.state is Phase.FROZEN]


def test_every_lease_is_a_clone_of_the_one_booted_program_with_an_identity_of_its_own(
    node: Node, open_pool: OpenPool
) -> None:
    pool = open_pool(2, 2, 6)
    with ExitStack() as leases:
        taken = [leases.enter_context(pool.acquire(timeout=SOON)) for _ in range(4)]
        answers = [ask(sandbox) for sandbox in taken]
    assert len({nonce for nonce, _, _ in answers}) == 1, "not a restore of the same memory"
    assert [hostname for _, hostname, _ in answers] == [sandbox.name for sandbox in taken]
    assert len({machine for _, _, machine in answers}) == 4


def test_nothing_of_a_leased_sandbox_gets_into_a_template_and_none_is_made_of_its_snapshots(
    node: Node, open_pool: OpenPool
) -> None:
    with open_pool(1, 1, 2).acquire(timeout=SOON) as leased:
        assert leased.run("touch", "/left-behind")
        snapshot = leased.checkpoint(name="tiny-too", labels={"template": "tiny"})
        rebuilt = node.rebuild_template("tiny")
        assert snapshot.id not in (rebuilt.snapshot, node.template("tiny").snapshot)
        for name in ("tiny-too", snapshot.id, leased.name, leased.id):
            for attempt in (node.template, node.rebuild_template):
                with pytest.raises((NotFound, InvalidRequest)):
                    attempt(name)
            with pytest.raises((NotFound, InvalidRequest)):
                node.create_pool(PoolSpec("other", name, 0, 1, 1))
        with node.snapshot(rebuilt.snapshot).clone() as clone, snapshot.clone() as copy:
            assert ask(copy)[0] == ask(leased)[0] != ask(clone)[0]
            seen = [one.run("ls", "/left-behind") for one in (copy, clone)]
    assert [isinstance(one, Completed) and one.outcome == Exited(0) for one in seen] == [True, False]


def test_clones_of_a_pool_share_the_memory_of_their_template_until_it_is_closed(
    node: Node, open_pool: OpenPool
) -> None:
    pool = open_pool(1, 1, 4)
    pool.wait_warm(timeout=SOON)
    engine = node.context.engine
    assert isinstance(engine, CriuEngine)
    images = node.context.store.layout.images(node.template("tiny").snapshot)
    assert engine.templates.find(images) is not None
    with pool.acquire(timeout=SOON) as sandbox:
        assert ask(sandbox)
    pool.close()
    assert engine.templates.find(images) is None


def test_a_parked_clone_uses_no_cpu(node: Node, open_pool: OpenPool) -> None:
    open_pool(1, 1, 2).wait_warm(timeout=SOON)
    (clone,) = parked(node)
    cpu = node.context.cgroup(clone.id).stats().cpu_usec
    with open_pool(1, 1, 2).acquire(timeout=SOON) as other:  # time passes, and the machine is busy
        ask(other)
    assert node.context.cgroup(clone.id).stats().cpu_usec == cpu


@pytest.mark.parametrize("victim", ["the program", "init", "the keeper"])
def test_a_parked_clone_that_is_killed_is_noticed_and_replaced(node: Node, open_pool: OpenPool, victim: str) -> None:
    pool = open_pool(1, 1, 2)
    pool.wait_warm(timeout=SOON)
    (clone,) = parked(node)
    keeper = clone.record.keeper_pid
    init = children(keeper)[0]
    os.kill({"the keeper": keeper, "init": init, "the program": children(init)[0]}[victim], signal.SIGKILL)
    wait_for(pool, lambda: (now := pool.statistics()).totals.died == 1 and now.parked == 1 and not now.ending)
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id != clone.id
        assert ask(sandbox)
    with pytest.raises(NotFound):
        node.sandbox(clone.id)


def test_a_parked_clone_that_somebody_thawed_or_removed_is_not_handed_over(node: Node, open_pool: OpenPool) -> None:
    pool = open_pool(2, 2, 3)
    pool.wait_warm(timeout=SOON)
    thawed, removed = parked(node)
    thawed.thaw()
    removed.remove(force=True)
    with pool.acquire(timeout=SOON) as sandbox:
        assert sandbox.id not in {thawed.id, removed.id}
        assert ask(sandbox)


def test_a_rebuilt_template_rolls_the_pool_and_no_old_clone_is_handed_out_after(
    node: Node, open_pool: OpenPool
) -> None:
    pool = open_pool(2, 2, 4)
    pool.wait_warm(timeout=SOON)
    before = node.template("tiny")
    with pool.acquire(timeout=SOON) as sandbox:
        old = ask(sandbox)[0]
    after = node.rebuild_template("tiny")
    assert after.snapshot != before.snapshot
    pool.roll(timeout=SOON)
    assert pool.statistics().digest == after.snapshot
    for _ in range(3):
        with pool.acquire(timeout=SOON) as sandbox:
            assert ask(sandbox)[0] != old
    assert [snapshot.id for snapshot in node.snapshots()] == [after.snapshot]


def test_a_template_that_does_not_become_ready_leaves_nothing(node: Node) -> None:
    with pytest.raises(StartFailed):
        node.create_template("broken", Spec(("false",), ready="tcp:1", ready_timeout=5))
    assert not node.templates()
    assert not node.sandboxes()
    assert not node.snapshots()


def test_a_template_in_use_stays_and_an_unused_one_goes_with_its_snapshot(node: Node, open_pool: OpenPool) -> None:
    pool = open_pool(0, 0, 1)
    with pytest.raises(InvalidRequest, match="made from template"):
        node.remove_template("tiny")
    with pytest.raises(InvalidRequest, match="already"):
        node.create_template("tiny", TINY)
    with pytest.raises(Unavailable, match="kept by another"):
        node.remove_pool(pool.name)
    pool.drain(timeout=0)
    node.remove_pool(pool.name)
    node.remove_template("tiny")
    assert not node.snapshots()


def test_drain_leaves_no_sandbox(node: Node, open_pool: OpenPool) -> None:
    pool = open_pool(2, 3, 4)
    pool.wait_warm(timeout=SOON)
    pool.acquire(timeout=SOON)
    pool.drain(timeout=0)
    assert not node.sandboxes()


def test_many_threads_never_share_a_real_clone_and_none_is_lost(node: Node, open_pool: OpenPool) -> None:
    pool = open_pool(4, 6, 8)
    rng = random.Random(8)
    fates = [rng.random() for _ in range(60)]
    seen: set[SandboxId] = set()
    most = 0
    lock = threading.Lock()

    def use(fate: float) -> None:
        nonlocal most
        lease = pool.acquire(timeout=SOON)
        with lock:
            assert lease.sandbox.id not in seen
            seen.add(lease.sandbox.id)
            most = max(most, len(node.sandboxes()))
        assert ask(lease.sandbox)[1] == lease.sandbox.name
        if fate < 0.1:
            lease.sandbox.remove(force=True)
        elif fate < 0.2:
            os.kill(lease.sandbox.record.keeper_pid, signal.SIGKILL)
        with contextlib.suppress(NotFound):  # the lease of a removed one has ended
            lease.release(reset=fate > 0.8)

    with ThreadPoolExecutor(16) as callers:
        list(callers.map(use, fates))
    assert len(seen) == 60
    assert most <= 8
    pool.drain(timeout=SOON)
    assert not node.sandboxes()


_KEEPS_A_POOL = """
import random, sys, threading
from thawbox.config import Settings
from thawbox.node import Node
from pathlib import Path
node = Node(Settings(home=Path(sys.argv[1])))
pool = node.open_pool(sys.argv[2])
pool.wait_warm()
print("warm", flush=True)
def use():
    while True:
        lease = pool.acquire(timeout=None, ttl=float(sys.argv[3]))
        if random.random() < 0.7:
            lease.release()
threads = [threading.Thread(target=use) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_node_killed_at_its_busiest_leaves_a_pool_that_the_next_one_takes_up(
    node: Node, template: str, home: Path, seed: int
) -> None:
    node.create_pool(PoolSpec("busy", template, 2, 4, 6))
    golden = nonce_of(node, template)
    rng = random.Random(seed)
    keeping = subprocess.Popen(
        [sys.executable, "-c", _KEEPS_A_POOL, str(home), "busy", "0.2"], stdout=subprocess.PIPE
    )  # fmt: skip
    assert keeping.stdout is not None
    assert keeping.stdout.readline() == b"warm\n"
    with pytest.raises(subprocess.TimeoutExpired):
        keeping.wait(rng.uniform(0.02, 0.6))  # a random moment of its work
    keeping.kill()
    keeping.wait()
    keeping.stdout.close()
    with Node(node.settings) as again, again.open_pool("busy") as pool:
        pool.wait_warm(timeout=SOON)
        wait_for(pool, lambda: pool.statistics().leased == 0)  # their leases have run out
        for _ in range(3):
            with pool.acquire(timeout=SOON) as sandbox:
                assert ask(sandbox)[:2] == (golden, sandbox.name)
        assert len(again.sandboxes()) <= 6
        pool.drain(timeout=0)
        assert not again.sandboxes()


def test_parked_clones_outlive_a_closed_pool_and_leases_are_honoured(node: Node, open_pool: OpenPool) -> None:
    pool = open_pool(2, 2, 4)
    pool.wait_warm(timeout=SOON)
    lease = pool.acquire(timeout=SOON)
    pool.wait_warm(timeout=SOON)
    ids = {sandbox.id for sandbox in parked(node)}
    pool.close()
    with node.open_pool(pool.name) as again:
        again.wait_warm(timeout=SOON)
        assert ids <= {sandbox.id for sandbox in parked(node)}
        assert ask(lease.sandbox)
        again.release(lease.id)
        wait_for(again, lambda: again.statistics().ending + again.statistics().leased == 0)
    with pytest.raises(NotFound):
        node.sandbox(lease.sandbox.id)
