"""Clones that share memory: made by a template server, they differ in nothing from clones read from the files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roads import needs_templates
from thawbox.host.proc import children
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox, Snapshot

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300), needs_templates]

PROGRAM = """
import hashlib, os, secrets, socket, sys, threading, time
nonce = secrets.token_hex(8)
state = bytearray(os.urandom(48 << 20))
child = os.fork()
if child == 0:
    mine = bytearray(os.urandom(8 << 20))
    digest = hashlib.sha256(mine).hexdigest()
    while True:
        time.sleep(0.05)
        if hashlib.sha256(mine).hexdigest() != digest:
            os._exit(1)
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)
threading.Thread(target=tick, daemon=True).start()
listener = socket.create_server(("127.0.0.1", 8000))
while True:
    talk, _ = listener.accept()
    asked = talk.recv(100).decode().split() or ["nothing"]
    if asked[0] == "write":
        at = int(asked[1]); state[at:at + 8] = b"THAWBOX!"
    alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    said = f"{nonce} {hashlib.sha256(state).hexdigest()} {ticks} {alive} {socket.gethostname()}"
    talk.sendall(said.encode()); talk.close()
"""
CLONES = 6


def ask(sandbox: Sandbox, question: str = "what") -> list[str]:
    with sandbox.connect(8000) as talk:
        talk.sendall(question.encode())
        return talk.recv(1000).decode().split()


@pytest.fixture
def original(node: Node) -> Iterator[Sandbox]:
    with node.run(Spec(("python3", "-c", PROGRAM), ready="tcp:8000")) as sandbox:
        yield sandbox


@pytest.fixture
def snapshot(original: Sandbox) -> Snapshot:
    """A link of a chain, so that the template holds a merged view."""
    original.checkpoint()
    ask(original, "write 4096")
    return original.checkpoint()


def template_pids() -> set[int]:
    return {pid for pid in children(os.getpid()) if Path(f"/proc/{pid}/comm").read_text() == "criu-template\n"}


def memory_of(sandbox: Sandbox) -> int:
    return sandbox.stats().memory


def test_clones_from_a_template_have_the_memory_of_the_snapshot_and_lives_of_their_own(
    original: Sandbox, snapshot: Snapshot
) -> None:
    nonce, digest = ask(original)[:2]
    clones = snapshot.clones(CLONES)
    assert len(template_pids()) == 1
    answers = [ask(clone) for clone in clones]
    assert {tuple(answer[:2]) for answer in answers} == {(nonce, digest)}
    assert {answer[3] for answer in answers} == {"True"}, "the child's memory differs"
    assert len({answer[4] for answer in answers}) == CLONES
    changed = ask(clones[0], "write 8192")[1]
    assert changed != digest
    assert {ask(clone)[1] for clone in clones[1:]} == {digest}, "a clone sees what another wrote"
    assert ask(original)[1] == digest
    for clone in clones:
        clone.remove(force=True)


def test_clones_from_a_template_share_what_they_do_not_write(snapshot: Snapshot) -> None:
    lean = snapshot.clones(CLONES)
    heavy = snapshot.clones(1, eager=True)[0]
    assert memory_of(heavy) > 56 << 20
    assert max(map(memory_of, lean)) < 8 << 20
    for clone in [*lean, heavy]:
        clone.remove(force=True)


def test_a_dead_template_server_harms_no_clone_and_the_next_clones_come_all_the_same(snapshot: Snapshot) -> None:
    before = snapshot.clones(CLONES)
    (server,) = template_pids()
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    expected = ask(before[0])[:2]
    after = snapshot.clone()
    assert ask(after)[:2] == expected
    assert {tuple(ask(clone)[:2]) for clone in before} == {tuple(expected)}
    for clone in [*before, after]:
        clone.remove(force=True)


def test_clones_come_whoever_gives_up_the_memory_meanwhile(snapshot: Snapshot) -> None:
    first = snapshot.clone()
    expected = {tuple(ask(first)[:2])}
    first.remove(force=True)
    for round_ in range(12):
        assert snapshot.warm(shells=0)
        with ThreadPoolExecutor() as threads:
            coming = threads.submit(snapshot.clones, 2)
            time.sleep(round_ * 0.002)  # another moment of their coming each time
            snapshot.cool()
            clones = coming.result()
        assert {tuple(ask(clone)[:2]) for clone in clones} == expected
        for clone in clones:
            clone.remove(force=True)


def test_several_that_load_the_same_memory_at_once_leave_one_server_that_serves_them_all(
    node: Node, snapshot: Snapshot
) -> None:
    with node.context.reading(snapshot.id) as fetched, ThreadPoolExecutor(4) as threads:

        def load_and_clone() -> Sandbox:
            assert node.context.engine.warm(fetched.images)
            return snapshot.clone()

        clones = [one.result() for one in [threads.submit(load_and_clone) for _ in range(4)]]
    assert len(template_pids()) == 1
    assert len({tuple(ask(clone)[:2]) for clone in clones}) == 1
    for clone in clones:
        clone.remove(force=True)
    node.context.engine.cool(fetched.images[-1])


def test_a_clone_from_a_template_is_checkpointed_as_a_small_delta_and_restored(snapshot: Snapshot) -> None:
    clone = snapshot.clones(CLONES)[0]
    digest = ask(clone, "write 12288")[1]
    own = clone.checkpoint()
    assert own.report is not None
    assert own.report.parent == snapshot.id
    assert own.report.bytes < 4 << 20
    clone.remove(force=True)
    restored, _ = own.restore()
    assert ask(restored)[1] == digest


def test_a_closed_node_leaves_no_template_server(home: Path, snapshot: Snapshot, node: Node) -> None:
    assert snapshot.warm()
    assert template_pids()
    node.context.engine.close()
    assert not template_pids()
