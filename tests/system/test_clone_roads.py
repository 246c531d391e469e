"""What keeps clones fast: shells kept ready, memory held by demand; and what is left when any of it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from roads import needs_templates
from thawbox.engines.criu import CriuEngine
from thawbox.host.proc import children, command_name, wait_gone
from thawbox.model import Net, Spec
from thawbox.node import Node, make_criu_engine
from thawbox.sandbox import Sandbox, Snapshot
from thawbox.sandbox.body import read_body
from thawbox.sandbox.warming import look
from traces import Traces

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300), needs_templates]

Unchanged = Callable[[], AbstractContextManager[None]]
PROGRAM = """
import os, socket, time
nonce, state = os.urandom(8).hex(), bytearray(os.urandom(8 << 20))
listener = socket.create_server(("127.0.0.1", 8000))
while True:
    talk, _ = listener.accept()
    talk.recv(10)
    talk.sendall(f"{nonce} {state[0]} {time.monotonic_ns()}".encode())
    talk.close()
"""
WAIT = 60
SLACK = 0.1
"""Seconds between two readings of clocks that one would take at the same moment."""


def ask(sandbox: Sandbox) -> tuple[str, float]:
    """The nonce, and the program's monotonic clock in seconds."""
    with sandbox.connect(8000) as talk:
        talk.sendall(b"what")
        nonce, _, clock = talk.recv(1000).decode().split()
        return nonce, int(clock) / 1e9


def snapshot_of(node: Node, **spec: Any) -> tuple[Snapshot, str]:
    with node.run(Spec(("python3", "-c", PROGRAM), ready="tcp:8000", **spec)) as original:
        return original.checkpoint(), ask(original)[0]


def stopped_at(snapshot: Snapshot) -> float:
    """The monotonic clock of the frozen moment, as seen inside, in seconds."""
    moment = read_body(snapshot.stored.manifest.body, snapshot=snapshot.id).moment
    assert moment is not None
    return moment.clocks.monotonic / 1e9


def keepers(node: Node, snapshot: Snapshot) -> set[int]:
    """The shells that are ready, once all are."""
    assert node.context.reserve.wait_full(snapshot.id, timeout=WAIT)
    found = {pid for pid in children(os.getpid()) if command_name(pid) == "thawbox-launch"}
    assert len(found) == sum(node.context.reserve.counts().values())
    return found


def named(sandbox: Sandbox) -> set[str]:
    said = sandbox.run("sh", "-c", "hostname; cat /etc/hostname; tail -n1 /etc/hosts | cut -d' ' -f2").stdout.decode()
    return set(said.split())


def test_clones_take_shells_that_were_kept_ready_and_others_are_made(node: Node) -> None:
    snapshot, nonce = snapshot_of(node)
    assert snapshot.warm(shells=2)
    ready = keepers(node, snapshot)
    plain, called = snapshot.clone(), snapshot.clone(name="called-so")
    assert {plain.record.keeper_pid, called.record.keeper_pid} == ready
    assert ask(plain)[0] == ask(called)[0] == nonce
    assert named(plain) == {plain.name}
    assert named(called) == {"called-so"}
    machine_ids = {one.run("cat", "/etc/machine-id").stdout for one in (plain, called)}
    assert machine_ids == {f"{one.record.machine_id}\n".encode() for one in (plain, called)}
    assert not keepers(node, snapshot) & ready


def test_a_clone_in_a_shell_that_waited_goes_on_by_the_snapshots_clocks_and_so_does_what_comes_of_it(
    node: Node,
) -> None:
    with node.run(Spec(("python3", "-c", PROGRAM), ready="tcp:8000")) as original:
        before = ask(original)[1]
        snapshot = original.checkpoint()
    assert snapshot.warm(shells=1)
    keepers(node, snapshot)
    waited = time.monotonic() + 3
    while time.monotonic() < waited:  # the shell grows old: this is what is tested
        time.sleep(0.1)
    begun = time.monotonic()
    clone = snapshot.clone()
    clock = ask(clone)[1]
    # CRIU reads the clock while the tree is stopped, somewhat before it tells us so: a fast clone is there before that
    assert before < clock <= stopped_at(snapshot) + time.monotonic() - begun + SLACK
    begun = time.monotonic()
    clone.checkpoint(stop=True).restore()
    assert 0 <= ask(clone)[1] - clock <= time.monotonic() - begun + SLACK


