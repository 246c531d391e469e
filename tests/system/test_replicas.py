"""A node restores and clones what only a replica has, mends what is damaged here, and says where copies are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_process import Cli
from thawbox.config import load_settings
from thawbox.errors import InvalidRequest, SnapshotNotFound
from thawbox.host.files import remove_tree
from thawbox.node import Node

OpenNode = Callable[..., Node]
State = dict[str, Any]


@pytest.fixture
def addresses(tmp_path: Path) -> str:
    return f"file://{tmp_path}/near, file://{tmp_path}/far"


@pytest.fixture
def elsewhere(tmp_path: Path, rootfs_cache: Path, addresses: str) -> Iterator[Node]:
    """Another node with the same replicas; nothing of it is left after the test."""
    home = tmp_path / "elsewhere"
    home.mkdir(mode=0o700)
    (home / "rootfs").symlink_to(rootfs_cache)
    with Node(load_settings(home=home, replicas=addresses)) as node:
        yield node
        for sandbox in node.sandboxes():
            sandbox.remove(force=True)
        node.tidy()
    remove_tree(home)


def test_a_sandbox_comes_back_on_a_node_that_never_saw_its_snapshot(
    open_node: OpenNode, elsewhere: Node, addresses: str, workload: Callable[..., Any], ask: Callable[..., State]
) -> None:
    node = open_node(replicas=addresses)
    sandbox = workload("python3", "agent.py", name="traveller")
    before = ask(sandbox)["kept"]
    snapshot = sandbox.checkpoint(stop=True)
    assert all(copied.failure is None for copied in node.context.replicas.replicate(snapshot.id))
    with pytest.raises(SnapshotNotFound):
        elsewhere.context.store.resolve(snapshot.id)
    back, _ = elsewhere.snapshot(snapshot.id[:16]).restore()
    assert (back.id, back.name, ask(back)["kept"]) == (sandbox.id, "traveller", before)
    with pytest.raises(SnapshotNotFound):
        elsewhere.snapshot("no-such-name")


def test_what_is_damaged_here_is_brought_again_when_it_is_cloned(
    open_node: OpenNode, addresses: str, workload: Callable[..., Any], ask: Callable[..., State]
) -> None:
    node = open_node(replicas=addresses)
    sandbox = workload("python3", "agent.py")
    before = ask(sandbox)["kept"]
    snapshot = sandbox.checkpoint()
    node.context.replicas.replicate(snapshot.id)
    images = node.context.store.layout.images(snapshot.id)
    pages = max(images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    with pages.open("r+b") as file:
        file.seek(4096)
        file.write(b"damage")
    assert node.context.store.verify([snapshot.id])
    with node.snapshot(snapshot.id).clone() as clone:
        assert ask(clone)["kept"] == before
    assert node.context.store.verify([snapshot.id], deep=True) == ()


def test_mirroring_to_nowhere_is_refused_and_without_rules_it_does_nothing(open_node: OpenNode) -> None:
    with pytest.raises(InvalidRequest, match="no replicas"):
        open_node(mirror="all").mirroring()
    with open_node().mirroring():
        pass


def test_the_command_line_copies_shows_checks_and_repairs(
    home: Path, addresses: str, tmp_path: Path, workload: Callable[..., Any]
) -> None:
    kept = workload("python3", "agent.py").checkpoint(name="kept")
    run = Cli(home, (("THAWBOX_REPLICAS", addresses), ("THAWBOX_MIRROR", "name:kept")))
    done = run("snapshots", "replicate", "--json").json()
    assert done["ok"]
    assert {copy["snapshot"] for copy in done["copies"]} == {kept.id}
    (shown,) = run("snapshots", "where", "--json").json()["snapshots"]
    assert [one["has"] for one in shown["replicas"]] == [True, True]
    chunk = max((tmp_path / "near" / "chunks").rglob("*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    assert run("snapshots", "verify", "--remote", "kept", "--json").status == 108
    repaired = run("snapshots", "verify", "--remote", "--repair", "kept", "--json").json()
    assert [one["repaired"] for one in repaired["replicas"]] == [True, False]
    assert run("snapshots", "verify", "--remote", "--json").json()["ok"]
    assert Cli(home)("snapshots", "where").status == 102
