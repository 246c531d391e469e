"""Snapshots of a 512 MiB sandbox with 64 MiB of random state: sizes, frozen times, chains. Writes docs/benchmarks/.

Run as root: `python bench/snapshots.py [--rounds 20] [--seed 1] [--out docs/benchmarks]`.
The peer of a delta is a full dump of the same sandbox in the same run, that of a chain its flattened equal.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import (
    Requirement,
    Scenario,
    Timed,
    machine_facts,
    markdown,
    run_rounds,
    summarise,
    write_samples,
)
from thawbox.bench.machine import wait_quiet
from thawbox.config import load_settings
from thawbox.engines.criu_delta import make_delta
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox, Snapshot
from thawbox.sandbox.checkpointing import Mode

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
STATE_MIB, CHANGED_MIB, LINKS = 64, 5, 8

SOURCE = """
import json, os, random, socket, sys
memory = bytearray(os.urandom(int(sys.argv[1]) << 20))
nonce = os.urandom(16).hex()
pages = len(memory) // 4096
listener = socket.create_server(("127.0.0.1", 8000))
while True:
    caller, _ = listener.accept()
    with caller:
        word = caller.recv(16).decode()
        for page in random.sample(range(pages), int(word or 0)):
            memory[page * 4096 + 7] = (memory[page * 4096 + 7] + 1) % 256
        resident = [line for line in open("/proc/self/smaps_rollup") if line.startswith("Rss")][0]
        caller.sendall(json.dumps({"nonce": nonce, "resident": int(resident.split()[1]) * 1024}).encode())
