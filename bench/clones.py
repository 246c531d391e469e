"""Clones that share a template's memory, beside bare criu. Writes docs/benchmarks/clones.{md,csv,svg,png}.

Run as root: `python bench/clones.py [--rounds 15] [--seed 1] [--only WORD …] [--quiet 2] [--out docs/benchmarks]`.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import machine_facts, markdown, phases, run_rounds, summarise, write_samples
from thawbox.bench.clones import Clones, requirements
from thawbox.bench.machine import load, wait_quiet
from thawbox.bench.recovery import SPARE_HEALTHY, Recoveries
from thawbox.bench.report import Requirement
from thawbox.config import load_settings
from thawbox.node import Node

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--only", nargs="*", help="scenarios to run; then no report is written")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds to wait for idle cores, before each")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was made goes on every way out
    facts, quiet = machine_facts(), list[bool]()

    def before_each(number: int, name: str) -> None:
        if sys.stderr.isatty():
            print(f"\rround {number:3} {name:40}", end="", file=sys.stderr, flush=True)
        quiet.append(wait_quiet(timeout=options.quiet))

    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        settings = load_settings(home=scratch / "home")
        node = undo.enter_context(Node(settings))
        undo.callback(node.tidy)
        told = undo.enter_context(phases.Phases(settings))
        clones = undo.enter_context(Clones(node, scratch))
        recoveries = undo.enter_context(Recoveries(node))
        scenarios = [*clones.scenarios(), *told.scenarios(), recoveries.scenarios()[1]]
        scenarios = [one for one in scenarios if not options.only or one.name in options.only]
        clocks = {row: clock for one in scenarios for row, clock in one.rows.items()}
        samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed), progress=before_each)
    print(file=sys.stderr)
    summaries = summarise(samples)
    if options.only:
        for row in summaries.values():
            print(f"{row.row:60} n={row.n} p50={row.p50:.2f} p95={row.p95:.2f} least={row.least:.2f}")
        return
    facts["load at the end"] = load()
    facts["quiet"] = f"{sum(quiet)} of {len(quiet)} measurements began with idle cores"
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "clones.csv", samples)
    parts = {row for road in phases.ROADS for row in clocks if row.startswith(f"{road} · ")}
    report = markdown(
        "Clones that share a template's memory, beside bare criu",
        command=f"bench/clones.py --rounds {options.rounds} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks={row: clock for row, clock in clocks.items() if row not in parts},
        requirements=[
            *requirements(summaries),
            Requirement(f"{SPARE_HEALTHY}, 64 MiB", summaries[SPARE_HEALTHY].p50, 60, "ms"),
        ],
        notes=NOTES,
    )  # fmt: skip
    report += f"\n## Where the milliseconds go\n\n![clones](clones.svg)\n\n{phases.table(summaries)}\n"
    (options.out / "clones.md").write_text(report)
    phases.plot(summaries, options.out / "clones")
    print(report)


NOTES = (
    "Rows that begin with `MiB:` are MiB, not milliseconds.",
    "`proven`: the agent named the nonce that it made in memory before it was frozen, its counter had gone on, and the "
    "SHA-256 of its whole memory was the same (asked after the clock had stopped).",
    "A clone has its own namespaces, cgroups, overlays, identity and network; bare criu (upstream's, of "
    "the same release, without our patches) has nothing in its clock but the criu command and the answer.",
    "The parts of a clone are told by a node with an observer, for which CRIU stops at each phase: their sum is more "
    "than a clone costs without. Sums of medians are not exact.",
)


if __name__ == "__main__":
    main()
