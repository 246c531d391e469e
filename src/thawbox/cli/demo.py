"""`thawbox demo`: the main job on a live agent, told in a table that a stranger understands."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.output import human_ms, human_size, json_option, print_json

if TYPE_CHECKING:
    from thawbox.node import Node
    from thawbox.sandbox import CheckpointReport, Sandbox, Snapshot

_PORT = 8000
_MEGABYTES = 64
_WORDS = 5
_CLONES = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table: what was done, the milliseconds it took (None: nobody waits for it), and what was seen."""

    name: str
    ms: float | None
    seen: str


@dataclass(slots=True)
class _Story:
    """The steps so far; told as they happen unless they are wanted as JSON in the end."""

    quiet: bool
    steps: list[Step] = field(default_factory=list[Step])

    def add(self, name: str, ms: float | None, seen: str) -> None:
        if not self.quiet and not self.steps:
            click.echo(click.style(f"{'WHAT':16} {'TOOK':>8}   WHAT WAS SEEN", bold=True))
        self.steps.append(Step(name.strip(), None if ms is None else round(ms, 3), seen))
        if not self.quiet:
            click.echo(f"{name:16} {'' if ms is None else human_ms(ms):>8}   {seen}")


@click.command("demo", short_help="Freeze, kill, restore and clone a live agent, and show that it goes on.")
@json_option
def demo_command(as_json: bool) -> None:
    """Start an agent that says a sentence word by word; checkpoint it in the middle; kill it; restore it; clone it.

    The agent is a Python program with 64 MiB of state, an open file, a listening socket, a child process and a
    background thread. It must go on with the next word, with a nonce that it made in memory and told no file. All
    of it happens in a directory of its own; nothing is left behind.

    With --json: {"ok", "steps": [{"name", "ms", "seen"}], "checkpoint", "clones": [{"name", "host", "words"}]}.
    """
    from thawbox.cli.scratch import scratch_node
    from thawbox.config import load_settings

    story = _Story(quiet=as_json)
    with scratch_node(load_settings()) as node:
        agent, before = _started(node, story)
        snapshot, report = _checkpointed(agent, story)
        _killed(agent, story)
        _restored(snapshot, before, story)
        clones = _cloned(snapshot, before, story)
    if as_json:
        made: dict[str, object] = {"id": report.id, "frozen_ms": report.frozen_ms, "bytes": report.bytes}
        steps = [asdict(step) for step in story.steps]
        print_json({"ok": True, "steps": steps, "checkpoint": made, "clones": clones})
    else:
        click.echo(
            "\nNothing is left behind. The same by hand: thawbox run, checkpoint, restore, clone; thawbox --help"
        )


def _started(node: Node, story: _Story) -> tuple[Sandbox, dict[str, Any]]:
    from thawbox.host.rootfs import resolve
    from thawbox.model import Spec

    begun = time.perf_counter()
    resolve("SYSTEM", node.context.rootfs_cache)
    story.add("prepare", (time.perf_counter() - begun) * 1000, "what sandboxes see as /: this host's /usr; made once")
    program = Path(__file__).with_name("demo_agent.py").read_text()
    spec = Spec(("python3", "-c", program, str(_MEGABYTES)), name="agent", ready=f"tcp:{_PORT}")
    begun = time.perf_counter()
    agent, create_ms = node.run_timed(spec)
    ready_ms = (time.perf_counter() - begun) * 1000
    story.add("run", create_ms, f"a sandbox: own files, network and limits; ready after {human_ms(ready_ms)}")
    begun = time.perf_counter()
    sentence = _words(agent, _WORDS)
    story.add("talk", (time.perf_counter() - begun) * 1000, f"the agent says: {sentence} …")
    return agent, _ask(agent, "facts")


def _checkpointed(agent: Sandbox, story: _Story) -> tuple[Snapshot, CheckpointReport]:
    snapshot = agent.checkpoint(name="mid-sentence")
    report = snapshot.report
    assert report is not None  # noqa: S101 - a snapshot just made has one
    seen = f"frozen for {human_ms(report.frozen_ms)} of it, {human_size(report.bytes)}; the agent runs on"
    story.add("checkpoint", report.total_ms, seen)
    return snapshot, report


def _killed(agent: Sandbox, story: _Story) -> None:
    from thawbox.host.proc import send_signal, wait_gone

    record = agent.record
    begun = time.perf_counter()
    send_signal(record.keeper_pid, signal.SIGKILL, started=record.keeper_started)
    wait_gone(record.keeper_pid, started=record.keeper_started, timeout=10)
    story.add(
        "kill -9", (time.perf_counter() - begun) * 1000, f"no process is left; the sandbox is {agent.state.value}"
    )


def _restored(snapshot: Snapshot, before: dict[str, Any], story: _Story) -> None:
    begun = time.perf_counter()
    agent, _ = snapshot.restore()
    first = _ask(agent, "word")
    ms = (time.perf_counter() - begun) * 1000
    story.add("restore", ms, f"and answered: {first['word']} {_words(agent, _WORDS - 1)} …")
    after = _ask(agent, "facts")
    _expect(after, before, first)
    seen = f"nonce {after['nonce']}, {_MEGABYTES} MiB of memory, open file, child, thread: as they were"
    story.add("compare", None, seen)


def _cloned(snapshot: Snapshot, before: dict[str, Any], story: _Story) -> list[dict[str, object]]:
    begun = time.perf_counter()
    clones = snapshot.clones(_CLONES)
    firsts = [_ask(clone, "word") for clone in clones]
    ms = (time.perf_counter() - begun) * 1000
    story.add(f"clone -n {_CLONES}", ms, "all answered, each in the middle of the sentence, beside the restored one")
    told: list[dict[str, object]] = []
    for number, (clone, first) in enumerate(zip(clones, firsts, strict=True)):
        words = f"{first['word']} {_words(clone, 1 + 2 * number)}"
        facts = _ask(clone, "facts")
        _expect(facts, before, first)
        story.add(f"  {clone.name}", None, f"host {facts['host']}, a life of its own: {words} …")
        told.append({"name": clone.name, "host": facts["host"], "words": words})
    if len({str(one["host"]) for one in told}) != _CLONES:
        raise _not_a_restore("two clones have one host name")
    return told


def _ask(sandbox: Sandbox, question: str) -> dict[str, Any]:
    with sandbox.connect(_PORT) as connection:
        connection.sendall(question.encode())
        parts: list[bytes] = []
        while part := connection.recv(4096):
            parts.append(part)
    answer: dict[str, Any] = json.loads(b"".join(parts))
    return answer


def _words(sandbox: Sandbox, count: int) -> str:
    return " ".join(str(_ask(sandbox, "word")["word"]) for _ in range(count))


def _expect(facts: dict[str, Any], before: dict[str, Any], first: dict[str, Any]) -> None:
    """What must be equal is equal, and what must have gone on has."""
    differing = [key for key in ("nonce", "memory") if facts[key] != before[key]]
    if first["asked"] != _WORDS + 1 or first["child"] != _WORDS + 1:
        differing.append("the place in the sentence")
    if facts["notes"] <= before["notes"] or facts["ticks"] < before["ticks"]:
        differing.append("what should have grown")
    if differing:
        raise _not_a_restore(f"after the restore {_listed(differing)} differed")


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _not_a_restore(cause: str) -> Exception:
    from thawbox.errors import RestoreFailed

    return RestoreFailed(cause, remediation="a defect of thawbox: report it with what `thawbox doctor --json` says")
