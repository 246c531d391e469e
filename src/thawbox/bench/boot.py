"""The boot benchmark: a program that is slow to start, cold, restored, acquired from a pool and forked, in one run.

Every row's clock runs from the call until the first answer that is right, to a question whose answer is known. What was
brought back proves it: it names the nonce that its original made in memory, and goes on with the same conversation.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from thawbox.bench.report import Requirement
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Sample, Summary
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.sandbox import Sandbox

COLD, RESTORE, ACQUIRE, FORK = "cold start", "snapshot restore", "parked acquire", "fork"
LIMITS = {RESTORE: 1 / 7, ACQUIRE: 1 / 100}
"""What each may take at most, as a share of a cold start."""
GOAL = 15
_PORT = 8000
_TALK = 3
"""Questions that are asked before anything is frozen."""


class Question(NamedTuple):
    """A question, and the only answer to it that is right."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Memory:
    """What an original has that nothing but its memory holds."""

    nonce: str
    turns: int


class WrongAnswer(AssertionError):
    """The agent answered, and not what is known to be right: nothing is measured then."""


class Boot:
    """A golden snapshot, a pool and a running original of one spec; a context manager that leaves nothing behind."""

    def __init__(self, node: Node, spec: Spec, questions: Sequence[Question]) -> None:
        self._node = node
        self._spec = spec
        self._questions: Iterator[Question] = itertools.cycle(questions)
        with ExitStack() as undo:
            self._running = undo.enter_context(node.run(replace(spec, name="running")))
            self._of_running = self._talked_to(self._running)
            self._away = undo.enter_context(node.run(replace(spec, name="away")))
            self._of_away = self._talked_to(self._away)
            self._snapshot = self._away.checkpoint(stop=True, when_ready=True)
            node.create_template("golden", replace(spec, name=""))
            node.create_pool(PoolSpec("golden", "golden", low=1, high=1, limit=2))
            self._pool: Pool = undo.enter_context(node.open_pool("golden"))
            undo.callback(self._pool.drain, timeout=0)
            with self._pool.acquire(timeout=300) as parked:
                self._of_golden = replace(self._talk(parked), turns=0)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def scenarios(self) -> list[Scenario]:
        """What is interleaved, with each row's clock in words."""
        return [
            Scenario("cold", {
                COLD: "the call of `run`: a sandbox is made, the program imports its packages, reads, checks, "
                      "normalises and indexes its Matrix, and says that it is ready; then `POST /ask`, until the right "
                      "answer has come. Its files are in the page cache",
            }, self._cold),
            Scenario("restore", {
                RESTORE: "the call of `restore` of a sandbox of which no process is left, whose snapshot is on this "
                         "node's disk (and in the page cache), hooks and readiness included; then as above",
            }, self._restore),
            Scenario("acquire", {
                ACQUIRE: "the call of `acquire`, a clone being parked; then as above. Parking it again is outside",
            }, self._acquire),
            Scenario("fork", {
                FORK: "the call of `fork` of a running agent: a checkpoint until its snapshot is durable and listed, "
                      "and a clone of it; then `POST /ask` to the clone, as above",
            }, self._fork),
        ]  # fmt: skip

    def _cold(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        with self._node.run(replace(self._spec, name="")) as sandbox:
            said = self._first_answer(sandbox)
            passed = time.perf_counter() - begun
        known = {self._of_away.nonce, self._of_running.nonce, self._of_golden.nonce}
        if said["nonce"] in known or said["turn"] != 1:
            raise WrongAnswer("a restored agent passed for one that was started")
        return (Timed(COLD, passed * 1000),)

    def _restore(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        sandbox, _ = self._snapshot.restore()
        said = self._first_answer(sandbox)
        passed = time.perf_counter() - begun
        sandbox.stop(timeout=0)
        return (Timed(RESTORE, passed * 1000, _proof(said, self._of_away)),)

    def _acquire(self) -> Sequence[Timed]:
        self._until_parked()
        begun = time.perf_counter()
        lease = self._pool.acquire(timeout=300)
        said = self._first_answer(lease.sandbox)
        passed = time.perf_counter() - begun
        lease.release()
        self._until_parked()
        return (Timed(ACQUIRE, passed * 1000, _proof(said, self._of_golden)),)

    def _fork(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        (clone,) = self._running.fork()
        with clone:
            said = self._first_answer(clone)
            passed = time.perf_counter() - begun
        return (Timed(FORK, passed * 1000, _proof(said, self._of_running)),)

    def _first_answer(self, sandbox: Sandbox) -> dict[str, Any]:
        asked = next(self._questions)
        said = _ask(sandbox, asked.question)
        if said["answer"] != asked.answer:
            raise WrongAnswer(f"{asked.question!r} was answered with {said['answer']!r}")
        return said

    def _talk(self, sandbox: Sandbox) -> _Memory:
        said = self._first_answer(sandbox)
        return _Memory(str(said["nonce"]), int(said["turn"]))

    def _talked_to(self, sandbox: Sandbox) -> _Memory:
        return [self._talk(sandbox) for _ in range(_TALK)][-1]

    def _until_parked(self) -> None:
        """Wait until the pool is full and nothing of it is under way: its refill is not what is measured."""
        while (now := self._pool.statistics()).parked < now.target or now.restoring or now.ending or now.leased:
            time.sleep(0.01)


def _ask(sandbox: Sandbox, question: str) -> dict[str, Any]:
    """One question over one new connection, as a caller that has just got the sandbox would ask it."""
    connection = http.client.HTTPConnection("127.0.0.1", _PORT)
    with contextlib.closing(connection):
        connection.sock = sandbox.connect(_PORT, timeout=60)
        connection.request("POST", "/ask", json.dumps({"question": question}), {"content-type": "application/json"})
        answer = connection.getresponse()
        said: dict[str, Any] = json.loads(answer.read())
    if answer.status != 200:
        raise WrongAnswer(f"{question!r} was answered with status {answer.status}: {said}")
    return said


def _proof(said: Mapping[str, Any], memory: _Memory) -> str:
    """The nonce, where it and the conversation are the original's; else WrongAnswer: no cold start passes for more."""
    if said["nonce"] != memory.nonce or said["turn"] != memory.turns + 1:
        raise WrongAnswer(f"not brought back: nonce {said['nonce']} and turn {said['turn']} against {memory}")
    return str(said["nonce"])


def ratios(found: Mapping[str, Summary]) -> dict[str, float]:
    """How many times faster than a cold start each row is, by medians."""
    return {row: found[COLD].p50 / found[row].p50 for row in (RESTORE, ACQUIRE, FORK)}


def requirements(found: Mapping[str, Summary]) -> list[Requirement]:
    """The bars, as shares of a cold start, in percent."""
    return [
        Requirement(f"{row}, share of a cold start ({1 / limit:.0f} times faster)", share, 100 * limit, "%")
        for row, limit in LIMITS.items()
        for share in (100 / ratios(found)[row],)
    ]


def as_object(samples: Sequence[Sample], found: Mapping[str, Summary]) -> dict[str, object]:
    """What `--json` prints: medians' ratios, the spread of each row in milliseconds, and how many are proven."""
    keys = {COLD: "cold", RESTORE: "restore", ACQUIRE: "acquire", FORK: "fork"}

    def spread(row: Summary) -> dict[str, float]:
        return {name: round(getattr(row, name), 3) for name in ("n", "p50", "p95", "p99", "least", "most")}

    def proofs(row: str) -> dict[str, object]:
        nonces = {sample.proof for sample in samples if sample.row == row}
        return {"proven": found[row].proven, "of": found[row].n, "nonces": sorted(nonces)}

    return {
        "ratios": {keys[row]: round(ratio, 2) for row, ratio in ratios(found).items()},
        **{f"{key}_ms": spread(found[row]) for row, key in keys.items()},
        "proofs": {keys[row]: proofs(row) for row in (RESTORE, ACQUIRE, FORK)},
    }
