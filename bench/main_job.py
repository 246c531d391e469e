"""The main job beside bare criu: create, checkpoint, restore, clone. Writes docs/benchmarks/main-job.{md,csv}.

Run as root: `python bench/main_job.py [--rounds 20] [--seed 1] [--only WORD …] [--quiet 2] [--out docs/benchmarks]
[--json]`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import Requirement, machine_facts, markdown, run_rounds, summarise, write_samples
from thawbox.bench.machine import load, wait_quiet
from thawbox.bench.main_job import MainJob, requirements, snapshot_sizes
from thawbox.config import load_settings
from thawbox.node import Node

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--only", nargs="*", help="scenarios to run; then no report is written")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds to wait for idle cores, before each")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was made goes on every way out
    facts, quiet = machine_facts(), list[bool]()

    def before_each(number: int, name: str) -> None:
        say(number, name)
        quiet.append(wait_quiet(timeout=options.quiet))

    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home")))
        undo.callback(node.tidy)
        job = undo.enter_context(MainJob(node, scratch))
        scenarios = [one for one in job.scenarios() if not options.only or one.name in options.only]
        clocks = {row: clock for one in scenarios for row, clock in one.rows.items()}
        samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed), progress=before_each)
        sizes = {} if options.only else snapshot_sizes(node)
    print(file=sys.stderr)
    summaries = summarise(samples)
    if options.only:
        for row in summaries.values():
            print(f"{row.row:45} n={row.n} p50={row.p50:.1f} p95={row.p95:.1f} least={row.least:.1f}")
        return
    bars = requirements(summaries, sizes)
    facts["load at the end"] = load()
    facts["quiet"] = f"{sum(quiet)} of {len(quiet)} measurements began with idle cores"
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "main-job.csv", samples)
    report = markdown(
        "The main job, beside bare criu", command=f"bench/main_job.py --rounds {options.rounds} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks=clocks, requirements=bars, notes=NOTES,
    )  # fmt: skip
    (options.out / "main-job.md").write_text(report)
    print(as_json(bars) if options.json else report)


NOTES = (
    "`proven`: the agent named the nonce that it made in memory before it was frozen, its counter had gone on, and the "
    "SHA-256 of its whole memory was the same (asked after the clock had stopped).",
    "Bare criu is upstream's, of the same release, built and called the same way, without our patches, its feature "
    "cache warm. Its row with namespaces ready is the floor: nothing but criu is in its clock. `unshare + criu` is "
    "what a person would type.",
    "Raw samples: main-job.csv. Percentiles are interpolated linearly; with 20 samples p99 is close to the worst.",
)


def say(number: int, name: str) -> None:
    if sys.stderr.isatty():
        print(f"\rround {number:3} {name:20}", end="", file=sys.stderr, flush=True)


def as_json(bars: list[Requirement]) -> str:
    return json.dumps(
        [{"what": one.what, "measured": one.measured, "limit": one.limit, "met": one.met} for one in bars]
    )


if __name__ == "__main__":
    main()
