"""Samples and what is said of many: n, p50, p95, p99. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: `row` names what was measured, `value` is in the row's unit (milliseconds, or bytes).

    `proof` is how a restored process showed that it was one: the nonce that exists in its memory only. It is empty
    for what restores nothing.
    """

    row: str
    round: int
    value: float
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the tail of one row, in the row's unit."""

    row: str
    n: int
    p50: float
    p95: float
    p99: float
    least: float
    most: float
    proven: int


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of them lie, interpolated linearly between neighbours, as numpy does.

    Raises ValueError when there are none.
    """
    if not values:
        raise ValueError("no values have no percentile")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(samples: Iterable[Sample]) -> dict[str, Summary]:
    """A summary for each row, in the order in which the rows first appear."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.row, []).append(sample)
    return {row: _summary(row, found) for row, found in rows.items()}


def _summary(row: str, found: list[Sample]) -> Summary:
    values = [sample.value for sample in found]
    p50, p95, p99 = (percentile(values, percent) for percent in (50, 95, 99))
    proven = sum(1 for sample in found if sample.proof)
    return Summary(row, len(found), p50, p95, p99, min(values), max(values), proven)
