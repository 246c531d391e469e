"""Commands over HTTP: collected, streamed, on a terminal; and what is left of them when their caller goes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli_process import Cli
from service import Served, start, wait_for
from serving import Serving
from thawbox.client import Client
from thawbox.client.sync.sandbox import Sandbox
from thawbox.errors import (
    CommandInterrupted,
    InvalidRequest,
    InvalidTransition,
    SandboxNotFound,
    ThawboxError,
    Unavailable,
)
from thawbox.node import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def sessions(beside: Node) -> Callable[[], int]:
    """How many sessions the init of `box` knows."""

    def count() -> int:
        from thawbox.sandbox.links import open_link

        with open_link(beside.context, beside.sandbox("box").record) as link:
            return link.ping().sessions

    return count


def runs(beside: Node, word: str) -> bool:
    """Whether a command with that word in it runs in `box`."""
    printed = beside.sandbox("box").run("ps", "axo", "args")
    return any(line.endswith(word.encode()) for line in printed.stdout.splitlines())  # type: ignore[union-attr]


def test_a_command_answers_all_that_it_did(box: Sandbox) -> None:
    done = box.commands.run(
        ["sh", "-c", 'cat; echo "$A $PWD $(id -un)"; echo err >&2; exit 42'],
        stdin="in ", env={"A": "ä b"}, user="nobody", workdir="/tmp",
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.exit_code, done.ok) == ("in ä b /tmp nobody\n", "err\n", 42, False)
    assert box.commands.run("kill -9 $$").signal == 9
    missing = box.commands.run(["no-such-program"])
    assert (missing.exit_code, "no-such-program" in missing.stderr) == (127, True)
    assert box.commands.run("head -c 9000000 /dev/zero | tr '\\0' x").truncated is True


def test_what_makes_no_sense_is_refused_and_never_a_failure(box: Sandbox, client: Client) -> None:
    for wish in ([], ["a\0b"], ["echo", "x" * 300_000]):
        with pytest.raises(InvalidRequest):
            box.commands.run(wish)
    for options in ({"user": "no-such-user"}, {"env": {"A=B": "c"}}, {"timeout": -1}):
        with pytest.raises(InvalidRequest):
            box.commands.run("true", **options)  # type: ignore[arg-type]
    box.stop(timeout=0)
    with pytest.raises(InvalidTransition):
        box.commands.run("true")
    box.kill()
    with pytest.raises(SandboxNotFound):
        box.commands.run("true")


def test_a_timeout_kills_the_command_and_all_of_its_session(box: Sandbox, beside: Node) -> None:
    jobs = "set -m; sleep 4321 & echo begun; exec sleep 4322"  # the job has a process group of its own
    done = box.commands.run(jobs, timeout=0.5)
    assert (done.stdout, done.timed_out, done.signal) == ("begun\n", True, 9)
    wait_for(lambda: not runs(beside, "4321") and not runs(beside, "4322"), "the whole session is gone")


def test_output_is_streamed_as_it_comes_and_is_whole_over_a_checkpoint(box: Sandbox, beside: Node) -> None:
    heard: list[str] = []
    first = threading.Event()

    def hear(text: str) -> None:
        heard.append(text)
        first.set()

    done: list[Any] = []
    counting = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; sleep 0.01; done"
    thread = threading.Thread(target=lambda: done.append(box.commands.run(counting, on_stdout=hear)))
    thread.start()
    assert first.wait(60), "nothing was heard before the end"
    box.checkpoint()
    box.checkpoint()
    box.files.write("/tmp/enough", "")
    thread.join(60)
    numbers = [int(line) for line in "".join(heard).split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert done[0].stdout == "".join(heard)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_caller_that_vanishes_takes_the_command_along_and_leaves_nothing(
    box: Sandbox, served: Served, beside: Node, sessions: Callable[[], int], accept: str
) -> None:
    before = sessions()
    box.commands.run("true")
    descriptors = len(served.links())
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with (
        httpx.Client(transport=transport, base_url="http://x", timeout=1.0) as caller,
        pytest.raises(httpx.ReadTimeout),
        caller.stream(
            "POST", f"/v1/sandboxes/{box.id}/exec", json={"argv": ["sleep", "7654"]}, headers={"Accept": accept}
        ) as answer,
    ):
        for _ in answer.iter_bytes():
            assert runs(beside, "7654")
    wait_for(lambda: not runs(beside, "7654"), "the command is gone")
    wait_for(lambda: sessions() == before, "init has forgotten it")
    wait_for(lambda: len(served.links()) <= descriptors, "its descriptors are closed")


def test_a_slow_reader_holds_up_his_own_command_and_nobody_else(box: Sandbox, served: Served, beside: Node) -> None:
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with httpx.Client(transport=transport, base_url="http://x", timeout=60) as slow:
        wish = {"argv": ["sh", "-c", "yes | head -c 50000000; echo done > /tmp/done"]}
        stream = {"Accept": "text/event-stream"}
        with slow.stream("POST", f"/v1/sandboxes/{box.id}/exec", json=wish, headers=stream) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            assert box.commands.run("echo quick").stdout == "quick\n"
            assert not box.files.exists("/tmp/done"), "50 MB went somewhere though nobody read them"
    wait_for(lambda: not runs(beside, "head -c 50000000"), "the command is gone")


def test_a_stopped_sandbox_interrupts_its_commands_and_they_say_so(box: Sandbox) -> None:
    begun = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            box.commands.run("echo here; sleep 1000", on_stdout=lambda _: begun.set())
        except CommandInterrupted as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    box.kill()
    thread.join(60)
    assert [error.code for error in raised] in (["invalid.interrupted"], [])


def test_a_detached_command_belongs_to_the_sandbox(box: Sandbox, beside: Node) -> None:
    assert box.commands.start("exec sleep 987") > 0
    wait_for(lambda: runs(beside, "sleep 987"), "it runs")
    with box.checkpoint().clone() as clone:
        assert "sleep 987" in clone.commands.run("ps axo args").stdout


def test_a_terminal_is_a_terminal(box: Sandbox) -> None:
    with box.terminal(("sh",), rows=30, cols=100) as terminal:
        seen = b""

        def wait_to_see(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                printed = terminal.read()
                assert printed is not None, seen
                seen += printed.content
            seen = seen.partition(text)[2]

        terminal.write("stty size; echo term=$TERM\n")
        wait_to_see(b"30 100")
        wait_to_see(b"term=xterm-256color")
        terminal.write("sh -c 'echo be\"\"gun; exec sleep 1000'\n")
        wait_to_see(b"begun")
        terminal.write(b"\x03")  # a key, for the terminal inside
        terminal.write('echo sl""ept=$?\n')
        wait_to_see(b"slept=130")
        terminal.resize(40, 120)
        terminal.write("while ! stty size | grep 40; do :; done\n")
        wait_to_see(b"40 120")
        box.checkpoint()  # in the middle of it
        terminal.write("echo still=he''re; exit 5\n")
        wait_to_see(b"still=here")
        while terminal.read() is not None:
            continue
        assert terminal.exit_code == 5


def test_without_a_terminal_the_streams_stay_apart_and_signals_and_the_end_of_input_arrive(box: Sandbox) -> None:
    with box.terminal(("sh", "-c", "cat; echo err >&2; exec sleep 1000"), tty=False) as terminal:
        terminal.write(b"x" * 300_000)
        terminal.close_stdin()
        out = err = 0
        while (printed := terminal.read()) is not None:
            out += len(printed.content) * (printed.stream == 1)
            err += len(printed.content) * (printed.stream == 2)
            if err:
                terminal.signal("TERM")
        assert (out, err, terminal.exit_code) == (300_000, 4, 143)


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_input_goes_on_into_a_command_that_prints_nothing_meanwhile(box: Sandbox, size: int) -> None:
    with box.terminal(("sh", "-c", f"head -c {size} | wc -c"), tty=False) as terminal:
        terminal.write(b"x" * size)  # in one piece, and the end of input is not told
        counted = terminal.read()
        assert counted is not None
        assert int(counted.content) == size
    assert int(box.commands.run("wc -c", stdin=b"x" * size).stdout) == size


def test_a_terminal_says_that_its_sandbox_stopped(box: Sandbox) -> None:
    with box.terminal(("sh", "-c", "echo here; sleep 1000")) as terminal:
        assert terminal.read() is not None
        box.kill()
        try:
            while terminal.read() is not None:
                continue
        except CommandInterrupted as error:
            assert "interrupted" in error.cause
        else:
            assert terminal.exit_code == 137, "its end was heard in the last moment"


def test_a_terminal_that_vanishes_hangs_up(
    box: Sandbox, beside: Node, served: Served, sessions: Callable[[], int]
) -> None:
    before = sessions()
    with box.terminal(("sh", "-c", "trap '' HUP; echo on; exec sleep 6543")) as terminal:
        assert terminal.read() is not None
        assert runs(beside, "sleep 6543")
    wait_for(lambda: not runs(beside, "sleep 6543"), "it was killed")
    wait_for(lambda: sessions() == before, "init has forgotten it")


def test_a_caller_that_vanishes_while_its_input_waits_takes_the_command_along(box: Sandbox, beside: Node) -> None:
    with box.terminal(("sh", "-c", "echo on; exec sleep 7654"), tty=False) as terminal:
        assert terminal.read() is not None
        for _ in range(20):
            terminal.write(b"x" * (64 << 10))  # nobody reads it
        assert runs(beside, "sleep 7654")
    wait_for(lambda: not runs(beside, "sleep 7654"), "it was killed")


@pytest.mark.parametrize(
    ("first", "then"),
    [("{}", None), ("no json", None), ('{"argv": ["cat"], "x": 1}', None), ('{"argv": ["cat"]}', '{"signal": "NONE"}'),
     ('{"argv": ["cat"]}', "nonsense"), ('{"argv": ["cat"], "tty": {"rows": 0, "cols": 5}}', None)],
)  # fmt: skip
def test_nonsense_on_a_terminal_is_told_as_such(box: Sandbox, served: Served, first: str, then: str | None) -> None:
    from websockets.sync.client import unix_connect

    with unix_connect(str(served.socket), f"ws://x/v1/sandboxes/{box.id}/terminal") as link:
        link.send(first)
        if then is not None:
            assert "started" in json.loads(link.recv())
            link.send(then)
        told = json.loads(link.recv())
        assert told["error"]["code"].startswith("invalid"), told


def test_a_stopping_service_ends_what_is_followed_and_the_sandbox_runs_on(node: Node, home: Path) -> None:
    begun, ended = threading.Event(), threading.Event()
    process, service = start(Cli(home))
    with Client(service.url, retries=0) as client:
        box = client.run(("sleep", "1000"), name="box")

        def run() -> None:
            with contextlib.suppress(ThawboxError):  # whatever it hears, it must hear something
                box.commands.run("echo here; exec sleep 5432", on_stdout=lambda _: begun.set())
            ended.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(60)
        process.terminate()
        assert ended.wait(60), "the caller hangs"
        thread.join()
    assert process.wait(60) == 0
    assert process.stdout is not None
    process.stdout.close()
    wait_for(lambda: not runs(node, "sleep 5432"), "the command is gone")
    assert node.sandbox("box").state.value == "running"


def test_a_stopping_service_waits_for_a_command_whose_outcome_is_awaited_and_takes_no_other_on(home: Path) -> None:
    serving = Serving(home).start()
    try:
        with Client(f"unix:{home}/serve.sock", retries=0) as client, ThreadPoolExecutor() as threads:
            box = client.run(("sleep", "1000"), name="box")
            waiting = "touch /tmp/begun; until [ -e /tmp/go ]; do sleep 0.05; done; echo done"
            running = threads.submit(box.commands.run, waiting)
            wait_for(lambda: box.files.exists("/tmp/begun"), "the command has begun")
            os.kill(serving.pid, signal.SIGTERM)
            wait_for(lambda: not client.is_ready(), "the service is stopping")
            with pytest.raises(Unavailable):
                box.commands.run("true")
            box.files.write("/tmp/go", "")
            assert running.result().stdout == "done\n"
            assert serving.process is not None
            assert serving.process.wait(60) == 0
    finally:
        serving.close()


def test_a_command_that_outlasts_the_drain_is_told_why_it_was_ended(home: Path) -> None:
    serving = Serving(home, ("--drain-timeout", "1")).start()
    try:
        with Client(f"unix:{home}/serve.sock", retries=0) as client, ThreadPoolExecutor() as threads:
            box = client.run(("sleep", "1000"), name="box")
            running = threads.submit(box.commands.run, "touch /tmp/begun; exec sleep 1000")
            wait_for(lambda: box.files.exists("/tmp/begun"), "the command has begun")
            assert serving.end() == 0
            with pytest.raises(CommandInterrupted, match="the service stopped"):
                running.result()
    finally:
        serving.close()
