"""What every test that runs sandboxes shares: a node on a home of its own, and a look at what it leaves behind.

`tests/` is put on the import path, so that tests share modules (`traces`, `views`) and not only fixtures; so is the
golden agent, whose modules (`app`, `golden`, `corpus`, …) are tested like ours.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "agent"))
sys.path.insert(0, str(Path(__file__).parent))

from roads import OneRoad
from thawbox.config import load_settings
from thawbox.engines import Engine
from thawbox.errors import SandboxNotFound
from thawbox.node import Node, make_criu_engine
from traces import Traces, assert_unchanged, take_traces

OpenNode = Callable[..., Node]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, and what we start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--dumps", type=int, default=10, help="short freezes of the torn-memory test, each verified by a clone"
    )
    parser.addoption("--cycles", type=int, default=1000, help="run/rm cycles of the leak test")


@pytest.fixture(scope="session")
def rootfs_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's rootfs, prepared once: it takes a second, and is the same for every home."""
    from thawbox.host.rootfs import resolve

    cache = tmp_path_factory.mktemp("rootfs") / "rootfs"
    cache.mkdir()
    resolve("SYSTEM", cache)
    return cache


@pytest.fixture
def home(tmp_path: Path, rootfs_cache: Path) -> Path:
    """A fresh THAWBOX_HOME with nothing in it but the prepared rootfs."""
    fresh = tmp_path / "home"
    fresh.mkdir(mode=0o700)
    (fresh / "rootfs").symlink_to(rootfs_cache)
    return fresh


@pytest.fixture
def road(request: pytest.FixtureRequest) -> str:
    """Which road restores take (see roads.py); empty: whichever the node takes by itself."""
    return str(getattr(request, "param", ""))


@pytest.fixture
def open_node(home: Path, road: str) -> Iterator[OpenNode]:
    """Opens nodes on the test's home, any number, also side by side; nothing of them is left after the test."""
    with ExitStack() as stack:

        def open_one(*, engine: Engine | None = None, **settings: object) -> Node:
            chosen = load_settings(**{"home": home, **settings})
            if engine is None and road:
                engine = cast(Engine, OneRoad(make_criu_engine(chosen), road))
            return stack.enter_context(Node(chosen, engine=engine))

        yield open_one
        stack.close()
        with Node(load_settings(home=home)) as last:
            for sandbox in last.sandboxes():
                try:
                    sandbox.remove(force=True)
                except SandboxNotFound:
                    continue
            last.tidy()
    left = take_traces(home)
    shutil.rmtree(home)
    assert not left.of_kernel(), "the test left something in the kernel"


@pytest.fixture
def node(open_node: OpenNode) -> Node:
    """A node on a home of its own."""
    return open_node()


@pytest.fixture
def traces(home: Path) -> Callable[[], Traces]:
    """What the node's home has in the kernel and on the disk at the moment of the call."""
    return lambda: take_traces(home)


@pytest.fixture
def unchanged(traces: Callable[[], Traces]) -> Callable[[], AbstractContextManager[None]]:
    """A block after which the node's home has everything, in the kernel and on the disk, that it had before."""

    @contextmanager
    def block() -> Iterator[None]:
        before = traces()
        yield
        assert_unchanged(before, traces())

    return block
