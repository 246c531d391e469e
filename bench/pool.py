"""The warm pool beside cold starts: acquire to first answer, a burst of threads, what parked clones cost.

Run as root: `python bench/pool.py [--rounds 60] [--seed 1] [--out docs/benchmarks]`. Writes pool.{md,csv}.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench import Requirement, machine_facts, markdown, run_rounds, summarise, write_samples
from thawbox.bench.machine import load, wait_quiet
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Sample
from thawbox.config import load_settings
from thawbox.model import Mount, Phase, Spec
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.sandbox import Sandbox

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
PORT = 8000
PROGRAM = f"""
import secrets, socket, sys
state = bytearray(secrets.token_bytes(1 << 20)) * int(sys.argv[1])
nonce = secrets.token_hex(16)
listening = socket.create_server(("127.0.0.1", {PORT}), backlog=64)
while True:
    connection, _ = listening.accept()
    with connection:
        connection.sendall(nonce.encode())
"""
MEBIBYTES = 64

ACQUIRE = "acquire returned"
ANSWERED = "acquire to answer"
COLD = "cold start to answer"
BURST = "acquire to answer, 16 threads"
PARKED = "CPU of two parked clones, of 100 ms"
LOOK_SECONDS = 0.1
CLOCKS = {
    ACQUIRE: "`pool.acquire()` with a clone parked: from the call until the thawed sandbox is returned",
    ANSWERED: "the same, until the clone has answered a request over its own socket (connect, answer, end)",
    COLD: "`node.run()` of the same spec until it has answered the same request",
    BURST: "100 acquires by 16 threads of a pool of 8 parked, limit 16: from each call until the clone has answered",
    PARKED: "what the cgroups of all parked clones have used more after 100 ms than before, by the kernel's own count",
}


def ask(sandbox: Sandbox) -> str:
    with sandbox.connect(PORT) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


class Bench:
    """The pools and the spec that everything is measured with. `nonce` is the one in the golden snapshot's memory."""

    def __init__(self, node: Node, scratch: Path, *, patience: float) -> None:
        self.quiet: list[bool] = []
        self.patience = patience
        (scratch / "program.py").write_text(PROGRAM)
        mount = Mount(str(scratch), "/program", read_only=True)
        self.spec = Spec(("python3", "/program/program.py", str(MEBIBYTES)), mounts=(mount,), ready=f"tcp:{PORT}")
        self.node = node
        node.create_template("bench", self.spec)
        node.create_pool(PoolSpec("single", "bench", low=2, high=2, limit=4))
        node.create_pool(PoolSpec("burst", "bench", low=8, high=8, limit=16))
        with node.open_pool("single") as pool, pool.acquire() as sandbox:
            self.nonce = ask(sandbox)

    def proof(self, answer: str) -> str:
        return answer if answer == self.nonce else ""

    def wait_idle(self) -> None:
        """Wait up to `patience` seconds until nobody else uses the cores, and remember whether that was so."""
        self.quiet.append(wait_quiet(timeout=self.patience))

    def acquire(self, pool: Pool) -> Sequence[Timed]:
        until_full(pool)
        self.wait_idle()
        begun = time.perf_counter()
        lease = pool.acquire()
        acquired = time.perf_counter()
        proof = self.proof(ask(lease.sandbox))
        answered = time.perf_counter()
        lease.release()
        return [Timed(ACQUIRE, (acquired - begun) * 1000, proof), Timed(ANSWERED, (answered - begun) * 1000, proof)]

    def cold(self) -> Sequence[Timed]:
        self.wait_idle()
        begun = time.perf_counter()
        with self.node.run(self.spec) as sandbox:
            ask(sandbox)
            return [Timed(COLD, (time.perf_counter() - begun) * 1000)]

    def parked(self, pool: Pool) -> Sequence[Timed]:
        until_full(pool)
        groups = [self.node.context.cgroup(one.id) for one in self.node.sandboxes() if one.state is Phase.FROZEN]
        assert len(groups) == pool.statistics().parked
        before = sum(group.stats().cpu_usec for group in groups)
        time.sleep(LOOK_SECONDS)
        return [Timed(PARKED, (sum(group.stats().cpu_usec for group in groups) - before) / 1000)]

    def burst(self, pool: Pool, count: int = 100, threads: int = 16) -> tuple[list[Sample], float]:
        """One sample for each of `count` acquires, and acquires per second."""
        taken: list[str] = []
        lock = threading.Lock()

        def use(number: int) -> Sample:
            begun = time.perf_counter()
            with pool.acquire(timeout=300) as sandbox:
                proof = self.proof(ask(sandbox))
                passed = time.perf_counter() - begun
                with lock:
                    taken.append(sandbox.id)
            return Sample(BURST, number, passed * 1000, proof)

        begun = time.perf_counter()
        with ThreadPoolExecutor(threads) as callers:
            samples = list(callers.map(use, range(count)))
        assert len(set(taken)) == count, "a clone was given twice"
        return samples, count / (time.perf_counter() - begun)


