"""Chains of deltas of real sandboxes: every link comes back as it was, and nothing that did not change is stored."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roads import FILES, TEMPLATE, needs_templates, on_both_roads
from thawbox.config import Settings
from thawbox.errors import DumpFailed, InvalidRequest, SnapshotNotFound
from thawbox.host.init_client import Completed
from thawbox.model import SnapshotKind, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox, Snapshot
from thawbox.sandbox.checkpointing import Mode, Wish
from thawbox.store.backends import open_backend
from thawbox.store.pull import pull
from thawbox.store.push import push

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]

SLEEPER = ("sleep", "infinity")


def said(sandbox: Sandbox, words: str = "state") -> str:
    """What the churning program says of its nonce, memory, files and children, after doing what it is told."""
    with sandbox.connect(8000, timeout=20) as connection:
        connection.sendall(words.encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


def said_by(sandbox: Sandbox, *command: str) -> str:
    done = sandbox.run(*command)
    assert isinstance(done, Completed)
    return done.stdout.decode()


@pytest.fixture
def churning(workload: Callable[..., Sandbox]) -> Sandbox:
    return workload("python3", "churning.py")


def links(sandbox: Sandbox, rng: random.Random, count: int) -> Iterator[tuple[Snapshot, str]]:
    """Checkpoints with changes between them, and what the program said at each."""
    for _ in range(count):
        for _ in range(rng.randrange(1, 3)):
            state = said(sandbox, f"step {rng.randrange(10_000)}")
        yield sandbox.checkpoint(), state


@pytest.mark.parametrize(
    ("road", "seed"), [(FILES, 1), (FILES, 2), pytest.param(TEMPLATE, 3, marks=needs_templates)], indirect=["road"]
)
def test_every_link_of_a_chain_is_cloned_as_it_was(node: Node, churning: Sandbox, seed: int) -> None:
    chain = list(links(churning, random.Random(seed), 6))
    kinds = [snapshot.stored.manifest.kind for snapshot, _ in chain]
    assert kinds == [SnapshotKind.FULL, *[SnapshotKind.DELTA] * 5]
    churning.remove(force=True)
    for snapshot, state in chain:
        with snapshot.clone() as clone:
            assert said(clone) == state
    assert node.context.store.verify(deep=True) == ()


def test_a_restore_of_an_older_link_goes_on_as_a_branch_of_the_chain(node: Node, churning: Sandbox) -> None:
    rng = random.Random(4)
    chain = list(links(churning, rng, 4))
    churning.stop(timeout=0)
    restored, _ = chain[1][0].restore()
    assert said(restored) == chain[1][1]
    branch = list(links(restored, rng, 3))
    assert branch[0][0].stored.manifest.parent == chain[1][0].id
    restored.stop(timeout=0)
    for snapshot, state in [chain[3], *branch, chain[0]]:
        sandbox, _ = snapshot.restore()
        assert said(sandbox) == state
        sandbox.stop(timeout=0)


@on_both_roads
def test_restores_and_deltas_alternate_without_losing_anything(node: Node, churning: Sandbox) -> None:
    rng, sandbox = random.Random(5), churning
    for _ in range(6):
        ((snapshot, state),) = links(sandbox, rng, 1)
        sandbox.stop(timeout=0)
        sandbox, _ = snapshot.restore()
        assert said(sandbox) == state


@on_both_roads
def test_a_flattened_link_comes_back_as_the_link_does_and_needs_no_other(node: Node, churning: Sandbox) -> None:
    chain = list(links(churning, random.Random(6), 4))
    link, state = chain[2]
    flat = link.flatten(name="flat")
    assert (flat.stored.manifest.kind, flat.stored.manifest.parent) == (SnapshotKind.FULL, None)
    assert flat.stored.manifest.flattens == link.id
    assert link.flatten().id == flat.id
    churning.remove(force=True)
    node.context.store.remove(chain[0][0].id, cascade=True)
    assert [one.id for one in node.snapshots()] == [flat.id]
    with node.snapshot("flat").clone() as clone:
        assert said(clone) == state


@on_both_roads
def test_what_was_deleted_from_a_directory_made_since_is_seen_nowhere(node: Node, tmp_path: Path) -> None:
    with node.run(Spec(SLEEPER)) as sandbox:
        said_by(sandbox, "sh", "-c", "mkdir /made; touch /made/gone /made/kept")
        sandbox.checkpoint()
        said_by(sandbox, "rm", "/made/gone")
        link = sandbox.checkpoint()
    store, backend = node.context.store, open_backend(f"file://{tmp_path}/objects")
    flat = link.flatten()
    push(store, backend, flat.id)
    for snapshot in (link, flat):
        with snapshot.clone() as clone:
            assert said_by(clone, "ls", "/made") == "kept\n"
        store.remove(snapshot.id)
    store.gc()
    pull(store, [backend], flat.id)
    with flat.clone() as clone:
        assert said_by(clone, "ls", "/made") == "kept\n"


def test_the_delta_after_a_flattening_is_made_against_the_flattened_one(node: Node, churning: Sandbox) -> None:
    *_, (newest, _) = links(churning, random.Random(7), 2)
    flat = newest.flatten()
    ((delta, state),) = links(churning, random.Random(8), 1)
    assert delta.stored.manifest.parent == flat.id
    churning.remove(force=True)
    with delta.clone() as clone:
        assert said(clone) == state


@on_both_roads
def test_a_clones_first_checkpoint_is_a_small_delta_against_the_golden_snapshot(node: Node, churning: Sandbox) -> None:
    golden = churning.checkpoint()
    with golden.clone() as clone:
        state = said(clone)
        first = clone.checkpoint()
    assert (first.stored.manifest.kind, first.stored.manifest.parent) == (SnapshotKind.DELTA, golden.id)
    assert first.stored.bytes < golden.stored.bytes / 5
    with first.clone() as again:
        assert said(again) == state


def test_an_idle_sandbox_is_not_stored_twice(node: Node) -> None:
    with node.run(Spec(SLEEPER)) as sandbox:
        first = sandbox.checkpoint()
        # one more may be made: a sleep that was interrupted goes on by another system call, which is in its registers
        second = sandbox.checkpoint(skip_if_clean=True)
        third = sandbox.checkpoint(skip_if_clean=True, name="idle", labels={"a": "b"})
        assert third.id == second.id
        assert third.report is not None and third.report.skipped
        assert (third.stored.facts.names, third.stored.facts.labels) == (("idle",), {"a": "b"})
        assert len(node.snapshots()) == len({first.id, second.id})


def test_what_was_written_a_moment_before_a_checkpoint_is_no_change_after_it(node: Node) -> None:
    """Within a tick of the kernel's clock nothing shows that it was not written again: its bytes do."""
    with node.run(Spec(SLEEPER)) as sandbox:
        sandbox.checkpoint()
        for word in ("one", "two", "three"):
            sandbox.run("sh", "-c", f"echo {word} > /root/log")
            written = sandbox.checkpoint()
            assert sandbox.checkpoint(skip_if_clean=True).id == written.id
            assert sandbox.checkpoint(mode=Mode.DELTA).stored.manifest.layers == written.stored.manifest.layers


