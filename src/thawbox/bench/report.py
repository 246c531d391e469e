"""What a run says: a Markdown report with every requirement met or not, and the raw samples as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thawbox.bench.samples import Sample, Summary


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something promised: `what`, at most `limit`, and what was `measured`; both in `unit`."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        return self.measured <= self.limit


def markdown(
    title: str,
    *,
    command: str,
    facts: Mapping[str, str],
    summaries: Mapping[str, Summary],
    clocks: Mapping[str, str],
    requirements: Sequence[Requirement],
    notes: Iterable[str] = (),
) -> str:
    """The whole report. `clocks` says of each row what was measured, and in which order rows are shown."""
    parts = [
        f"# {title}",
        "",
        f"Made by `{command}`. Milliseconds; every row was measured in the same run, interleaved.",
    ]
    parts += ["", "## Required", "", *_requirement_table(requirements)]
    parts += ["", "## Measured", "", *_summary_table([summaries[row] for row in clocks if row in summaries])]
    parts += ["", "## What each clock covers", ""]
    parts += [f"* **{row}**: {clock}" for row, clock in clocks.items() if row in summaries]
    parts += ["", "## The machine", "", *(f"* {name}: {fact}" for name, fact in facts.items())]
    if noted := list(notes):
        parts += ["", "## Notes", "", *(f"* {note}" for note in noted)]
    return "\n".join(parts) + "\n"


def _requirement_table(requirements: Sequence[Requirement]) -> list[str]:
    lines = ["| what | measured | at most | |", "|---|--:|--:|---|"]
    for one in requirements:
        unit = f" {one.unit}" if one.unit else ""
        verdict = "met" if one.met else "**not met**"
        lines.append(f"| {one.what} | {one.measured:.2f}{unit} | {one.limit:.2f}{unit} | {verdict} |")
    return lines


def _summary_table(summaries: Sequence[Summary]) -> list[str]:
    lines = ["| | n | p50 | p95 | p99 | least | most | proven |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in summaries:
        proven = f"{row.proven} of {row.n}" if row.proven else ""
        numbers = " | ".join(f"{value:.1f}" for value in (row.p50, row.p95, row.p99, row.least, row.most))
        lines.append(f"| {row.row} | {row.n} | {numbers} | {proven} |")
    return lines


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Every sample as a line of CSV: row, round, value, proof. For people and plots, not for the machine's safety."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("row", "round", "value", "proof"))
        lines.writerows((one.row, one.round, f"{one.value:.3f}", one.proof) for one in samples)