def until_full(pool: Pool) -> None:
    """Wait until the pool is full again and nothing of it is under way: its refill is not what is measured."""
    while (now := pool.statistics()).parked < now.target or now.restoring or now.ending or now.leased:
        time.sleep(0.01)


def remove_all(node: Node) -> None:
    """A pool that was interrupted keeps its clones for whoever opens it next."""
    for sandbox in node.sandboxes():
        sandbox.remove(force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds to wait for idle cores, before each")
    options = parser.parse_args()
    facts = machine_facts()
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home")))
        undo.callback(node.tidy)
        undo.callback(remove_all, node)
        bench = Bench(node, scratch, patience=options.quiet)
        with node.open_pool("single") as pool:
            scenarios = [
                Scenario("acquire", {ACQUIRE: "", ANSWERED: ""}, lambda: bench.acquire(pool)),
                Scenario("cold", {COLD: ""}, bench.cold),
                Scenario("parked", {PARKED: ""}, lambda: bench.parked(pool)),
            ]
            samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed))
            pool.drain(timeout=0)
        with node.open_pool("burst") as pool:
            until_full(pool)
            crowd, throughput = bench.burst(pool)
            statistics = pool.statistics()
            pool.drain(timeout=0)
    samples += crowd
    summaries = summarise(samples)
    facts["load at the end"] = load()
    facts["quiet"] = f"{sum(bench.quiet)} of {len(bench.quiet)} measurements began with idle cores"
    answered, cold, crowded, parked = (summaries[row] for row in (ANSWERED, COLD, BURST, PARKED))
    notes = (
        f"A cold start takes {cold.p50 / answered.p50:.0f} times as long as an acquire (medians of the same run), and "
        f"{cold.p50 / crowded.p50:.1f} times as long as an acquire among 16 threads, the wait for a clone included.",
        f"100 acquires from 16 threads: {throughput:.1f} per second, each on a clone of its own, none lost; "
        f"{statistics.totals.restored} clones restored for them.",
        f"Two parked clones used at most {parked.most * 1000:.0f} µs of CPU in any of {parked.n} looks of 100 ms.",
        f"The program holds {MEBIBYTES} MiB. `proven`: the clone named the nonce that only the golden program made.",
    )
    bars = [
        Requirement("acquire to answer, p50", answered.p50, 5, "ms"),
        Requirement("acquire to answer, p99", answered.p99, 20, "ms"),
        Requirement("CPU of parked clones in 100 ms, at most", parked.most * 1000, 0, "µs"),
        Requirement("acquires of 100 lost or doubled", 100 - summaries[BURST].proven, 0, ""),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "pool.csv", samples)
    report = markdown(
        "The warm pool, beside cold starts", command=f"bench/pool.py --rounds {options.rounds} --seed {options.seed}",
        facts=facts, summaries=summaries, clocks=CLOCKS, requirements=bars, notes=notes,
    )  # fmt: skip
    (options.out / "pool.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
