"""One run: every contender at every workload, interleaved, and what came of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.bench.bare_criu import upstream
from thawbox.bench.machine import wait_quiet
from thawbox.bench.peers import workloads
from thawbox.bench.peers.contender import CHECKPOINT, COLD, RESTORE, Contender, Measured
from thawbox.bench.peers.ours import ACQUIRE, CLONE, Bare, Fork, Thawbox
from thawbox.bench.peers.runtimes import Bubblewrap, Crun, Podman, Runc, Runsc
from thawbox.bench.rounds import Scenario, Timed, run_rounds
from thawbox.bench.samples import Sample
from thawbox.engines.criu import CriuEngine
from thawbox.errors import ThawboxError, Unsupported
from thawbox.node import Node

RESTORES = frozenset({RESTORE, CLONE, ACQUIRE})
"""The verbs whose samples must be proven by the nonce of the program that was frozen."""


@dataclass
class Outcome:
    """Samples of rows `workload · contender · verb`, each row's clock, and why some contenders are missing."""

    samples: list[Sample] = field(default_factory=list[Sample])
    clocks: dict[str, str] = field(default_factory=dict[str, str])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    quiet: list[bool] = field(default_factory=list[bool])
    failures: list[str] = field(default_factory=list[str])
    """Measurements of peers that failed and were done again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `rounds` by workload; `runsc` is gVisor's program where there is one."""

    workloads: tuple[tuple[workloads.Workload, int], ...]
    seed: int = 1
    patience: float = 2.0
    runsc: Path | None = None
    verbs: frozenset[str] = frozenset({RESTORE, CLONE, ACQUIRE, CHECKPOINT, COLD, "fork"})


def row_of(workload: str, contender: str, verb: str) -> str:
    return f"{workload} · {contender} · {verb}"


def run_plan(
    node: Node,
    scratch: Path,
    plan: Plan,
    *,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _most: None,
) -> Outcome:
    """Run everything. One workload after the other, all its contenders interleaved.

    `progress` is told the workload, measurements done, and all there will be.
    Raises AssertionError when a restored program is not the one that was frozen.
    """
    outcome = Outcome()
    rng = random.Random(plan.seed)  # noqa: S311 - an order, no secret
    for number, (workload, rounds) in enumerate(plan.workloads):
        directory = scratch / str(number)  # short: podman takes no path of more than 50 characters
        directory.mkdir()
        with ExitStack() as undo:
            contenders = _contenders(workload, node, directory, plan=plan, outcome=outcome, undo=undo)
            scenarios = [
                scenario_of(workload, one, verb, outcome)
                for one in contenders for verb in one.clocks if verb in plan.verbs
            ]  # fmt: skip
            most = len(scenarios) * (rounds + 1)
            steps = itertools.count()

            def before_each(number: int, name: str, of: str = workload.name, most: int = most) -> None:
                progress(f"{of}: {name}", next(steps), most)  # noqa: B023 - called within this turn of the loop alone
                if number >= 0:
                    outcome.quiet.append(wait_quiet(timeout=plan.patience))

            outcome.samples += run_rounds(scenarios, rounds=rounds, rng=rng, progress=before_each)
    return outcome


def _contenders(
    workload: workloads.Workload, node: Node, directory: Path, *, plan: Plan, outcome: Outcome, undo: ExitStack
) -> Sequence[Contender]:
    engine = node.context.engine
    if not isinstance(engine, CriuEngine):
        raise Unsupported("this node's engine is not criu")
    theirs = undo.enter_context(upstream(engine.program))
    criu = theirs.binary
    ours = Thawbox(workload, node)
    undo.callback(ours.close)
    found: list[Contender] = [ours, Bare(ours, workload, node, directory, program=theirs)]
    if workload.beats:
        found.append(Fork(ours))
    else:
        for name in ("fork()", "bubblewrap", "gVisor runsc"):
            outcome.missing[f"{name}: {workload.name}"] = "it writes no heartbeat, by which these are known to run"
    makers: dict[str, Callable[[], Contender]] = {
        "runc": lambda: Runc(workload, directory, criu=criu),
        "podman": lambda: Podman(workload, directory, criu=criu),
        "crun": lambda: Crun(workload, directory),
    }
    if workload.beats:
        makers["bubblewrap"] = lambda: Bubblewrap(workload, directory)
    if plan.runsc is None:
        outcome.missing["gVisor runsc"] = "no runsc on this host; `scripts/setup-peers` installs it"
    elif workload.beats:
        runsc = plan.runsc
        makers["gVisor runsc"] = lambda: Runsc(workload, directory, program=runsc)
    for name, make in makers.items():
        try:
            one = make()
        except ThawboxError as error:
            outcome.missing[name] = error.cause.replace(f"{directory}/", "")
            continue
        undo.callback(one.close)
        found.append(one)
    return found


def scenario_of(workload: workloads.Workload, contender: Contender, verb: str, outcome: Outcome) -> Scenario:
    """One verb of one contender; measuring it raises AssertionError where a cold start passes for a restore."""
    row = row_of(workload.name, contender.name, verb)
    outcome.clocks[row] = contender.clocks[verb]

    def measure() -> Sequence[Timed]:
        measured = _measured(contender, verb, outcome)
        if verb in RESTORES and measured.nonce != contender.nonce:
            raise AssertionError(f"{row}: not a restore: {contender.nonce} became {measured.nonce or 'another'}")
        if verb == COLD and measured.nonce == contender.nonce:
            raise AssertionError(f"{row}: not a cold start")
        return (Timed(row, measured.ms, measured.nonce if verb in RESTORES else ""),)

    return Scenario(f"{contender.name}, {verb}", {row: contender.clocks[verb]}, measure)


_TRIES = 4


def _measured(contender: Contender, verb: str, outcome: Outcome) -> Measured:
    """One measurement. A peer that fails now and then is asked again, and the report counts how often it failed."""
    tries_left = 0 if isinstance(contender, Thawbox) else _TRIES - 1
    while True:
        try:
            return contender.measure(verb)
        except ThawboxError as error:
            if not tries_left:
                raise
            tries_left -= 1
            outcome.failures.append(f"{contender.name}, {verb}: {error.cause}")
