"""Recovery after `kill -9`, beside a cold start. Writes docs/benchmarks/recovery.{md,csv}.

Run as root: `python bench/recovery.py [--rounds 50] [--seed 1] [--out docs/benchmarks]`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import machine_facts, markdown, run_rounds, summarise, write_samples
from thawbox.bench.machine import load
from thawbox.bench.recovery import ANSWERS, COLD, SPARE_ANSWERS, Recoveries, requirements
from thawbox.config import load_settings
from thawbox.node import Node

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    options = parser.parse_args()
    facts = machine_facts()
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home")))
        undo.callback(node.tidy)
        recoveries = undo.enter_context(Recoveries(node))
        scenarios = recoveries.scenarios()
        clocks = {row: clock for one in scenarios for row, clock in one.rows.items()}
        samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed))
    summaries = summarise(samples)
    facts["load at the end"] = load()
    ratio, spare = (summaries[row].p50 / summaries[COLD].p50 for row in (ANSWERS, SPARE_ANSWERS))
    report = markdown(
        "Recovery, beside a cold start",
        command=f"bench/recovery.py --rounds {options.rounds} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks=clocks, requirements=requirements(summaries),
        notes=(
            f"A recovery takes {ratio:.2f} times what a cold start takes (p50), with a spare {spare:.2f} times, and it "
            "brings back the memory that a cold start has not: `proven` counts the agents that named their nonce and "
            "the digest of all their bytes.",
            "A spare is the memory of the newest snapshot, held ready: the restore shares it, copy on write. "
            "Raw samples: recovery.csv.",
        ),
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "recovery.csv", samples)
    (options.out / "recovery.md").write_text(report)
    print(report)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
