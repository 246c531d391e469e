"""When a command asks the service: how little it imports, what stays warm, what an interrupt undoes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cli_process import Cli
from thawbox.host.proc import children
from thawbox.node import Node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

HEAVY = (
    "thawbox.node", "thawbox.sandbox", "thawbox.engines", "thawbox.store", "thawbox.pool", "fastapi", "httpx", "numpy",
    "structlog", "rich", "prometheus_client", "opentelemetry", "google.protobuf",
)  # fmt: skip
IMPORTS = """
import json, sys
from thawbox.cli.app import run
status = run(json.loads(sys.argv[1]))
print(json.dumps([status, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]), file=sys.stderr)
"""


@pytest.fixture
def cli(node: Node, home: Path) -> Cli:
    """`node` cleans up after it."""
    assert node.settings.home == home
    return Cli(home)


@pytest.fixture
def service(cli: Cli, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "serve.log").open("wb"))
        started = cli.start("serve", "--json", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        stack.callback(started.wait, 60)
        stack.callback(started.terminate)
        assert started.stdout is not None
        stack.enter_context(started.stdout)
        assert json.loads(started.stdout.readline())["socket"]
        yield started


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--name", "a", "--", "sleep", "1000"],
        ["ps"],
        ["checkpoint", "a", "--name", "s"],
        ["snapshots", "ls"],
        ["pool", "ls"],
        ["rm", "--force", "a"],
    ],
    ids=" ".join,
)
def test_a_command_that_asks_the_service_imports_nothing_that_it_would_wait_for(
    service: subprocess.Popen[bytes], cli: Cli, words: list[str]
) -> None:
    if words[0] in ("checkpoint", "rm"):
        cli.run("--name", "a")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(words), json.dumps(HEAVY)],
        env=cli.environment(), capture_output=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done


def test_memory_that_one_commands_clones_loaded_is_there_for_the_next_commands(
    service: subprocess.Popen[bytes], cli: Cli
) -> None:
    cli.run("--name", "a")
    assert cli("checkpoint", "a", "--name", "s").status == 0

    def template_servers() -> list[int]:
        found = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in children(service.pid)]
        return [pid for pid, command in found if b"template" in command]

    assert cli("clone", "s", "-n", "3").status == 0
    held = template_servers()
    assert len(held) == 1
    assert cli("clone", "s", "-n", "3").status == 0
    assert template_servers() == held


def test_a_service_that_is_told_to_stop_checkpoints_what_its_policy_says(
    service: subprocess.Popen[bytes], cli: Cli, node: Node
) -> None:
    for name in ("kept", "other"):
        cli.run("--name", name)
        asked = ["--checkpoint-on-drain"] if name == "kept" else []
        assert cli("supervise", name, *asked).status == 0
        assert cli("exec", name, "--", "sh", "-c", "echo late >/root/late").status == 0
    before = {snapshot.id for snapshot in node.snapshots()}
    service.terminate()
    assert service.wait(60) == 0
    (made,) = (snapshot for snapshot in node.snapshots() if snapshot.id not in before)
    assert cli("clone", made.id, "--name", "again").status == 0
    assert cli("exec", "again", "--", "cat", "/root/late").out == b"late\n"
    assert {sandbox.name for sandbox in node.sandboxes()} == {"kept", "other", "again"}


def test_an_interrupt_ends_what_the_service_was_doing_for_the_command(
    service: subprocess.Popen[bytes], cli: Cli, node: Node
) -> None:
    cli.run("--name", "a", "--hooks", "cmd:sleep 0.5; true")
    assert cli("checkpoint", "a", "--name", "s").status == 0
    cloning = cli.start("clone", "s", "-n", "40", "--name", "c", stdin=subprocess.DEVNULL)
    with cloning:
        while len(node.sandboxes()) < 2:
            assert cloning.poll() is None
            time.sleep(0.02)  # another process makes them, and tells nobody
        cloning.send_signal(signal.SIGINT)
        assert cloning.wait(60) == 130
    while len(node.sandboxes()) > 1:
        time.sleep(0.05)  # the same: it is undone
    assert [sandbox.name for sandbox in node.sandboxes()] == ["a"]


IMPOSTOR = """
import os, socket, sys
os.chdir(sys.argv[1])
listening = socket.socket(socket.AF_UNIX)
listening.bind("serve.sock")
os.setuid(65534)
listening.listen()
print("listening", flush=True)
listening.accept()[0].recv(1)
"""


def test_nothing_is_sent_to_a_socket_that_is_not_served_by_root(cli: Cli, home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", IMPOSTOR, str(home)], stdout=subprocess.PIPE) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == b"listening\n"
        refused = cli("ps", "--json")
        assert (refused.status, refused.error()["code"]) == (102, "invalid")
        assert "user 65534" in refused.error()["cause"]
        assert impostor.wait(60) == 0
    (home / "serve.sock").unlink()


def test_a_socket_that_nobody_serves_any_more_is_no_service(cli: Cli, home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        directory = os.open(home, os.O_PATH)
        dead.bind(f"/proc/self/fd/{directory}/serve.sock")
        os.close(directory)
    assert cli("ps", "--json").json() == {"sandboxes": []}
    (home / "serve.sock").unlink()