def test_an_idle_clones_first_snapshot_brings_back_the_clone(node: Node) -> None:
    """What it came from would bring back the original, and may be somebody else's to name."""
    with node.run(Spec(SLEEPER)) as sandbox:
        golden = sandbox.checkpoint()
        with golden.clone() as clone:
            first = clone.checkpoint(skip_if_clean=True, name="mine")
            assert first.id != golden.id
            assert golden.stored.facts.names == ()
            second = clone.checkpoint(skip_if_clean=True)
            assert clone.checkpoint(skip_if_clean=True).id == second.id
            clone.stop()
            assert first.restore()[0].id == clone.id


@pytest.mark.parametrize("change", ["echo 1 > /root/new", "chmod 700 /root", "rm /etc/hosts"])
def test_a_changed_file_alone_makes_a_sandbox_unclean(node: Node, change: str) -> None:
    with node.run(Spec(("sh", "-c", f"read -r _ < /root/go; {change}; sleep infinity"))) as sandbox:
        sandbox.run("mkfifo", "/root/go")
        before = sandbox.checkpoint()
        sandbox.run("sh", "-c", change)
        after = sandbox.checkpoint(skip_if_clean=True)
        assert after.id != before.id


def test_a_changed_byte_of_memory_alone_makes_a_sandbox_unclean(node: Node, churning: Sandbox) -> None:
    before = churning.checkpoint()
    said(churning, "step 1")
    assert churning.checkpoint(skip_if_clean=True).id != before.id


