"""How long a checkpoint freezes a sandbox, against the memory it has: short freezes, plain ones, bare criu.

Run as root: `python bench/freezes.py [--rounds 7] [--sizes 64,128,256,512,1024,2048] [--seed 1] [--out DIRECTORY]`.
For each size one sandbox, whose program writes its memory all the time, is dumped in the three ways by turns. Writes
freezes.md, freezes.csv, and freezes.svg and freezes.png, the plot.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import (
    Requirement,
    Sample,
    Scenario,
    Summary,
    Timed,
    machine_facts,
    markdown,
    run_rounds,
    summarise,
    write_samples,
)
from thawbox.bench.bare_criu import BareCriu, upstream
from thawbox.config import load_settings
from thawbox.engines import Freeze, Place
from thawbox.engines.criu import CriuEngine, CriuProgram
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from thawbox.sandbox.checkpointing import Mode

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
SIZES = (64, 128, 256, 512, 1024, 2048)
BAR_SIZE, BAR, GOAL = 512, 0.2, 0.06

SHORT, PLAIN, BARE = "short", "plain", "bare criu"
_FROZEN = {
    SHORT: "frozen by `checkpoint`, memory read from copies: CRIU's own count, from its first stop to its last thaw",
    PLAIN: "frozen by `checkpoint` with THAWBOX_SHORT_FREEZES=false: the same count",
    BARE: "frozen by `criu dump --leave-running` of the same sandbox: the same count",
}

SOURCE = """
import os, socket, sys, threading
size = int(sys.argv[1]) << 20
memory = bytearray(os.urandom(1 << 20)) * int(sys.argv[1])
def write():
    turn = 0
    while True:
        turn += 1
        for at in range(turn % 4096, size, 4096 * 64):
            memory[at] = turn & 255
threading.Thread(target=write, daemon=True).start()
listener = socket.create_server(("127.0.0.1", 8000))
while True:
    listener.accept()[0].close()
"""


class Freezes:
    """One sandbox of `mib` MiB, and the three ways to dump it."""

    def __init__(
        self, node: Node, plain: Node, sandbox: Sandbox, mib: int, scratch: Path, *, peer: CriuProgram
    ) -> None:  # fmt: skip
        self.mib = mib
        self._node, self._plain, self._sandbox, self._scratch = node, plain, sandbox, scratch
        self._bare = BareCriu(peer, scratch)

    def row(self, way: str, what: str = "frozen") -> str:
        return f"{self.mib} MiB, {way}: {what}"

    def measure_short(self) -> Sequence[Timed]:
        return self._checkpoint(self._node, SHORT, Freeze.COW)

    def measure_plain(self) -> Sequence[Timed]:
        return self._checkpoint(self._plain, PLAIN, Freeze.PLAIN)

    def _checkpoint(self, node: Node, way: str, wanted: Freeze) -> Sequence[Timed]:
        snapshot = node.sandbox(self._sandbox.id).checkpoint(mode=Mode.FULL)
        report = snapshot.report
        assert report is not None
        assert report.freeze is wanted, report.why_plain
        node.context.store.remove(snapshot.id)
        return [Timed(self.row(way), report.frozen_ms), Timed(self.row(way, "durable"), report.total_ms)]

    def measure_bare(self) -> Sequence[Timed]:
        images = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            self._bare.dump(Place(self._sandbox.record.keeper_pid), images, while_stopped=lambda: None)
        finally:
            shutil.rmtree(images)
        last = self._bare.last
        return [Timed(self.row(BARE), last.frozen_ms), Timed(self.row(BARE, "durable"), last.whole_ms)]

    def scenarios(self) -> list[Scenario]:
        durable = "from the call until the snapshot was durable (bare criu: until it ended; nothing is flushed)"
        ways = {SHORT: self.measure_short, PLAIN: self.measure_plain, BARE: self.measure_bare}
        return [
            Scenario(way, {self.row(way): _FROZEN[way], self.row(way, "durable"): durable}, measure)
            for way, measure in ways.items()
        ]


def measure(
    sizes: Sequence[int], *, rounds: int, rng: random.Random, scratch: Path
) -> tuple[list[Sample], dict[str, str]]:
    """Every sample of every size, and what the clock of each row covers."""
    samples: list[Sample] = []
    clocks: dict[str, str] = {}
    with ExitStack() as undo:
        home = scratch / "home"
        node = undo.enter_context(Node(load_settings(home=home)))
        plain = undo.enter_context(Node(load_settings(home=home, short_freezes=False)))
        undo.callback(node.tidy)
        engine = node.context.engine
        assert isinstance(engine, CriuEngine)
        peer = undo.enter_context(upstream(engine.program))
        for mib in sizes:
            with node.run(Spec(("python3", "-c", SOURCE, str(mib)), ready="tcp:8000", ready_timeout=120)) as sandbox:
                scenarios = Freezes(node, plain, sandbox, mib, scratch, peer=peer).scenarios()
                clocks.update({row: clock for one in scenarios for row, clock in one.rows.items()})
                samples += run_rounds(scenarios, rounds=rounds, rng=rng, progress=lambda n, way, m=mib: say(n, m, way))
    return samples, clocks


def requirements(found: Mapping[str, Summary]) -> list[Requirement]:
    short, bare = (found.get(f"{BAR_SIZE} MiB, {way}: frozen") for way in (SHORT, BARE))
    if short is None or bare is None:
        return []
    ratio = short.p50 / bare.p50
    what = f"frozen time at {BAR_SIZE} MiB, to bare criu dump"
    return [Requirement(what, ratio, BAR, "x"), Requirement(f"{what} (goal)", ratio, GOAL, "x")]


def plot(found: Mapping[str, Summary], sizes: Sequence[int], out: Path) -> None:
    """Medians against size, both axes logarithmic; the bars reach from the least to the most."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "thawbox"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for way, marker in ((BARE, "s"), (PLAIN, "^"), (SHORT, "o")):
        rows = [found[f"{mib} MiB, {way}: frozen"] for mib in sizes]
        middle = [row.p50 for row in rows]
        reach = [[row.p50 - row.least for row in rows], [row.most - row.p50 for row in rows]]
        axes.errorbar(sizes, middle, yerr=reach, marker=marker, capsize=3, label=way)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(mib) for mib in sizes])
    axes.set_xlabel("resident memory, MiB")
    axes.set_ylabel("frozen, ms")
    axes.set_title("How long a checkpoint freezes a sandbox")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "freezes.svg", metadata={"Date": None})
    figure.savefig(out / "freezes.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="MiB, separated by commas")
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    options = parser.parse_args()
    sizes = [int(word) for word in options.sizes.split(",")]
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="thawbox-bench-") as directory:
        samples, clocks = measure(
            sizes, rounds=options.rounds, rng=random.Random(options.seed), scratch=Path(directory)
        )
    print(file=sys.stderr)
    summaries = summarise(samples)
    report = markdown(
        "Frozen time against memory",
        command=f"bench/freezes.py --rounds {options.rounds} --sizes {options.sizes} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks=clocks, requirements=requirements(summaries), notes=NOTES,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "freezes.csv", samples)
    plot(summaries, sizes, options.out)
    (options.out / "freezes.md").write_text(report + "\n![frozen time against memory](freezes.svg)\n")
    print(report)


NOTES = (
    "Every size has a sandbox of its own; its three rows are interleaved in one run, those of different sizes are not.",
    "Bare criu is upstream's, of the same release, without our patches.",
    "The program writes its memory all the time, so it pays for copied pages while its copies are read.",
)


def say(number: int, mib: int, way: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{mib:5} MiB, round {number:3} {way:12}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
