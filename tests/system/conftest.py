"""Workloads in sandboxes, and how they are questioned (tests/workloads/answering.py)."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kube.server import Server
from serving import Serving
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

WORKLOADS = Path(__file__).parents[1] / "workloads"
SOURCES = Mount(str(WORKLOADS), "/workloads", read_only=True)
PORT = 8000

State = dict[str, Any]
RunWorkload = Callable[..., Sandbox]


@pytest.fixture
def server() -> Iterator[Server]:
    """A simulated API server of Kubernetes."""
    with Server() as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test in a cluster that fails also tells what the cluster was like."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and cluster is not None:
        report.sections.append(("the cluster", cluster.summary()))
    return report


@pytest.fixture(scope="module", autouse=True)
def _answers_are_what_the_document_says(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the tests of the service every answer that they get is held against `/openapi.json`."""
    path: Path = request.path
    if path.parent.name != "api" and not path.name.startswith("test_api_"):
        yield
        return
    from conformance import every_answer_checked

    with pytest.MonkeyPatch.context() as patch, every_answer_checked(patch):
        yield


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, rootfs_cache: Path) -> Iterator[Serving]:
    """A service for the tests of one file, over its socket and over TCP."""
    home = tmp_path_factory.mktemp("served") / "home"
    home.mkdir(mode=0o700)
    (home / "rootfs").symlink_to(rootfs_cache)
    serving = Serving(home, ("--port", "0")).start()
    try:
        yield serving
    finally:
        serving.close()
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def root(serving: Serving) -> httpx.Client:
    """Root over the node's own socket."""
    return serving.client()


@pytest.fixture
def workload(node: Node) -> RunWorkload:
    """Runs a command over tests/workloads in a new sandbox and returns it once it answers on port 8000."""

    def run(*command: str, **spec: object) -> Sandbox:
        options: dict[str, object] = {"ready": f"tcp:{PORT}", "env": {"PYTHONDONTWRITEBYTECODE": "1"}, **spec}
        mounts = (SOURCES, *options.pop("mounts", ()))  # type: ignore[misc]
        return node.run(Spec(tuple(command), mounts=mounts, workdir="/workloads", **options))  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def ask() -> Callable[[Sandbox, str], State]:
    """Asks a workload one word (`state`, `grow`, `move`) and returns its answer."""

    def asked(sandbox: Sandbox, word: str = "state") -> State:
        with sandbox.connect(PORT, timeout=60) as connection:
            connection.sendall(word.encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        found: State = json.loads(answer)
        return found

    return asked


@pytest.fixture(scope="session")
def fetch() -> Callable[[Sandbox], dict[str, object]]:
    """Fetches the JSON object that a web server in the sandbox has at `/`."""

    def fetched(sandbox: Sandbox) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        connection.sock = sandbox.connect(PORT, timeout=60)
        try:
            connection.request("GET", "/")
            found: dict[str, object] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    return fetched