def test_a_delta_without_a_parent_is_refused_and_the_sandbox_runs_on(node: Node, churning: Sandbox) -> None:
    with pytest.raises(InvalidRequest, match="no snapshot it came from"):
        churning.checkpoint(mode=Mode.DELTA)
    full = churning.checkpoint(mode=Mode.FULL)
    said(churning, "step 2")
    assert churning.checkpoint(mode=Mode.DELTA).stored.manifest.parent == full.id
    assert churning.checkpoint(mode=Mode.FULL).stored.manifest.kind is SnapshotKind.FULL


def test_a_chain_at_the_cap_is_followed_by_a_full_snapshot(open_node: Callable[..., Node]) -> None:
    node = open_node(max_chain_length=3)
    with node.run(Spec(SLEEPER)) as sandbox:
        snapshots = [sandbox.checkpoint() for _ in range(5)]
        kinds = [snapshot.stored.manifest.kind for snapshot in snapshots]
        full, delta = SnapshotKind.FULL, SnapshotKind.DELTA
        assert kinds == [full, delta, delta, full, delta]
        sandbox.stop(timeout=0)
        for snapshot in snapshots:
            restored, _ = snapshot.restore()
            restored.stop(timeout=0)


def test_at_the_cap_too_an_idle_sandbox_is_not_stored_again(open_node: Callable[..., Node]) -> None:
    node = open_node(max_chain_length=3)
    with node.run(Spec(SLEEPER)) as sandbox:
        chain = [sandbox.checkpoint() for _ in range(3)]
        assert sandbox.checkpoint(skip_if_clean=True).id == chain[-1].id
        assert len(node.snapshots()) == 3


@on_both_roads
def test_at_the_cap_what_changed_becomes_a_full_snapshot_whole_in_memory_and_files(
    open_node: Callable[..., Node], workload: Callable[..., Sandbox]
) -> None:
    churning = workload("python3", "churning.py")
    node = open_node(max_chain_length=3)
    sandbox, rng = node.sandbox(churning.id), random.Random(6)
    list(links(sandbox, rng, 3))
    state = said(sandbox, "step 5")
    snapshot = sandbox.checkpoint(skip_if_clean=True)
    assert (snapshot.stored.manifest.kind, snapshot.stored.manifest.parent) == (SnapshotKind.FULL, None)
    with snapshot.clone() as clone:
        assert said(clone) == state
    following = list(links(sandbox, rng, 1))
    assert following[0][0].stored.manifest.parent == snapshot.id
    with following[0][0].clone() as clone:
        assert said(clone) == following[0][1]


@on_both_roads
def test_a_file_written_just_before_a_checkpoint_is_whole_in_every_restore(node: Node) -> None:
    loop = "i=0; while :; do i=$((i+1)); echo $i > /root/count; sync /root/count 2>/dev/null; echo $i; done"
    with node.run(Spec(("sh", "-c", loop), ready="log:5")) as sandbox:
        snapshots = [sandbox.checkpoint() for _ in range(5)]
    for snapshot in snapshots:
        with snapshot.clone() as clone:
            clone.freeze()
            numbers = [int(word) for record in clone.logs() for word in record.content.split()]
            assert numbers == list(range(1, len(numbers) + 1))


@on_both_roads
def test_the_root_directory_keeps_its_own_attributes(node: Node) -> None:
    with node.run(Spec(SLEEPER)) as sandbox:
        sandbox.run("sh", "-c", "chmod 711 / && chown 7:8 / && chmod 1777 /usr")
        with sandbox.checkpoint().clone() as clone:
            assert said_by(clone, "stat", "-c", "%a %u:%g", "/", "/usr") == "711 7:8\n1777 0:0\n"
            with clone.checkpoint().clone() as again:
                assert said_by(again, "stat", "-c", "%a %u:%g", "/", "/usr") == "711 7:8\n1777 0:0\n"


@on_both_roads
def test_one_file_under_two_names_is_one_file_along_a_chain(node: Node) -> None:
    with node.run(Spec(SLEEPER)) as sandbox:
        sandbox.run("sh", "-c", "cd /root; echo 1 > a; ln a b; ln a c")
        with sandbox.checkpoint().clone() as clone:
            clone.run("sh", "-c", "cd /root; echo 2 >> b")
            with clone.checkpoint().clone() as again:
                assert said_by(again, "sh", "-c", "cd /root; cat a b c") == "1\n2\n" * 3
                again.run("sh", "-c", "cd /root; echo 3 >> c; rm c")
                with again.checkpoint().clone() as last:
                    last.run("sh", "-c", "cd /root; echo 4 >> a")
                    assert said_by(last, "sh", "-c", "cd /root; cat b; ls") == "1\n2\n3\n4\na\nb\n"


