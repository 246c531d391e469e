"""The main job, again and again on the same sandbox: checkpoint, kill, restore, and nothing has changed."""

from __future__ import annotations

import os
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roads import on_both_roads
from thawbox.host.init_client import Completed, ExecSession, Output
from thawbox.host.init_wire import Terminal
from thawbox.host.proc import wait_gone
from thawbox.model import Mount, Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from views import View, assert_same, host_pid, seen_while_frozen

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]

Ask = Callable[..., dict[str, Any]]
Tree = dict[int, View]
STOPPED = "cmd:cat /proc/[0-9]*/status | grep -q 'T (stopped)'"
LISTENS, TIME_WAIT = "0A", "06"
PACKAGES = sysconfig.get_path("purelib")


def kill(sandbox: Sandbox, *, politely: bool) -> None:
    """End a sandbox by our own word, or as a crash would."""
    if politely:
        sandbox.stop(timeout=0)
        return
    record = sandbox.record
    os.kill(record.keeper_pid, signal.SIGKILL)
    assert wait_gone(record.keeper_pid, started=record.keeper_started, timeout=30)
    assert sandbox.state is Phase.LOST


def round_trip(
    node: Node, sandbox: Sandbox, number: int, *, at_rest: dict[str, Any] | None = None,
    busy: Callable[[], bool] = lambda: False,
) -> tuple[Tree, Tree]:  # fmt: skip
    """One checkpoint → kill → restore, each of the ways in turn; what was seen of the tree before and after.

    Nobody looks while it is `busy`.
    """
    wait_while(busy)
    before = seen_while_frozen(node, sandbox, at_rest=at_rest)
    if number % 3 == 2:
        sandbox.freeze()
    snapshot = sandbox.checkpoint(stop=number % 3 == 1)
    if number % 3 != 1:
        kill(sandbox, politely=number % 3 == 2)
    snapshot.restore()
    assert sandbox.state is Phase.RUNNING
    wait_while(busy)
    return before, seen_while_frozen(node, sandbox, at_rest=at_rest)


def wait_while(busy: Callable[[], bool]) -> None:
    while busy():
        time.sleep(0.001)


def rounds(
    node: Node, sandbox: Sandbox, ask: Ask, count: int, *, own_memory: bool = True
) -> Iterator[dict[str, object]]:
    """Grow, go through a round trip, compare, see that everything moves on; yields what was kept."""
    for number in range(count):
        grown = ask(sandbox, "grow")
        before, after = round_trip(node, sandbox, number, at_rest=grown["at_rest"])
        assert_same(before, after, own_memory=own_memory)
        restored = ask(sandbox)
        assert restored["kept"] == grown["kept"]
        assert not [name for name, value in grown["moving"].items() if restored["moving"][name] < value]
        ask(sandbox, "move")
        yield restored["kept"]


def test_a_python_agent_goes_on_through_50_rounds(node: Node, workload: Callable[..., Sandbox], ask: Ask) -> None:
    sandbox = workload("python3", "agent.py", "4", env={"AGENT": "007", "PYTHONDONTWRITEBYTECODE": "1"})
    begun = ask(sandbox)["kept"]
    seen = list(rounds(node, sandbox, ask, 50))
    assert {kept["nonce"] for kept in seen} == {begun["nonce"]}
    assert [kept["chunks"] for kept in seen] == [begun["chunks"] + number for number in range(1, 51)]
    assert len({kept["memory"] for kept in seen}) == 50
    assert begun["environment"]["AGENT"] == "007"


def test_a_node_agent_goes_on_through_50_rounds(node: Node, workload: Callable[..., Sandbox], ask: Ask) -> None:
    sandbox = workload("node", "agent.js", env={"AGENT": "007"})
    begun = ask(sandbox)["kept"]
    seen = list(rounds(node, sandbox, ask, 50, own_memory=False))
    assert {kept["nonce"] for kept in seen} == {begun["nonce"]}
    assert [kept["chunks"] for kept in seen] == [begun["chunks"] + number for number in range(1, 51)]
    assert len({kept["memory"] for kept in seen}) == 50


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("python3", "threads64.py"), id="64 threads"),
        pytest.param(("python3", "sqlite_transaction.py", "delete"), id="sqlite with a rollback journal"),
        pytest.param(("python3", "sqlite_transaction.py", "wal"), id="sqlite with a write-ahead log"),
        pytest.param(("python3", "deep_tree.py"), id="a tree five deep with zombies"),
        pytest.param(("python3", "terminal.py"), id="bash on a pty of python's"),
        pytest.param(("python3", "zoo.py"), id="one of everything"),
    ],
)
def test_what_a_program_holds_goes_on_through_8_rounds(
    node: Node, workload: Callable[..., Sandbox], ask: Ask, command: tuple[str, ...]
) -> None:
    assert len(list(rounds(node, workload(*command), ask, 8))) == 8