"""


def said(sandbox: Sandbox, word: str = "0") -> dict[str, object]:
    with sandbox.connect(8000, timeout=60) as connection:
        connection.sendall(word.encode())
        found: dict[str, object] = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    return found


def change(sandbox: Sandbox) -> None:
    said(sandbox, str((CHANGED_MIB << 20) // 4096))


CHAIN, FLAT = f"restore from the files, chain of {LINKS}", "restore from the files, flattened"
HELD_CHAIN, HELD_FLAT = f"clone, memory held ready, chain of {LINKS}", "clone, memory held ready, flattened"
QUIET = 2.0
"""Seconds to wait for idle cores, before each."""


class Snapshots:
    """The sandbox under measurement, a chain of its snapshots, and the chain's flattened equal."""

    def __init__(self, node: Node, scratch: Path) -> None:
        self.node, self.scratch = node, scratch
        command = ("python3", "-c", SOURCE, str(STATE_MIB))
        self.sandbox = node.run(Spec(command, memory=512 << 20, ready="tcp:8000"))
        first = said(self.sandbox)
        self.nonce, self.resident = str(first["nonce"]), int(str(first["resident"]))
        self.chain = [self.checkpoint(Mode.AUTO) for _ in range(LINKS)]
        self.flat = self.chain[-1].flatten()
        self.full_bytes = self.chain[0].stored.bytes
        self.delta_bytes = [link.stored.bytes for link in self.chain[1:]]

    def checkpoint(self, mode: Mode) -> Snapshot:
        change(self.sandbox)
        return self.sandbox.checkpoint(mode=mode)

    def measure_full(self) -> Sequence[Timed]:
        return self._after_a_full_one(Mode.FULL, "full")

    def measure_delta(self) -> Sequence[Timed]:
        return self._after_a_full_one(Mode.DELTA, "delta")

    def _after_a_full_one(self, mode: Mode, kind: str) -> Sequence[Timed]:
        """What a delta needs, the other kind has before it as well: the machine is in the same state."""
        base = self.checkpoint(Mode.FULL)
        wait_quiet(timeout=QUIET)
        snapshot = self.checkpoint(mode)
        report = snapshot.report
        assert report is not None
        self.node.context.store.remove(snapshot.id)
        self.node.context.store.remove(base.id)
        return [Timed(f"{kind}: frozen", report.frozen_ms), Timed(f"{kind}: durable", report.total_ms)]

    def measure_comparison(self) -> Sequence[Timed]:
        """`make_delta` on a fresh full dump against the base, in the page cache."""
        base, fresh = self.checkpoint(Mode.FULL), self.checkpoint(Mode.FULL)
        store = self.node.context.store
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            images = Path(directory) / "images"
            images.mkdir()
            for file in store.layout.images(fresh.id).iterdir():
                (images / file.name).write_bytes(file.read_bytes())
            begun = time.thread_time()
            report = make_delta(images, [store.layout.images(base.id)], parent_link="../nowhere")
            elapsed = time.thread_time() - begun
        store.remove(fresh.id)
        store.remove(base.id)
        return [Timed("delta: ms per GiB compared", elapsed * 1000 / (report.compared / (1 << 30)))]

    def measure_clone(self, snapshot: Snapshot, row: str, *, eager: bool) -> Callable[[], Sequence[Timed]]:
        def measure() -> Sequence[Timed]:
            if not eager:
                assert snapshot.warm(shells=1)
                self.node.context.reserve.wait_full(snapshot.id, timeout=10)
                wait_quiet(timeout=QUIET)
            clone, times = snapshot.clone_timed(eager=eager)
            with clone:
                proof = str(said(clone)["nonce"])
                assert proof == self.nonce
            if not eager:
                snapshot.cool()
            return [Timed(row, times.ready_ms, proof)]

        return measure

    def scenarios(self) -> list[Scenario]:
        frozen, durable = "from the freeze until it ran again", "from the call until the snapshot was durable"
        compared = "processor time of the thread that compares with the parent and rewrites, per GiB of memory compared"
        clone = "a clone that reads the files, from the call until it was ready"
        held = "a clone of memory that is held ready, from the call until it was ready"
        return [
            Scenario("full", {"full: frozen": frozen, "full: durable": durable}, self.measure_full),
            Scenario("delta", {"delta: frozen": frozen, "delta: durable": durable}, self.measure_delta),
            Scenario("comparison", {"delta: ms per GiB compared": compared}, self.measure_comparison),
            Scenario("chain", {CHAIN: clone}, self.measure_clone(self.chain[-1], CHAIN, eager=True)),
            Scenario("flat", {FLAT: f"{clone}, of its flattened equal"},
                     self.measure_clone(self.flat, FLAT, eager=True)),
            Scenario("held chain", {HELD_CHAIN: held}, self.measure_clone(self.chain[-1], HELD_CHAIN, eager=False)),
            Scenario("held flat", {HELD_FLAT: f"{held}, of its flattened equal"},
                     self.measure_clone(self.flat, HELD_FLAT, eager=False)),
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    options = parser.parse_args()
    facts = machine_facts()
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home", max_chain_length=LINKS)))
        undo.callback(node.tidy)
        measured = Snapshots(node, scratch)
        undo.callback(measured.sandbox.remove, force=True)
        scenarios = measured.scenarios()
        clocks = {row: clock for one in scenarios for row, clock in one.rows.items()}
        samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed), progress=before_each)
    print(file=sys.stderr)
    summaries = summarise(samples)

    def p50(row: str) -> float:
        return summaries[row].p50

    full, deltas, mib = measured.full_bytes, measured.delta_bytes, 1 << 20
    bars = [
        Requirement("full snapshot on disk, to resident memory", full / measured.resident, 1.15, "x"),
        Requirement("full snapshot on disk", full / 1e6, 200, "MB"),
        Requirement(f"largest delta after {CHANGED_MIB} MiB of scattered change", max(deltas) / mib, 8, "MiB"),
        Requirement("base and three deltas, to four full ones", (full + sum(deltas[:3])) / (4 * full), 0.4, "x"),
        Requirement("frozen time of a delta, to a full dump's", p50("delta: frozen") / p50("full: frozen"), 1.0, "x"),
        Requirement("whole delta", p50("delta: durable"), 500, "ms"),
        Requirement("delta work, per GiB compared", p50("delta: ms per GiB compared"), 1000, "ms"),
        Requirement(f"{CHAIN}, to its flattened equal", p50(CHAIN) / p50(FLAT), 1.3, "x"),
        Requirement(f"{HELD_CHAIN}, to its flattened equal", p50(HELD_CHAIN) / p50(HELD_FLAT), 1.3, "x"),
    ]  # fmt: skip
    report = markdown(
        "Snapshots, deltas and chains", command=f"bench/snapshots.py --rounds {options.rounds} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks=clocks, requirements=bars, notes=NOTES,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "snapshots.csv", samples)
    (options.out / "snapshots.md").write_text(report)
    print(report)


NOTES = (
    "Frozen time is the same dump in both kinds: what makes a delta of it happens after the thaw. Its ratio is noise "
    "about 1.",
    "Every restored sample named the nonce that is nowhere but in the program's memory.",
)


def before_each(number: int, name: str) -> None:
    say(number, name)
    wait_quiet(timeout=QUIET)


def say(number: int, name: str) -> None:
    if sys.stderr.isatty():
        print(f"\rround {number:3} {name:20}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