AGENT = """
import os, random, socket
memory = bytearray(os.urandom(64 << 20))
listening = socket.create_server(("127.0.0.1", 8000))
while True:
    connection, _ = listening.accept()
    with connection:
        for page in random.sample(range(len(memory) // 4096), int(connection.recv(100) or 0)):
            memory[page * 4096] ^= 255
        rss = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("Rss"))
        connection.sendall(rss.split()[1].encode())
"""


def test_a_delta_costs_what_changed_and_a_full_snapshot_what_is_not_zero(node: Node) -> None:
    with node.run(Spec(("python3", "-c", AGENT), memory=512 << 20, ready="tcp:8000")) as sandbox:
        full = sandbox.checkpoint().stored.bytes
        assert full < min(1.15 * int(said(sandbox, "0")) * 1024, 200e6)
        deltas = []
        for _ in range(3):
            said(sandbox, "1280")  # 5 MiB, scattered
            deltas.append(sandbox.checkpoint().stored.bytes)
        assert max(deltas) <= 8 << 20
        assert full + sum(deltas) <= 0.4 * 4 * full


def test_a_checkpoint_that_does_not_wait_is_listed_once_it_is_whole(node: Node, churning: Sandbox) -> None:
    state = said(churning, "step 3")
    pending = churning.begin_checkpoint(Wish(name="later", labels={"a": "b"}))
    went_on = said(churning, "step 4")
    whole = pending.wait()
    assert node.wait(pending.token).id == whole.id
    assert (whole.stored.facts.names, whole.stored.facts.labels) == (("later",), {"a": "b"})
    delta = churning.checkpoint()
    assert delta.stored.manifest.parent == whole.id
    churning.remove(force=True)
    for snapshot, expected in ((whole, state), (delta, went_on)):
        with snapshot.clone() as clone:
            assert said(clone) == expected


def test_a_process_of_its_own_finishes_a_checkpoint(node: Node, churning: Sandbox) -> None:
    from thawbox.cli.finish import PROGRAM

    state = said(churning, "step 5")
    pending = churning.begin_checkpoint(Wish(name="apart"), program=PROGRAM)
    whole = node.wait(pending.token)
    os.wait()
    assert node.snapshot("apart").id == whole.id
    assert churning.record.parent_snapshot == whole.id
    churning.remove(force=True)
    with whole.clone() as clone:
        assert said(clone) == state


def test_a_checkpoint_whose_finisher_dies_leaves_nothing_and_says_so(node: Node, churning: Sandbox) -> None:
    pending = churning.begin_checkpoint(Wish(), program=("sh", "-c", "exit 1", "sh"))
    os.wait()
    with pytest.raises(SnapshotNotFound, match="died"):
        node.wait(pending.token)
    assert node.snapshots() == []
    with Node(Settings(home=node.settings.home)) as other:
        assert [path.name for path in other.context.store.layout.snapshots.iterdir()] == []
    said(churning, "step 6")
    assert churning.checkpoint().stored.manifest.kind is SnapshotKind.FULL


def test_a_checkpoint_that_cannot_be_finished_tells_whoever_waits(node: Node, churning: Sandbox) -> None:
    parent = churning.checkpoint()
    node.context.store.layout.images(parent.id).joinpath("pagemap-2.img").write_bytes(b"damaged")
    pending = churning.begin_checkpoint(Wish())
    with pytest.raises(DumpFailed, match="no snapshot came of"):
        pending.wait()
    assert len(list(node.context.store.layout.snapshots.iterdir())) == 1
    said(churning, "step 7")


def test_a_checkpoint_cannot_both_stop_and_not_wait(node: Node) -> None:
    with node.run(Spec(SLEEPER)) as sandbox:
        with pytest.raises(InvalidRequest, match="cannot be stopped"):
            sandbox.begin_checkpoint(Wish(stop=True))
        assert sandbox.checkpoint().stored.manifest.kind is SnapshotKind.FULL