@on_both_roads
def test_a_frozen_sandbox_with_a_stopped_process_is_frozen_after_its_checkpoint(node: Node) -> None:
    sandbox = node.run(Spec(("sh", "-c", "sleep 1000 & kill -STOP $!; wait"), ready=STOPPED))
    sandbox.freeze()
    for stop in (False, True):
        snapshot = sandbox.checkpoint(stop=stop)
        clone = snapshot.clone()
        assert clone.run("sh", "-c", "cat /proc/[0-9]*/status | grep -c 'T (stopped)'").stdout == b"1\n"
        if not stop:
            assert sandbox.state is Phase.FROZEN
            assert node.context.cgroup(sandbox.id).is_frozen()


def test_a_stopped_process_is_stopped_after_a_restore_and_goes_on_when_told(node: Node) -> None:
    sandbox = node.run(Spec(("sh", "-c", "sleep 1000 & kill -STOP $!; wait"), ready=STOPPED))
    sandbox.checkpoint(stop=True).restore()
    assert sandbox.run("sh", "-c", "cat /proc/[0-9]*/status | grep -c 'T (stopped)'").stdout == b"1\n"
    sandbox.run("sh", "-c", "kill -CONT $(grep -l 'T (stopped)' /proc/[0-9]*/status | cut -d / -f 3)")
    assert sandbox.run("sh", "-c", "cat /proc/[0-9]*/status | grep -c 'T (stopped)'").stdout == b"0\n"


