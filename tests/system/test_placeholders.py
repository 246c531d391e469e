"""Golden trees restored into placeholders: namespaces and cgroups that somebody else made."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from placeholders import Placeholder, a_placeholder
from roads import needs_templates
from thawbox.errors import InvalidRequest, NotFound
from thawbox.host.init_client import Completed, Exited
from thawbox.model import Mount, Net, Phase, Spec
from thawbox.node import Node
from thawbox.pool_plan import IDLE_SECONDS
from thawbox.sandbox import Sandbox
from thawbox.sandbox.placeholders import enter_placeholder
from thawbox.sandbox.placing import (
    empty_placeholder,
    let_run,
    park_in_placeholder,
    recover_in_placeholder,
    sandbox_in,
)
from thawbox.sandbox.templates import Template
from thawbox.sandbox.warming import look

SOURCES = Mount(str(Path(__file__).parents[1] / "workloads"), "/workloads", read_only=True)
PORT = 8000
Place = Callable[[str], Placeholder]


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(a_placeholder(name))


@pytest.fixture
def golden(node: Node) -> Template:
    spec = Spec(("python3", "/workloads/tiny.py"), mounts=(SOURCES,), ready=f"tcp:{PORT}")
    return node.create_template("golden", spec)


def told_by(sandbox: Sandbox) -> tuple[str, str, str]:
    """(nonce made only in memory, host name, machine id) as the program in the sandbox says."""
    with sandbox.connect(PORT, timeout=60) as connection:
        nonce, name, machine = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode().split()
    return nonce, name, machine


def park(node: Node, golden: Template, placeholder: Placeholder) -> Sandbox:
    return park_in_placeholder(node.context, golden.snapshot, pid=placeholder.pid, pod=placeholder.uid, name="agent")


def namespaces_of(pid: int) -> dict[str, str]:
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("net", "uts", "pid", "mnt", "ipc")}


def test_clones_in_placeholders_go_on_with_the_golden_memory_and_share_no_identity(
    node: Node, golden: Template, place: Place
) -> None:
    pods = [place(f"pod-{number}") for number in range(3)]
    parked = [park(node, golden, pod) for pod in pods]
    assert [one.state for one in parked] == [Phase.FROZEN] * 3
    for one in parked:
        one.thaw()
    told = [told_by(one) for one in parked]
    assert len({nonce for nonce, _, _ in told}) == 1  # restored, not started
    assert len({name for _, name, _ in told}) == len({machine for _, _, machine in told}) == 3


STATEFUL = """
import hashlib, os, socket
state = bytearray(os.urandom(32 << 20))
listening = socket.create_server(("127.0.0.1", 8000))
while True:
    connection, _ = listening.accept()
    connection.sendall(hashlib.sha256(state).hexdigest().encode())
    connection.close()
