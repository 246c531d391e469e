"""`exec`: streams, status, terminal, signals, and what a checkpoint does to it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

import pytest

from cli_process import COUNTING, TIMEOUT, Cli


@pytest.fixture
def cli(open_node: object, home: Path) -> Cli:
    """The command on a home with one sandbox called `box`."""
    command = Cli(home)
    command.run("--name", "box")
    return command


def test_streams_and_status_are_the_commands_own(cli: Cli) -> None:
    done = cli("exec", "box", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.status, done.out, done.err) == (42, b"out\n", b"err\n")
    assert cli("exec", "box", "sh", "-c", "kill -9 $$").status == 137
    missing = cli("exec", "box", "no-such-program")
    assert (missing.status, b"no-such-program" in missing.err) == (127, True)
    assert cli("exec", "box", "/etc").status == 126
    refused = cli("exec", "--json", "box", "no-such-program")
    assert (refused.status, refused.error()["code"]) == (127, "exec.refused")
    assert "no-such-program" in refused.error()["cause"]


def test_options_reach_the_command(cli: Cli) -> None:
    done = cli("exec", "-u", "nobody", "-w", "/tmp", "-e", "A=b c", "box", "sh", "-c", 'echo "$(id -un) $PWD $A"')
    assert done.out == b"nobody /tmp b c\n"
    assert cli("exec", "box", "--", "echo", "--json").out == b"--json\n"
    assert cli("exec", "box", "echo", "-t").out == b"-t\n"


def test_input_of_any_size_goes_in_and_comes_out_as_it_is(cli: Cli) -> None:
    content = os.urandom(5_000_000)
    assert cli("exec", "-i", "box", "cat", stdin=content).out == content
    digest = cli("exec", "-i", "box", "sha256sum", stdin=content).out.split()[0].decode()
    assert digest == hashlib.sha256(content).hexdigest()
    assert cli("exec", "box", "cat", stdin=b"unheard").out == b"", "without -i there is no input"


def test_output_goes_on_through_checkpoints_with_nothing_lost(cli: Cli) -> None:
    running = cli.start("exec", "box", "sh", "-c", COUNTING.replace(">&2", ">/dev/null"), stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    assert running.stdout.readline() == b"out 1\n"
    for _ in range(3):
        assert cli("checkpoint", "box").status == 0
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=TIMEOUT)
    numbers = [1, *(int(line.split()[1]) for line in out.splitlines())]
    assert numbers == list(range(1, len(numbers) + 1)), err
    assert len(numbers) > 3
    assert running.returncode == 130


def test_a_stopped_sandbox_interrupts_its_commands_and_they_say_so(cli: Cli) -> None:
    command = ("box", "sh", "-c", "echo here; sleep 1000")
    running = [cli.start("exec", *given, *command, stdin=subprocess.DEVNULL) for given in ((), ("--json",))]
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == b"here\n"
    cli("stop", "-t", "0", "box")
    for one in running:
        _, err = one.communicate(timeout=TIMEOUT)
        assert one.returncode in (110, 137)
        assert one.returncode == 137 or b"interrupted" in err
    assert one.returncode == 137 or json.loads(err)["error"]["code"] == "exec.interrupted"


def test_a_signal_is_passed_on_and_the_command_decides(cli: Cli) -> None:
    trap = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    running = cli.start("exec", "box", "sh", "-c", trap, stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, out) == (9, b"got it\n")


def test_a_second_signal_ends_exec_whatever_the_command_does(cli: Cli) -> None:
    deaf = "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"
    running = cli.start("exec", "box", "sh", "-c", deaf, stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGINT)
    assert running.stdout.readline() == b"no\n"
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130


def test_a_reader_that_goes_away_takes_the_command_along(cli: Cli) -> None:
    with cli.start("exec", "box", "yes", "unheard-of", stdin=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(timeout=TIMEOUT) == 141
    assert cli("exec", "box", "pgrep", "yes").status == 1, "it runs on with nobody to read it"


def test_detached_it_belongs_to_the_sandbox_and_its_snapshots(cli: Cli) -> None:
    assert cli("exec", "--detach", "--json", "box", "sh", "-c", "echo from afar; exec sleep 987").json()["session"] > 0
    cli("checkpoint", "box", "--name", "with", "--stop")
    cli("restore", "with")
    assert cli("exec", "box", "pgrep", "-f", "sleep 987").status == 0
    assert b"from afar" in cli("logs", "box").out
    assert cli("exec", "-d", "-t", "box", "sh").status == 102


def test_a_frozen_sandbox_is_waited_for_and_two_signals_end_the_waiting(cli: Cli) -> None:
    counting = COUNTING.replace(">&2", ">/dev/null")
    running = cli.start("exec", "box", "sh", "-c", counting, stdin=subprocess.DEVNULL)
    waiting = cli.start("exec", "box", "sh", "-c", counting, stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    assert waiting.stdout is not None
    assert running.stdout.readline() == waiting.stdout.readline() == b"out 1\n"
    assert cli("freeze", "box").status == 0
    waiting.send_signal(signal.SIGINT)
    while waiting.poll() is None:  # two at once may arrive as one
        waiting.send_signal(signal.SIGTERM)
        os.sched_yield()
    waiting.communicate(timeout=TIMEOUT)
    assert waiting.returncode in (143, -signal.SIGTERM), "one more may find it when it is leaving already"
    assert cli("thaw", "box").status == 0
    assert running.stdout.readline() == b"out 2\n"
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130


class _Terminal:
    """A terminal with `exec -it` in it; a context manager that leaves neither behind."""

    def __init__(self, cli: Cli, *command: str) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 100))
        self.before = termios.tcgetattr(self.slave)
        self.process = cli.start(
            "exec", "-it", "box", *command,
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def end(self) -> int:
        """The exit status, once the terminal is as it was."""
        status = self.process.wait(timeout=TIMEOUT)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not as it was"
        return status


def test_a_shell_on_a_terminal_is_a_shell_on_a_terminal(cli: Cli) -> None:
    with _Terminal(cli, "sh") as terminal:
        terminal.type(b"stty size; echo term=$TERM\n")
        terminal.wait_for(b"30 100")
        terminal.wait_for(b"term=" + os.environ.get("TERM", "xterm").encode())
        terminal.type(b"sh -c 'echo be\"\"gun; exec sleep 1000'\n")
        terminal.wait_for(b"begun")
        terminal.type(b"\x03")  # Ctrl-C is a key for the terminal inside
        terminal.type(b'echo sl""ept=$?\n')
        terminal.wait_for(b"slept=130")
        termios.tcsetwinsize(terminal.slave, (40, 120))
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.type(b"while ! stty size | grep 40; do :; done\n")
        terminal.wait_for(b"40 120")
        terminal.type(b"exit 5\n")
        assert terminal.end() == 5


def test_the_terminal_is_put_back_when_the_sandbox_stops_under_it(cli: Cli) -> None:
    with _Terminal(cli, "sh", "-c", "echo here; sleep 1000") as terminal:
        terminal.wait_for(b"here")
        cli("rm", "-f", "box")
        assert terminal.end() in (110, 137)


def test_the_terminal_is_put_back_when_exec_is_told_to_end(cli: Cli) -> None:
    with _Terminal(cli, "sh", "-c", "trap 'echo no' TERM; echo here; while :; do sleep 0.05; done") as terminal:
        terminal.wait_for(b"here")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.wait_for(b"no")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
