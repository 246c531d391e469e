"""One service for all tests of a module, which starts in seconds; a sandbox called `box` for each test."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_process import Cli
from service import Served, start
from thawbox.client import Client
from thawbox.client.sync.sandbox import Sandbox
from thawbox.config import load_settings
from thawbox.errors import NotFound
from thawbox.node import Node
from traces import take_traces


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory, rootfs_cache: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = tmp_path_factory.mktemp("api") / "home"
    home.mkdir(mode=0o700)
    (home / "rootfs").symlink_to(rootfs_cache)
    yield home
    with Node(load_settings(home=home)) as last:
        left = [sandbox.name for sandbox in last.sandboxes()]
        for sandbox in last.sandboxes():
            sandbox.remove(force=True)
        last.tidy()
    traces = take_traces(home)
    shutil.rmtree(home)
    assert not traces.of_kernel(), "the tests left something in the kernel"
    assert not left, "a test left a sandbox"


@pytest.fixture(scope="module")
def served(shared_home: Path) -> Iterator[Served]:
    """`thawbox serve`, as a process of its own."""
    process, service = start(Cli(shared_home))
    try:
        yield service
    finally:
        process.terminate()
        assert process.wait(60) == 0
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def beside(served: Served, shared_home: Path) -> Iterator[Node]:
    """The same node in this process, to look at what the service does to it."""
    with Node(load_settings(home=shared_home)) as node:
        yield node


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
def box(client: Client) -> Iterator[Sandbox]:
    """A sandbox called `box`, as the client sees it; gone afterwards with what was made of it."""
    made = client.run(("sleep", "100000"), name="box")
    yield made
    for sandbox in client.sandboxes(all=True):
        if sandbox.told["pool"] is None:
            with contextlib.suppress(NotFound):
                sandbox.kill()