def test_a_file_with_two_names_is_one_file_after_every_restore(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity"), workdir="/tmp"))
    sandbox.run("sh", "-c", "echo one > first; ln first second")
    for word in ("two", "three", "four"):
        sandbox.checkpoint(stop=True).restore()
        sandbox.run("sh", "-c", f"echo {word} > first")
        seen = sandbox.run("sh", "-c", "cat first second; stat -c %h first")
        sandbox.checkpoint(stop=True).restore()
        again = sandbox.run("sh", "-c", "cat first second; stat -c %h first")
        assert again == seen


def test_programs_started_after_a_restore_are_there_after_the_next(node: Node) -> None:
    """They have pids where criu's own processes would like to have theirs."""
    sandbox = node.run(Spec(("sleep", "infinity")))
    for _ in range(3):
        sandbox.checkpoint(stop=True).restore()
        for _ in range(5):
            sandbox.exec(["sleep", "1000"], detach=True)
    before = {pid: view.command for pid, view in seen_while_frozen(node, sandbox).items()}
    sandbox.checkpoint(stop=True).restore()
    assert {pid: view.command for pid, view in seen_while_frozen(node, sandbox).items()} == before
    assert len(before) == 2 + 15


def test_a_server_of_several_processes_goes_on_through_8_rounds(
    node: Node, workload: Callable[..., Sandbox], fetch: Callable[[Sandbox], dict[str, object]]
) -> None:
    sandbox = workload(
        "python3", "-m", "uvicorn", "served:app", "--workers", "2", "--port", "8000", "--log-level", "warning",
        ready="http://127.0.0.1:8000/", mounts=(Mount(PACKAGES, "/opt/packages", read_only=True),),
        env={"PYTHONPATH": "/opt/packages:/workloads", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip

    def both_workers() -> dict[object, dict[str, object]]:
        found: dict[object, dict[str, object]] = {}
        while len(found) < 2:
            answer = fetch(sandbox)
            found[answer["nonce"]] = answer
        return found

    last = both_workers()
    for number in range(8):
        seen = round_trip(node, sandbox, number, busy=lambda: has_connections(sandbox, port=8000))
        assert_same(*seen, own_memory=False)
        now = both_workers()
        assert {nonce: answer["pid"] for nonce, answer in now.items()} == {
            nonce: answer["pid"] for nonce, answer in last.items()
        }
        assert all(now[nonce]["answered"] > last[nonce]["answered"] for nonce in last)
        last = now


def has_connections(sandbox: Sandbox, *, port: int) -> bool:
    """Whether the server has yet to close one; what waits for the end of its time alone is nobody's descriptor."""
    rows = [line.split() for line in Path(f"/proc/{sandbox.record.keeper_pid}/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] not in (LISTENS, TIME_WAIT) for row in rows)


HOLD = """
rm -f /tmp/held; touch /tmp/hold
until [ -s /tmp/held ] && [ "$(tail -n 1 /var/log/numbers)" = "$(cat /tmp/held)" ]; do sleep 0.01; done
until [ "$(tail -n 1 /tmp/copy)" = "number $(cat /tmp/held)" ]; do sleep 0.01; done
cat /tmp/held
"""


def hold_pipeline(sandbox: Sandbox) -> None:
    """Have it stand still, with every number where it belongs."""
    held = sandbox.run("sh", "-c", HOLD)
    assert isinstance(held, Completed)
    written = b" number " + held.stdout
    wait_while(lambda: not b"".join(record.content for record in sandbox.logs()).endswith(written))


def test_a_shell_pipeline_loses_and_repeats_nothing_in_8_rounds(node: Node, workload: Callable[..., Sandbox]) -> None:
    sandbox = workload("sh", "pipeline.sh", ready="log:number 1")
    seen = 0
    for number in range(8):
        for record in sandbox.logs(follow=True):
            *_, newest = record.content.split()
            if int(newest) > seen + 10:
                break
        seen = int(newest)
        hold_pipeline(sandbox)
        assert_same(*round_trip(node, sandbox, number))
        sandbox.run("sh", "-c", "rm /tmp/hold; echo >/tmp/gate")
    for record in sandbox.logs(follow=True):
        if int(record.content.split()[-1]) > seen + 10:
            break
    sandbox.freeze()
    lines = b"".join(record.content for record in sandbox.logs()).decode().splitlines()
    assert len({line.split()[0] for line in lines}) == 1
    assert [int(line.split()[2]) for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > seen


def test_a_terminal_session_is_the_same_session_after_8_rounds(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity")))
    session = sandbox.exec(["bash", "--norc", "--noprofile", "-i"], terminal=Terminal(24, 80), stdin=True)
    assert isinstance(session, ExecSession)
    with session:
        answered_by_terminal(session, "stty -echo; nonce=$RANDOM$RANDOM; sleep 1000 & cd /tmp")
        begun = answered_by_terminal(session, "echo $nonce $$ $(tty) $(jobs -p) $PWD")
        assert len(begun.split()) == 5
        bash = int(begun.split()[1])
        for number in range(8):
            grown = answered_by_terminal(session, "grown=$grown$RANDOM; cd $(mktemp -d); echo $grown $PWD")
            assert_same(*round_trip(node, sandbox, number, busy=lambda: is_awake(node, sandbox, bash)))
            assert answered_by_terminal(session, "echo $grown $PWD; cd /tmp") == grown
            assert answered_by_terminal(session, "echo $nonce $$ $(tty) $(jobs -p) $PWD") == begun


def is_awake(node: Node, sandbox: Sandbox, inner: int) -> bool:
    """Whether it does something: a shell that has answered waits for the next line alone."""
    stat = Path(f"/proc/{host_pid(node, sandbox, inner)}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "S"


def answered_by_terminal(session: ExecSession, line: str) -> str:
    """What bash prints for a command, between two words that the echo of the command does not hold."""
    first, last = os.urandom(8).hex(), os.urandom(8).hex()
    quoted = [f"{word[:8]}''{word[8:]}" for word in (first, last)]
    text = f"echo {quoted[0]}; {line}; echo {quoted[1]}\n".encode()
    offered, seen = 0, b""
    while last.encode() not in seen:
        offered += session.offer_stdin(text[offered:])
        for event in session.poll(30):
            assert isinstance(event, Output), event
            seen += event.content
    return seen.decode().partition(first)[2].partition(last)[0].strip()


def test_the_packages_that_the_server_needs_are_where_the_tests_look() -> None:
    assert (Path(PACKAGES) / "uvicorn").is_dir()
