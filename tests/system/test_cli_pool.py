"""`thawbox template`, `pool` and `serve` as their users call them: the same words with and without the service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cli_process import Cli
from thawbox.cli.served import _open_socket
from thawbox.host.init_client import Completed
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

WORKLOADS = Path(__file__).parents[1] / "workloads"
SHOWN = {"name", "template", "low", "high", "limit", "parked", "leased", "restoring", "waiting"}
ACQUIRED = {"id", "name", "pool", "acquire_ms", "lease"}


@pytest.fixture
def cli(node: Node, home: Path) -> Cli:
    """The command on a home with a template `tiny`; `node` cleans up after it."""
    assert node.settings.home == home
    cli = Cli(home)
    made = cli(
        "template", "create", "tiny", "--ready", "tcp:8000", "--mount", f"{WORKLOADS}:/workloads:ro", "--json",
        "--", "python3", "-B", "/workloads/tiny.py",
    ).json()  # fmt: skip
    assert {"name", "snapshot", "command", "bytes"} <= set(made)
    return cli


@pytest.fixture
def serving(cli: Cli) -> Iterator[Serving]:
    with ExitStack() as stack:
        yield Serving(cli, stack)


class Serving:
    """Starts `thawbox serve`, any number of times."""

    def __init__(self, cli: Cli, stack: ExitStack) -> None:
        self._cli = cli
        self._stack = stack

    def start(self) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            self._cli.argv("serve", "--json"), env=self._cli.environment(), stdout=subprocess.PIPE
        )  # fmt: skip
        self._stack.callback(started.wait, 60)
        self._stack.callback(started.terminate)
        assert started.stdout is not None
        self._stack.callback(started.stdout.close)
        self.socket = Path(json.loads(started.stdout.readline())["socket"])
        return started


@pytest.fixture(params=["embedded", "served"])
def anyhow(request: pytest.FixtureRequest, cli: Cli) -> Cli:
    if request.param == "served":
        request.getfixturevalue("serving").start()
    return cli


def test_a_pool_lives_its_life_with_and_without_the_service(anyhow: Cli, node: Node) -> None:
    cli = anyhow
    assert set(cli("pool", "create", "p", "--template", "tiny", "--low", "1", "--high", "2", "--json").json()) >= SHOWN
    one = cli("pool", "acquire", "p", "--json").json()
    assert set(one) >= ACQUIRED
    two = cli("pool", "acquire", "p", "--timeout", "60s", "--ttl", "10m", "--json").json()
    assert one["id"] != two["id"]
    done = node.sandbox(one["name"]).run("hostname")
    assert isinstance(done, Completed)
    assert done.stdout == f"{one['name']}\n".encode()
    assert cli("pool", "show", "p", "--json").json()["leased"] == 2
    assert cli("pool", "release", one["name"], "--json").json()["lease"] == one["lease"]
    assert cli("pool", "release", two["lease"], "--reset", "--json").json()["name"] == two["name"]
    assert cli("pool", "release", two["lease"]).status == 103
    assert cli("pool", "roll", "p", "--json").json() == {"name": "p"}
    assert [set(pool) >= SHOWN for pool in cli("pool", "ls", "--json").json()["pools"]] == [True]
    assert cli("template", "rm", "tiny", "--json").error()["code"] == "invalid"
    assert cli("pool", "drain", "p", "--timeout", "0", "--json").json() == {"name": "p"}
    assert cli("pool", "acquire", "p").status in {103, 106}
    assert cli("pool", "show", "p", "--json").json()["parked"] == 0
    assert cli("pool", "rm", "p", "--json").json() == {"name": "p"}
    assert cli("template", "rm", "tiny", "--json").json() == {"name": "tiny"}
    assert not node.sandboxes()
    assert not node.snapshots()


def test_a_pool_with_leases_is_removed_only_by_force(anyhow: Cli, node: Node) -> None:
    assert anyhow("pool", "create", "p", "--template", "tiny", "--low", "0").status == 0
    assert anyhow("pool", "acquire", "p").status == 0
    assert anyhow("pool", "rm", "p", "--json").error()["cause"] == "pool p has 1 leases"
    assert anyhow("pool", "rm", "p", "--force").status == 0
    assert not node.sandboxes()


def test_what_cannot_be_is_refused_in_the_same_words(anyhow: Cli) -> None:
    assert anyhow("pool", "create", "p", "--template", "none").status == 103
    assert (
        anyhow("pool", "create", "p", "--template", "tiny", "--low", "9", "--high", "1", "--json").error()["code"]
        == "invalid"
    )
    assert anyhow("pool", "create", "../p", "--template", "tiny").status == 102
    assert anyhow("pool", "create", "p", "--template", "tiny", "--low", "0", "--high", "0", "--limit", "1").status == 0
    assert anyhow("pool", "create", "p", "--template", "tiny").status == 102
    assert anyhow("pool", "acquire", "p").status == 0
    exhausted = anyhow("pool", "acquire", "p", "--timeout", "0.2", "--json")
    assert exhausted.status == 106
    assert exhausted.error()["code"] == "unavailable.pool"
    assert anyhow("pool", "acquire", "nothing").status == 103
    assert anyhow("pool", "rm", "p", "--force").status == 0


def test_only_one_service_runs_only_root_reaches_it_and_it_ends_politely(cli: Cli, serving: Serving) -> None:
    first = serving.start()
    assert stat.S_IMODE(serving.socket.stat().st_mode) == 0o600
    assert cli("serve", "--json").error()["code"] == "unavailable"
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert not serving.socket.exists()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_leases_and_parked_clones_outlive_the_service(
    cli: Cli, serving: Serving, node: Node, end: signal.Signals
) -> None:
    first = serving.start()
    cli("pool", "create", "p", "--template", "tiny", "--low", "2", "--high", "2")
    held = cli("pool", "acquire", "p", "--json").json()
    first.send_signal(end)
    first.wait(60)
    serving.start()
    assert node.sandbox(held["id"]).run("true")
    other = cli("pool", "acquire", "p", "--json").json()
    assert other["id"] != held["id"]
    assert cli("pool", "show", "p", "--json").json()["leased"] == 2
    assert cli("pool", "release", held["lease"]).status == 0
    assert cli("pool", "drain", "p", "--timeout", "0").status == 0
    assert not node.sandboxes()


def test_a_drain_outlives_the_service(cli: Cli, serving: Serving, node: Node) -> None:
    first = serving.start()
    cli("pool", "create", "p", "--template", "tiny", "--low", "1", "--high", "1", "--limit", "1")
    held = cli("pool", "acquire", "p", "--json").json()
    draining = subprocess.Popen(cli.argv("pool", "drain", "p"), env=cli.environment(), stderr=subprocess.DEVNULL)
    while "is draining" not in cli("pool", "acquire", "p", "--timeout", "0", "--json").error()["cause"]:
        pass
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert draining.wait(60) != 0
    serving.start()
    assert "is draining" in cli("pool", "acquire", "p", "--timeout", "0", "--json").error()["cause"]
    assert node.sandbox(held["id"]).run("true")
    assert cli("pool", "release", held["lease"]).status == 0
    while not cli("pool", "show", "p", "--json").json()["drained"]:
        pass
    assert not node.sandboxes()
    assert cli("pool", "rm", "p").status == 0
    assert node.drains() == {}


def test_the_service_brings_supervised_sandboxes_back(cli: Cli, serving: Serving, node: Node, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"restart": "on-failure"}')
    cli(
        "run", "--name", "kept", "--spec", str(spec), "--ready", "tcp:8000", "--mount", f"{WORKLOADS}:/workloads:ro",
        "--", "python3", "-B", "/workloads/tiny.py",
    )  # fmt: skip
    sandbox = node.sandbox("kept")
    nonce = ask(sandbox)
    sandbox.checkpoint()
    serving.start()
    before = sandbox.record
    os.kill(before.keeper_pid, signal.SIGKILL)
    while sandbox.record.keeper_pid in {0, before.keeper_pid}:
        time.sleep(0.05)  # another process brings it back, and tells nobody
    assert ask(sandbox) == nonce


def ask(sandbox: Sandbox) -> str:
    """The nonce in the program's memory."""
    while True:
        with contextlib.suppress(OSError), sandbox.connect(8000) as connection:
            return connection.recv(4096).decode().split()[0]


