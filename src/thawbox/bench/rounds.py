"""Interleaving: every scenario once per round, in a new random order, so that a slow minute meets them all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thawbox.bench.samples import Sample


@dataclass(frozen=True, slots=True)
class Timed:
    """One row's outcome of one measurement; see `Sample`."""

    row: str
    value: float
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something to measure. `measure` does its own setting up and clearing away, outside the clock.

    `rows` says of each row that `measure` gives what its clock covers.
    """

    name: str
    rows: dict[str, str]
    measure: Callable[[], Sequence[Timed]]


def run_rounds(
    scenarios: Sequence[Scenario], *, rounds: int, rng: random.Random, warmups: int = 1,
    progress: Callable[[int, str], None] | None = None,
) -> list[Sample]:  # fmt: skip
    """Measure every scenario `rounds` times, after `warmups` rounds that are thrown away.

    `progress` is told the round (negative while warming up) and the scenario that comes next.
    Raises ValueError when a scenario gives a row that it does not name, or not all of those it names.
    """
    samples: list[Sample] = []
    for number in range(-warmups, rounds):
        for scenario in rng.sample(scenarios, len(scenarios)):
            if progress is not None:
                progress(number, scenario.name)
            measured = scenario.measure()
            if {timed.row for timed in measured} != set(scenario.rows):
                raise ValueError(f"{scenario.name} measured {sorted(timed.row for timed in measured)}")
            if number >= 0:
                samples += [Sample(timed.row, number, timed.value, timed.proof) for timed in measured]
    return samples