def test_a_shell_that_died_while_it_waited_is_not_used_and_a_closed_node_leaves_none(
    open_node: Callable[..., Node], traces: Callable[[], Traces]
) -> None:
    with open_node() as node:
        snapshot, nonce = snapshot_of(node)
        assert snapshot.warm(shells=1)
        (victim,) = keepers(node, snapshot)
        os.kill(victim, signal.SIGKILL)
        assert wait_gone(victim, timeout=WAIT)
        with snapshot.clone() as clone:
            assert ask(clone)[0] == nonce
        snapshot.cool()  # a shell that is being made goes when it is made
    before = traces()
    with open_node() as other:
        kept = other.snapshot(snapshot.id)
        assert kept.warm(shells=2)
        keepers(other, kept)
    after = traces()
    assert after.of_kernel() == before.of_kernel()
    assert (after.files, after.threads) == (before.files, before.threads)


def test_a_clone_with_a_network_of_its_own_takes_a_ready_shell_too(node: Node) -> None:
    snapshot, nonce = snapshot_of(node, net=Net.NAT)
    assert snapshot.warm(shells=1)
    ready = keepers(node, snapshot)
    clone = snapshot.clone()
    assert {clone.record.keeper_pid} == ready
    assert ask(clone)[0] == nonce
    assert clone.record.address in clone.run("cat", "/etc/hosts", "/proc/net/fib_trie").stdout.decode()
    assert clone.run("cat", "/proc/net/fib_trie").stdout.decode().count(clone.record.address)


KEEPING = """
import sys
from pathlib import Path
from thawbox.config import Settings
from thawbox.node import Node
with Node(Settings(home=Path(sys.argv[1]))) as node:
    snapshot = node.snapshot(sys.argv[2])
    assert snapshot.warm(shells=2)
    assert node.context.reserve.wait_full(snapshot.id, timeout=60)
    print("full", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_is_killed_leaves_no_shell_and_no_template_once_a_node_has_looked(
    home: Path, open_node: Callable[..., Node], traces: Callable[[], Traces]
) -> None:
    node = open_node()
    snapshot, _ = snapshot_of(node)
    before = traces()
    with subprocess.Popen(
        [sys.executable, "-c", KEEPING, str(home), snapshot.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeping:
        assert keeping.stdout is not None
        assert keeping.stdout.readline() == b"full\n"
        theirs = [int(process.split()[0]) for process in traces().processes if process not in before.processes]
        assert theirs
        keeping.kill()
    for pid in theirs:
        assert wait_gone(pid, timeout=WAIT)
    open_node()
    after = traces()
    assert (after.cgroups, after.processes, after.files) == (before.cgroups, before.processes, before.files)
    assert not [holder for holder in node.context.store.holders() if holder.startswith("sandbox:")]


def test_what_is_cloned_again_and_again_comes_to_share_its_memory_by_itself(node: Node) -> None:
    snapshot, nonce = snapshot_of(node)
    images = node.context.store.layout.images(snapshot.id)
    clones = [snapshot.clone() for _ in range(3)]
    node.context.threads.close()  # what was begun in the background has ended
    assert node.context.engine.is_warm(images)
    assert node.context.reserve.wait_full(snapshot.id, timeout=WAIT)
    clones.append(snapshot.clone())
    assert {ask(clone)[0] for clone in clones} == {nonce}
    assert clones[-1].stats().memory < 6 << 20 < clones[0].stats().memory


def test_a_server_that_died_is_started_anew_for_whom_asked_for_it_and_a_removed_snapshot_has_none(node: Node) -> None:
    snapshot, _ = snapshot_of(node)
    assert snapshot.warm(shells=0)
    images = node.context.store.layout.images(snapshot.id)
    (server,) = [pid for pid in children(os.getpid()) if command_name(pid) == "criu-template"]
    os.kill(server, signal.SIGKILL)
    assert wait_gone(server, timeout=WAIT)
    assert not node.context.engine.is_warm(images)
    look(node.context)
    assert node.context.engine.is_warm(images)
    node.context.store.remove(snapshot.id)
    look(node.context)
    assert not node.context.engine.is_warm(images)


WORKERS = """
import hashlib, os, socket
nonce = os.urandom(8).hex()
shared = bytearray(os.urandom(8 << 20))
listener = socket.create_server(("127.0.0.1", 8000))
for number in range(3):
    if os.fork() == 0:
        own = bytearray(os.urandom(4 << 20))
        shared[number] ^= 255
        while True:
            talk, _ = listener.accept()
            talk.recv(10)
            digest = hashlib.sha256(shared + own).hexdigest()
            talk.sendall(f"{nonce} {os.getpid()} {digest}".encode())
            talk.close()