def test_a_caller_that_hung_up_while_it_waited_keeps_no_clone(cli: Cli, serving: Serving, home: Path) -> None:
    serving.start()
    cli("pool", "create", "p", "--template", "tiny", "--low", "0", "--high", "0", "--limit", "1")
    held = cli("pool", "acquire", "p", "--json").json()
    with _open_socket(home) as hanging:
        hanging.sendall(b"POST /v1/pools/p/leases HTTP/1.1\r\nHost: thawbox\r\nContent-Type: application/json\r\n")
        hanging.sendall(b'Content-Length: 15\r\n\r\n{"timeout": 60}')
        while cli("pool", "show", "p", "--json").json()["waiting"] != 1:
            pass
    assert cli("pool", "release", held["lease"]).status == 0
    assert cli("pool", "acquire", "p", "--timeout", "60s").status == 0
    assert cli("pool", "rm", "p", "--force").status == 0


def test_a_template_is_listed_shown_and_rebuilt(cli: Cli, serving: Serving) -> None:
    serving.start()
    (listed,) = cli("template", "ls", "--json").json()["templates"]
    shown = cli("template", "show", "tiny", "--json").json()
    assert shown["spec"]["command"] == listed["command"] == ["python3", "-B", "/workloads/tiny.py"]
    cli("pool", "create", "p", "--template", "tiny", "--low", "1", "--high", "1")
    rebuilt = cli("template", "rebuild", "tiny", "--json").json()
    assert rebuilt["snapshot"] != shown["snapshot"]
    assert cli("pool", "roll", "p").status == 0
    assert cli("pool", "show", "p", "--json").json()["digest"] == rebuilt["snapshot"]
    assert cli("pool", "rm", "p").status == 0