"""


@needs_templates
def test_parked_clones_share_the_golden_memory_which_goes_some_time_after_the_last_was_handed_out(
    node: Node, place: Place
) -> None:
    began = time.time()
    clock = [began]
    with Node(node.settings, now=lambda: clock[0]) as given:
        golden = given.create_template("golden", Spec(("python3", "-c", STATEFUL), ready=f"tcp:{PORT}"))
        images = given.context.store.layout.images(golden.snapshot)
        pods = [place(f"pod-{number}") for number in range(3)]
        parked = [park(given, golden, pod) for pod in pods]
        assert max(one.memory_use().private for one in parked) < 3 << 20
        for one in parked:
            assert given.context.cgroup(one.id).stats().memory < 8 << 20, "the pod is charged for what is shared"
        empty_placeholder(given.context, pods[0].uid)
        let_run(given.context, parked[1])
        clock[0] = began + IDLE_SECONDS + 1
        look(given.context)
        assert given.context.engine.is_warm(images), "one is parked"
        let_run(given.context, parked[2])
        look(given.context)
        assert given.context.engine.is_warm(images), "the next may be parked soon"
        clock[0] += IDLE_SECONDS + 1
        look(given.context)
        assert not given.context.engine.is_warm(images)
        digests: set[bytes] = set()
        for one in parked[1:]:
            with one.connect(PORT, timeout=60) as connection:
                digests.add(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
        assert len(digests) == 1


def test_a_clone_lives_in_its_pods_network_name_and_limits(node: Node, golden: Template, place: Place) -> None:
    pod = place("pod-0")
    sandbox = park(node, golden, pod)
    sandbox.thaw()
    keeper = sandbox.record.keeper_pid
    own, its = namespaces_of(keeper), namespaces_of(pod.pid)
    assert own["net"] == its["net"]
    assert own["uts"] == its["uts"]
    assert own["pid"] != its["pid"] != str(Path("/proc/self/ns/pid").readlink())
    assert own["mnt"] != its["mnt"]
    assert node.context.cgroup(sandbox.id).pids() <= pod.members()
    name = told_by(sandbox)[1]
    inside = pod.run("python3", "-c", f"import socket; s = socket.create_connection(('127.0.0.1', {PORT})); "
                     "print(socket.gethostname(), s.recv(100).decode())")  # fmt: skip
    assert inside.stdout.split()[0] == name == inside.stdout.split()[2]


def test_a_placeholder_that_uses_any_pid_is_in_nobodys_way(node: Node, golden: Template, place: Place) -> None:
    pod = place("pod-0")
    begun = "for i in $(seq 60); do sleep 600 & done; echo $(jobs -p); wait"
    with subprocess.Popen(
        ["nsenter", "--target", str(pod.pid), "--pid", "--mount", "bash", "-c", begun],
        stdout=subprocess.PIPE, text=True,
    ) as busy:  # fmt: skip
        assert busy.stdout is not None
        try:
            taken = {int(word) for word in busy.stdout.readline().split()}
            assert min(taken) < 10  # the pids that the tree had when it was golden are taken here
            assert max(taken) > 60
            sandbox = park(node, golden, pod)
            sandbox.thaw()
            assert told_by(sandbox)[0]
            sandbox.remove(force=True)
            left = pod.run("ps", "-e", "-o", "pid=,stat=").stdout.splitlines()
            assert taken <= {int(line.split()[0]) for line in left}
            assert not [line for line in left if "Z" in line]
        finally:
            os.kill(pod.pid, signal.SIGKILL)


def test_a_second_capture_of_a_placed_clone_is_as_good_as_the_first(node: Node, golden: Template, place: Place) -> None:
    first, second, third = (place(f"pod-{number}") for number in range(3))
    one = park(node, golden, first)
    one.thaw()
    nonce = told_by(one)[0]
    one.run("sh", "-c", "echo first > /etc/mark; rm /etc/motd; echo kept > /srv/one")
    before = one.checkpoint()
    one.run("sh", "-c", "echo second > /etc/mark; rm /srv/one; mkdir /srv/dir; echo there > /srv/dir/two")
    after = one.checkpoint()
    for snapshot, pod, seen in ((before, second, "first kept"), (after, third, "second there")):
        clone = park_in_placeholder(node.context, snapshot.id, pid=pod.pid, pod=pod.uid)
        clone.thaw()
        done = clone.run(
            "sh", "-c", "echo $(cat /etc/mark) $(cat /srv/one /srv/dir/two 2>/dev/null); test ! -e /etc/motd"
        )
        assert isinstance(done, Completed)
        assert (done.stdout.decode().strip(), done.outcome) == (seen, Exited(0))
        assert told_by(clone)[0] == nonce
        again = clone.checkpoint()  # and a clone's own capture holds what it found and what it did
        assert again.id not in (before.id, after.id)


def test_the_end_of_a_placeholder_is_the_end_of_its_clone_and_leaves_nothing(
    node: Node, golden: Template, place: Place
) -> None:
    with a_placeholder("pod-0") as pod:
        sandbox = park(node, golden, pod)
        sandbox.thaw()
        keeper = sandbox.record.keeper_pid
    assert not Path(f"/proc/{keeper}/ns/pid").exists()
    assert sandbox.state is Phase.LOST
    empty_placeholder(node.context, pod.uid)
    assert sandbox_in(node.context, pod.uid) is None


def test_a_lost_sandbox_comes_back_in_another_placeholder_as_itself(node: Node, golden: Template, place: Place) -> None:
    with a_placeholder("pod-0") as pod:
        sandbox = park(node, golden, pod)
        sandbox.thaw()
        before, identity = told_by(sandbox), (sandbox.id, sandbox.record.name)
        snapshot = sandbox.checkpoint()
    other = place("pod-1")
    park(node, golden, other)  # what waited there gives way
    back = recover_in_placeholder(node.context, snapshot.id, pid=other.pid, pod=other.uid)
    assert (back.id, back.record.name) == identity
    assert told_by(back) == before
    found = sandbox_in(node.context, other.uid)
    assert found is not None
    assert found.id == back.id


def test_a_failed_placing_leaves_the_placeholder_empty_and_alive(node: Node, golden: Template, place: Place) -> None:
    pod = place("pod-0")
    with pytest.raises(NotFound):
        park_in_placeholder(node.context, golden.snapshot, pid=2**22 - 1, pod="gone")
    with pytest.raises(InvalidRequest, match="pid namespace"):
        park_in_placeholder(node.context, golden.snapshot, pid=os.getpid(), pod="self")
    kept = park(node, golden, pod).record
    with pytest.raises(InvalidRequest, match="--net nat"):
        enter_placeholder(node.context, replace(kept, spec=replace(kept.spec, net=Net.NAT)), ExitStack())
    empty_placeholder(node.context, pod.uid)
    assert pod.members() == {pod.pid}
    assert node.sandboxes() == []
    assert not [one for one in node.context.warmth.held() if one.is_kept], "what failed wants no memory held"


def test_what_leaves_a_placeholder_has_its_groups_where_every_other_sandbox_has_them(
    node: Node, golden: Template, place: Place
) -> None:
    pod = place("pod-0")
    sandbox = park(node, golden, pod)
    groups = node.context.cgroup(sandbox.id).path
    snapshot = sandbox.checkpoint(stop=True)
    back, _ = snapshot.restore()
    assert told_by(back)[0]
    assert node.context.cgroup(back.id).path != groups
    assert node.context.cgroup(back.id).path.is_dir()
    with pytest.raises(KeyError), ExitStack() as undo:  # a placing that fails later
        enter_placeholder(node.context, replace(back.record, placeholder=pod.pid), undo)
        assert node.context.cgroup(back.id).path == groups
        raise KeyError
    assert node.context.cgroup(back.id).path.is_dir()
    back.remove(force=True)
    assert pod.members() == {pod.pid}
