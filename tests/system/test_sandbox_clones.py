"""Many from one: clones run side by side, differ in everything that tells them apart, and in nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest

from roads import on_both_roads
from thawbox.errors import InvalidRequest, InvalidTransition
from thawbox.host.cgroup_limits import _OPTIONAL, limit_writes
from thawbox.model import Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300), on_both_roads]

COUNT = 20
Ask = Callable[..., dict[str, Any]]
Unchanged = Callable[[], AbstractContextManager[None]]
RunWorkload = Callable[..., Sandbox]


def identity(sandbox: Sandbox) -> dict[str, object]:
    done = sandbox.run("sh", "-c", "hostname; cat /etc/hostname /etc/machine-id")
    hostname, written, machine_id = done.stdout.decode().split()
    assert hostname == written
    return {"id": sandbox.id, "name": sandbox.name, "hostname": hostname, "machine id": machine_id}


def test_20_clones_run_at_once_on_the_same_port_with_an_identity_each_and_one_memory(
    workload: RunWorkload, ask: Ask
) -> None:
    original = workload("python3", "agent.py", "2", name="original")
    begun = ask(original)["kept"]
    snapshot = original.checkpoint()
    clones = snapshot.clones(COUNT)
    everyone = [original, *clones]
    with ThreadPoolExecutor(4) as threads:
        states = list(threads.map(ask, everyone))
        identities = list(threads.map(identity, everyone))
    assert [state["kept"] for state in states] == [begun] * (COUNT + 1)
    for part in ("id", "name", "hostname", "machine id"):
        assert len({found[part] for found in identities}) == COUNT + 1, part
    with ThreadPoolExecutor(4) as threads:
        grown = list(threads.map(lambda sandbox: ask(sandbox, "grow")["kept"], everyone))
        moved = list(threads.map(lambda sandbox: ask(sandbox, "move")["kept"], everyone))
    assert len({kept["memory"] for kept in grown}) == COUNT + 1
    assert moved == grown
    assert {kept["nonce"] for kept in grown} == {begun["nonce"]}
    assert {sandbox.state for sandbox in everyone} == {Phase.RUNNING}


def test_what_one_clone_writes_no_other_sees(node: Node) -> None:
    original = node.run(Spec(("sleep", "infinity"), workdir="/tmp"))
    original.run("sh", "-c", "echo shared > before")
    first, second = original.fork(2)
    for sandbox in (original, first, second):
        sandbox.run("sh", "-c", f"echo {sandbox.name} >> before; echo {sandbox.name} > after")
    for sandbox in (original, first, second):
        seen = sandbox.run("cat", "/tmp/before", "/tmp/after").stdout.decode().split()
        assert seen == ["shared", sandbox.name, sandbox.name]


def test_a_clone_of_a_clone_goes_on_from_where_that_was(workload: RunWorkload, ask: Ask) -> None:
    sandbox = workload("python3", "agent.py")
    seen = [ask(sandbox)["kept"]]
    for _ in range(3):
        sandbox = sandbox.checkpoint().clone()
        assert ask(sandbox)["kept"] == seen[-1]
        seen.append(ask(sandbox, "grow")["kept"])
    assert len({kept["memory"] for kept in seen}) == 4


def test_clones_and_restores_keep_every_limit_of_their_spec(node: Node) -> None:
    original = node.run(Spec(("sleep", "infinity"), memory=64 << 20, cpus=0.5, pids=32))
    assert_limited(node, original, {"memory": 64 << 20, "cpu": 0.5, "pids": 32})
    snapshot = original.checkpoint(stop=True)
    for sandbox in (snapshot.clone(), snapshot.restore()[0]):
        assert_limited(node, sandbox, {"memory": 64 << 20, "cpu": 0.5, "pids": 32})


def assert_limited(node: Node, sandbox: Sandbox, limits: dict[str, float]) -> None:
    """Fail unless the kernel holds these limits, as it was told them, for every process of the sandbox."""
    cgroup = node.context.cgroup(sandbox.id)
    groups = cgroup._limit_groups()
    for name, limit in limits.items():
        group = groups[name]
        for file, text in dict(limit_writes(name, limit, version=group.version)).items():
            if file not in _OPTIONAL or (group.path / file).exists():
                assert (group.path / file).read_text().strip() == text, file
        held = {int(pid) for procs in group.path.rglob("cgroup.procs") for pid in procs.read_text().split()}
        assert cgroup.pids() <= held, name


def test_a_clone_under_a_taken_name_is_refused_and_leaves_nothing(node: Node, unchanged: Unchanged) -> None:
    original = node.run(Spec(("sleep", "infinity"), name="taken"))
    snapshot = original.checkpoint()
    with unchanged(), pytest.raises(InvalidRequest, match="taken"):
        snapshot.clone(name="taken")


def test_if_one_of_many_clones_fails_none_is_left(node: Node, unchanged: Unchanged) -> None:
    original = node.run(Spec(("sleep", "infinity"), name="original"))
    snapshot = original.checkpoint()
    node.run(Spec(("sleep", "infinity"), name="copy-3"))
    snapshot.clone().remove(force=True)  # on one of the roads its memory is held from now on
    with unchanged(), pytest.raises(InvalidRequest, match="copy-3"):
        snapshot.clones(5, name="copy", eager=True)


def test_many_clones_that_are_interrupted_leave_none(node: Node) -> None:
    snapshot = node.run(Spec(("sleep", "infinity"))).checkpoint()
    begun, caller = threading.Event(), threading.get_ident()

    def interrupt() -> None:
        begun.wait()
        while len(node.sandboxes()) == 1:
            time.sleep(0.001)  # nothing tells of the first one but the journal
        signal.pthread_kill(caller, signal.SIGINT)

    beside = threading.Thread(target=interrupt)
    beside.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            begun.set()
            snapshot.clones(COUNT)
        finally:
            beside.join()
    assert len(node.sandboxes()) == 1


def test_a_restore_is_refused_while_the_original_runs_and_changes_nothing(
    node: Node, workload: RunWorkload, ask: Ask, unchanged: Unchanged
) -> None:
    sandbox = workload("python3", "agent.py")
    snapshot = sandbox.checkpoint()
    kept = ask(sandbox)["kept"]
    with unchanged(), pytest.raises(InvalidTransition, match="running"):
        snapshot.restore()
    assert ask(sandbox)["kept"] == kept


def test_a_restore_brings_id_name_address_and_identity_back_and_a_removed_sandbox_too(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity"), name="phoenix", memory=64 << 20))
    begun = identity(sandbox)
    snapshot = sandbox.checkpoint()
    sandbox.remove(force=True)
    restored, _ = snapshot.restore()
    assert identity(restored) == begun
    assert restored.stats().memory_limit == 64 << 20
    assert [found.id for found in node.sandboxes()] == [sandbox.id]
