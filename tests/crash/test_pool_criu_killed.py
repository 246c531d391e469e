"""CRIU killed while a pool restores: nothing is left of that clone, and the pool fills all the same."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from thawbox.host.proc import children, command_name
from thawbox.model import Mount, Phase, Spec
from thawbox.node import Node
from thawbox.pool import PoolSpec
from thawbox.sandbox import Sandbox
from thawbox.sandbox.templates import find_template

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

WORKLOADS = Path(__file__).parents[1] / "workloads"
SOON = 120.0


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(below for child in found for below in descendants(child))]


def nonce(sandbox: Sandbox) -> bytes:
    """What the program made only in memory: one that was started anew has another."""
    with sandbox.connect(8000, timeout=60) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).split()[0]


def kill_a_criu() -> bool:
    """Kill a CRIU that restores into a pid namespace of a sandbox; a template server is none."""
    ours = Path("/proc/self/ns/pid").readlink()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if command_name(pid).startswith("criu") and Path(f"/proc/{pid}/ns/pid").readlink() != ours:
                os.kill(pid, signal.SIGKILL)
                return True
    return False


@pytest.mark.parametrize("share_memory", [True, False], ids=["shared", "eager"])
def test_a_pool_fills_although_criu_is_killed_in_its_restores(node: Node, share_memory: bool) -> None:
    mount = Mount(str(WORKLOADS), "/workloads", read_only=True)
    node.create_template("tiny", Spec(("python3", "-B", "/workloads/tiny.py"), mounts=(mount,), ready="tcp:8000"))
    node.create_pool(PoolSpec("p", "tiny", low=3, high=3, limit=4))
    with node.snapshot(find_template(node.context, "tiny").snapshot).clone() as clone:
        golden = nonce(clone)
    with node.open_pool("p", share_memory=share_memory) as pool:
        killed = 0
        while pool.statistics().totals.failed < 2:
            killed += kill_a_criu()
            if pool.statistics().parked == 3:
                pool.acquire(timeout=SOON).release()
        assert pool.statistics().totals.failed <= killed
        pool.wait_warm(timeout=SOON)
        with pool._lock:
            assert pool._lock.wait_for(lambda: pool._ledger.counts().owned == 3, SOON)
        sandboxes = node.sandboxes()
        assert [sandbox.state for sandbox in sandboxes] == [Phase.FROZEN] * 3
        leases = [pool.acquire(timeout=SOON) for _ in range(3)]
        assert {nonce(lease.sandbox) for lease in leases} == {golden}
        pool.drain(timeout=0)
    assert not node.sandboxes()
