#!/usr/bin/env python3
"""The golden agent, cold, restored, acquired and forked, in one interleaved run.

Run as root: `scripts/benchmark_boot.py [--samples 20] [--json]`. The clock of every row runs from the call until the
first right answer of POST /ask. Writes docs/benchmarks/boot.{md,csv,svg,png}; with --json prints
{"ratios": {"restore", "acquire", "fork"}, "cold_ms": {…}, "restore_ms", "acquire_ms", "fork_ms", "proofs"}.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "agent"))

from app.matrix.files import read_manifest
from build_matrix import ROWS, build
from golden import MATRIX, golden_spec
from thawbox.bench import Sample, Summary, machine_facts, markdown, run_rounds, summarise, write_samples
from thawbox.bench.boot import ACQUIRE, COLD, FORK, GOAL, RESTORE, Boot, Question, as_object, ratios, requirements
from thawbox.bench.machine import load, wait_quiet
from thawbox.config import load_settings
from thawbox.node import Node

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="of each row; at least 20 for a report")
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the Matrix; fewer are for a quick look alone")
    parser.add_argument("--matrix", type=Path, help="directory of the Matrix; made if it is not there")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds to wait for idle cores, before each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="directory of the report")
    parser.add_argument("--json", action="store_true", help="print an object instead of the report")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was made goes on every way out

    matrix: Path = options.matrix or (MATRIX if options.rows == ROWS else MATRIX.with_name(f"matrix-{options.rows}"))
    build(matrix, rows=options.rows)
    manifest = read_manifest(matrix)
    facts, quiet = machine_facts(), list[bool]()

    def before_each(number: int, name: str) -> None:
        if sys.stderr.isatty():
            print(f"\rround {number:3} {name:20}", end="", file=sys.stderr, flush=True)
        quiet.append(wait_quiet(timeout=options.quiet))

    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home")))
        undo.callback(node.tidy)
        questions = [Question(probe.question, probe.answer) for probe in manifest.probes]
        boot = undo.enter_context(Boot(node, golden_spec(matrix), questions))
        scenarios = boot.scenarios()
        rng = random.Random(options.seed)
        samples = run_rounds(scenarios, rounds=options.samples, rng=rng, progress=before_each)
    found = summarise(samples)
    facts |= {
        "Matrix": f"{manifest.rows:,} by {manifest.dimensions} float32, digest {manifest.digest[:12]}",
        "load at the end": load(),
        "quiet": f"{sum(quiet)} of {len(quiet)} measurements began with idle cores",
    }
    clocks = {row: clock for one in scenarios for row, clock in one.rows.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "boot.csv", samples)
    plot(options.out, samples, found)
    report = _report(options, facts=facts, found=found, clocks=clocks)
    (options.out / "boot.md").write_text(report)
    print(json.dumps(as_object(samples, found), indent=2) if options.json else report)


def _report(
    options: argparse.Namespace, *, facts: Mapping[str, str], found: Mapping[str, Summary], clocks: Mapping[str, str]
) -> str:
    faster = ratios(found)
    proven = {row: f"{found[row].proven} of {found[row].n}" for row in faster}
    reached = "reached" if faster[RESTORE] >= GOAL else "not reached"
    notes = (
        f"Times faster than a cold start, by medians: restore {faster[RESTORE]:.1f} (the goal of {GOAL} is "
        f"{reached}), acquire {faster[ACQUIRE]:.0f}, fork {faster[FORK]:.1f}.",
        "An answer is right if it is the passage that the Matrix's builder wrote for that question; the questions "
        "take turns. A wrong one ends the run.",
        "`proven`: the agent named the nonce that its original made in memory, and the answer was the next turn of its "
        f"conversation (restore {proven[RESTORE]}, acquire {proven[ACQUIRE]}, fork {proven[FORK]}). Of a cold start "
        "the contrary was checked: a nonce not seen before, and turn 1.",
        "Setting up and clearing away (stopping, removing, parking the next clone) is outside every clock.",
        "The readiness probe of a cold start looks every 50 ms at the longest: that is the error of its row.",
        "Raw samples: boot.csv. Percentiles are interpolated linearly; with 20 samples p99 is close to the worst.",
    )
    written = markdown(
        "Booting the golden agent", command=f"scripts/benchmark_boot.py --samples {options.samples}",
        facts=facts, summaries=found, clocks=clocks, requirements=requirements(found), notes=notes,
    )  # fmt: skip
    return written.replace("\n## Measured\n", "\n![every sample, by row](boot.svg)\n\n## Measured\n", 1)


def plot(out: Path, samples: Sequence[Sample], found: Mapping[str, Summary]) -> None:
    """Every sample as a dot over a logarithmic axis, with medians: boot.svg and boot.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "thawbox", "font.family": "DejaVu Sans", "svg.fonttype": "none"})
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    rows = (COLD, RESTORE, FORK, ACQUIRE)
    colours = {COLD: "#8a94a0", RESTORE: "#0f6b6b", FORK: "#7a5ba8", ACQUIRE: "#b4552d"}
    figure, axes = pyplot.subplots(figsize=(8.6, 3.4), layout="constrained")
    rng = random.Random(0)
    for place, row in enumerate(rows):
        values = [sample.value for sample in samples if sample.row == row]
        middle, height = found[row].p50, len(rows) - 1 - place
        scatter = [height + rng.uniform(-0.16, 0.16) for _ in values]
        axes.scatter(values, scatter, s=20, color=colours[row], alpha=0.45, linewidths=0)
        axes.plot([middle, middle], [height - 0.27, height + 0.27], color=colours[row], linewidth=2.4)
        faster = "" if row == COLD else f"  {found[COLD].p50 / middle:,.0f} times faster"
        axes.text(middle, height + 0.33, f"{_span(middle)}{faster}", ha="center", fontsize=9.5, color=colours[row])
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), reversed(rows))
    axes.set_ylim(-0.5, len(rows) - 0.25)
    axes.set_xlim(min(one.least for one in found.values()) / 2.2, max(one.most for one in found.values()) * 2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _span(value)))
    axes.set_xlabel("from the call to the first right answer, each dot one sample, the bar the median", fontsize=9)
    axes.grid(axis="x", color="#d9dde1", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("The golden agent, brought up in four ways", loc="left", fontsize=12, fontweight="bold")
    figure.savefig(out / "boot.svg", metadata={"Date": None})
    figure.savefig(out / "boot.png", dpi=160)
    pyplot.close(figure)


def _span(ms: float) -> str:
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


if __name__ == "__main__":
    main()