while True:
    os.wait()
"""


def each_worker(sandbox: Sandbox) -> dict[str, str]:
    """What each of the three workers says of the memory that it inherited and made; keyed by its pid inside."""
    found: dict[str, str] = {}
    while len(found) < 3:
        with sandbox.connect(8000) as talk:
            talk.sendall(b"what")
            nonce, pid, digest = talk.recv(1000).decode().split()
            found[pid] = f"{nonce} {digest}"
    return found


@pytest.mark.parametrize("eager", [True, False], ids=["files", "template"])
def test_every_worker_of_a_server_has_its_own_memory_and_what_it_inherited(node: Node, *, eager: bool) -> None:
    with node.run(Spec(("python3", "-c", WORKERS), ready="tcp:8000")) as original:
        before = each_worker(original)
        snapshot = original.checkpoint()
    if not eager:
        assert snapshot.warm(shells=1)
    clones = [snapshot.clone(eager=eager) for _ in range(2)]
    owned = max(clone.memory_use().private for clone in clones)
    assert (owned > 20 << 20) is eager, owned
    assert [each_worker(clone) for clone in clones] == [before, before]
    clones[0].checkpoint(stop=True).restore()
    assert each_worker(clones[0]) == before


class Killing:
    """The real engine; in the middle of a restore by a template server `victim` is killed, once."""

    def __init__(self, engine: CriuEngine, victim: str) -> None:
        self._engine = engine
        self._victim = victim
        self.kills = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def restore(self, place: Any, images: Path, **options: Any) -> Any:
        def kill() -> None:
            for pid in victims(self._engine, images, self._victim, place.keeper):
                self.kills += 1
                os.kill(pid, signal.SIGKILL)

        if not self.kills:
            options["before_resume"] = kill
        return self._engine.restore(place, images, **options)


def victims(engine: CriuEngine, images: Path, what: str, keeper: int) -> list[int]:
    server = engine.templates.find(images)
    assert server is not None
    if what == "server":
        return [server.pid]
    namespace = Path(f"/proc/{keeper}/ns/pid").readlink()
    return [pid for pid in children(server.pid) if Path(f"/proc/{pid}/ns/pid").readlink() == namespace]


@pytest.fixture(params=["server", "clone's criu"])
def killing(
    request: pytest.FixtureRequest, open_node: Callable[..., Node], node: Node
) -> Iterator[tuple[Node, Killing]]:
    engine = make_criu_engine(node.settings)
    broken = Killing(engine, request.param)
    yield open_node(engine=broken), broken
    engine.close()


def test_what_dies_in_the_middle_of_a_clone_harms_nobody_and_the_clone_is_made(
    killing: tuple[Node, Killing], traces: Callable[[], Traces]
) -> None:
    node, killer = killing
    snapshot, nonce = snapshot_of(node)
    assert snapshot.warm(shells=0)
    killer.kills = -1
    neighbour = snapshot.clone()
    before = traces()
    killer.kills = 0
    clone = snapshot.clone()
    assert killer.kills == 1
    assert ask(clone)[0] == nonce
    clone.remove(force=True)
    look(node.context)  # a server that died is collected, and started anew
    after = traces()
    assert after.of_kernel() == before.of_kernel()
    assert after.files == before.files
    assert ask(neighbour)[0] == nonce


def test_clones_by_the_hundred_leave_nothing(node: Node, unchanged: Unchanged, request: pytest.FixtureRequest) -> None:
    cycles: int = request.config.getoption("--cycles") // 5
    snapshot, nonce = snapshot_of(node)
    assert snapshot.warm(shells=0)
    snapshot.clone().remove(force=True)
    with unchanged():
        for _ in range(max(1, cycles // 10)):
            clones = snapshot.clones(10)
            assert {ask(clone)[0] for clone in clones} == {nonce}
            for clone in clones:
                clone.remove(force=True)
