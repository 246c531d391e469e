"""Recovery: an agent is killed, and answers again. Every one is proven by its nonce and the digest of its memory."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from thawbox.bench import agent
from thawbox.bench.report import Requirement
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Summary
from thawbox.host.proc import children
from thawbox.model import Health, Spec
from thawbox.node import Node
from thawbox.restart_plan import Policy
from thawbox.sandbox import Sandbox
from thawbox.supervisor import Event, Supervisor

MIB = 64
ANSWERS = "killed → answers again"
HEALTHY = "killed → healthy, by the supervisor's clock"
DETECT = "of that: until it was noticed"
RESTORE = "of that: the restore"
SPARE_ANSWERS = "with a spare: killed → answers again"
SPARE_HEALTHY = "with a spare: killed → healthy"
SPARE_RESTORE = "with a spare: the restore"
COLD = "cold start → answers"
_PROBE = Health("cmd:true", interval=3600)
"""Healthy is what answers a command: the tcp port is listening as soon as the tree is restored."""


class Recoveries:
    """Supervised agents, one of them with a spare, that are killed again and again. A context manager."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._supervisor = undo.enter_context(Supervisor(self._node.context, tell=self._events.put))
            self._plain, self._plain_original = self._supervised(undo, spare=False)
            self._spared, self._spared_original = self._supervised(undo, spare=True)
            self._until("spare.ready")
            self._undo = undo.pop_all()
        return self

    def _supervised(self, undo: ExitStack, *, spare: bool) -> tuple[Sandbox, agent.Answer]:
        sandbox = undo.enter_context(self._node.run(Spec(agent.command(MIB))))
        agent.ask(sandbox.record.keeper_pid)
        original = agent.ask(sandbox.record.keeper_pid, whole=True)
        self._supervisor.supervise(sandbox, Policy(health=_PROBE, settled_after=0, spare=spare))
        return sandbox, original

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _until(self, what: str) -> Event:
        while (event := self._events.get(timeout=60)).what != what:
            if event.what in ("recover.failed", "recover.gave_up"):
                raise AssertionError(f"not recovered: {event}")
        return event

    def scenarios(self) -> list[Scenario]:
        return [
            Scenario("recovery", {
                ANSWERS: "`kill -9` of the main program, until it answered over its own socket",
                HEALTHY: "the death as init wrote it down, until the health probe (a command) had succeeded",
                DETECT: "the death, until the supervisor's thread was told of it by the kernel",
                RESTORE: "the call of `restore`, until the tree ran",
            }, self._recover),
            Scenario("recovery with a spare", {
                SPARE_ANSWERS: "the same, the snapshot's memory being held ready",
                SPARE_HEALTHY: "the same, by the supervisor's clock",
                SPARE_RESTORE: "of that: the call of `restore`, until the tree ran",
            }, self._recover_spared),
            Scenario("cold start", {
                COLD: "the call of `run` for the same agent, until it answered over its own socket",
            }, self._start_cold),
        ]  # fmt: skip

    def _recover(self) -> Sequence[Timed]:
        answer_ms, told, proof = self._killed(self._plain, self._plain_original)
        return (
            Timed(ANSWERS, answer_ms, proof), Timed(HEALTHY, _number(told, "healthy_ms"), proof),
            Timed(DETECT, _number(told, "detect_ms")), Timed(RESTORE, _number(told, "restore_ms"), proof),
        )  # fmt: skip

    def _recover_spared(self) -> Sequence[Timed]:
        answer_ms, told, proof = self._killed(self._spared, self._spared_original)
        return (
            Timed(SPARE_ANSWERS, answer_ms, proof), Timed(SPARE_HEALTHY, _number(told, "healthy_ms"), proof),
            Timed(SPARE_RESTORE, _number(told, "restore_ms"), proof),
        )  # fmt: skip

    def _killed(self, sandbox: Sandbox, original: agent.Answer) -> tuple[float, Mapping[str, object], str]:
        """Kill the main program; milliseconds until it answered, what the supervisor said of it, and the proof."""
        (init,) = children(sandbox.record.keeper_pid)
        (program,) = children(init)
        begun = time.perf_counter()
        os.kill(program, signal.SIGKILL)
        told = self._until("recover.complete").details
        keeper = sandbox.record.keeper_pid
        agent.ask(keeper)
        answer_ms = (time.perf_counter() - begun) * 1000
        proof = agent.prove(keeper, original)
        self._until("supervise.watching")
        return answer_ms, told, proof

    def _start_cold(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        with self._node.run(Spec(agent.command(MIB))) as sandbox:
            agent.ask(sandbox.record.keeper_pid)
            return (Timed(COLD, (time.perf_counter() - begun) * 1000),)


def _number(told: Mapping[str, object], name: str) -> float:
    value = told[name]
    assert isinstance(value, float)  # noqa: S101 - an attempt's figures are floats
    return value


def requirements(found: Mapping[str, Summary]) -> list[Requirement]:
    """What recoveries are held to."""
    return [
        Requirement(f"{ANSWERS}, {MIB} MiB, no spare (p50)", found[ANSWERS].p50, 250, "ms"),
        Requirement(f"{HEALTHY}, {MIB} MiB, no spare (p50)", found[HEALTHY].p50, 250, "ms"),
        Requirement(f"{HEALTHY}, {MIB} MiB, no spare (p99)", found[HEALTHY].p99, 500, "ms"),
        Requirement(f"{SPARE_HEALTHY}, {MIB} MiB (p50)", found[SPARE_HEALTHY].p50, 50, "ms"),
    ]
