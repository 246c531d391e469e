"""The service: acquire, code and commands over the unix socket, pairs of acquire and release, what it costs idle.

Run as root: `python bench/service.py [--rounds 200] [--seconds 60] [--out docs/benchmarks]`. Writes service.{md,csv}.
The clients are in this process, over raw sockets: a client library's own time is not the service's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thawbox.bench import Requirement, machine_facts, markdown, run_rounds, summarise, write_samples
from thawbox.bench.machine import load, wait_quiet
from thawbox.bench.rounds import Scenario, Timed
from thawbox.config import load_settings
from thawbox.node import Node

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
SPEC = {"command": ["sleep", "1000000"], "memory": 32 << 20}
CODING = "coding"
"""The sandbox that runs code and commands."""
PATIENCE = 60.0
IDLE_SECONDS = 30.0

KEPT = "acquire, connection kept"
FRESH = "acquire, fresh connection"
RELEASE = "release, connection kept"
LOOK = "GET /healthz, connection kept"
PAIR = "acquire and release under load, {} at a time"
CALLERS = (1, 4, 16)
STEP = re.compile(rb'thawbox_step_seconds_sum\{step="([^"]+)"\} (\S+)')
FIRST_CODE = "run_code, first in its sandbox's context"
WARM_CODE = "run_code, interpreter there"
COMMAND = "commands.run of `true`"
CLOCKS = {
    KEPT: "`POST /v1/pools/{name}/leases` with a clone parked, over a connection that is open: from the first byte "
    "sent until the last byte of the answer was read; the sandbox runs then",
    FRESH: "the same with the connection's own making in the clock",
    RELEASE: "`DELETE` of that lease: until the answer; the sandbox is destroyed in the background",
    LOOK: "the cheapest request there is: what HTTP itself costs",
    FIRST_CODE: "`POST /v1/sandboxes/{ref}/code` with `1 + 1` in a context that is not there yet: a Python "
    "interpreter is started in the sandbox; until the answer was read",
    WARM_CODE: "the same in a context that has run code: until the answer was read",
    COMMAND: "`POST /v1/sandboxes/{ref}/exec` with `true`: a program is started in the sandbox and ends; until its "
    "output and exit status were read",
    **{PAIR.format(callers): "one acquire and its release by one of so many callers that keep the pool busy, waiting "
    "for a clone included" for callers in CALLERS},
}  # fmt: skip


class Connection:
    """One HTTP/1.1 connection over the service's socket, read with as little as will do."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
        self._socket.sendall(head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._more()
        told, _, content = found.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in told.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        while len(content) < length:
            content += self._more()
        return int(told.split()[1]), content

    def _more(self) -> bytes:
        found = self._socket.recv(1 << 16)
        if not found:
            raise ConnectionError("the service hung up")
        return found

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True)
class Bench:
    """The service under measurement, and a connection that is kept."""

    socket: str
    pid: int
    patience: float
    kept: Connection
    quiet: list[bool]

    def made(self, method: str, path: str, body: object = None) -> Any:
        status, content = self.kept.ask(method, path, json.dumps(body).encode() if body is not None else b"")
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {content!r}")
        return json.loads(content) if content else None

    def wait_full(self, pool: str) -> None:
        """Until the pool is full and nothing of it is under way: its refill is not what is measured."""
        while True:
            now = self.made("GET", f"/v1/pools/{pool}")
            if now["parked"] >= now["target"] and not (now["restoring"] or now["ending"] or now["leased"]):
                break
            time.sleep(0.01)
        self.quiet.append(wait_quiet(timeout=self.patience))

    def acquire(self, *, fresh: bool) -> Sequence[Timed]:
        self.wait_full("single")
        begun = time.perf_counter()
        connection = Connection(self.socket) if fresh else self.kept
        status, content = connection.ask("POST", "/v1/pools/single/leases", b'{"timeout": 0}')
        acquired = time.perf_counter()
        if status != 201:
            raise RuntimeError(f"{status}: {content!r}")
        lease = json.loads(content)["lease"]
        released = time.perf_counter()
        connection.ask("DELETE", f"/v1/pools/single/leases/{lease}")
        ended = time.perf_counter()
        if fresh:
            connection.close()
            return [Timed(FRESH, (acquired - begun) * 1000)]
        return [Timed(KEPT, (acquired - begun) * 1000), Timed(RELEASE, (ended - released) * 1000)]

    def look(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        self.kept.ask("GET", "/healthz")
        return [Timed(LOOK, (time.perf_counter() - begun) * 1000)]

    def code(self) -> Sequence[Timed]:
        """A first run in a context of its own, a second in the same; then the context is ended, outside the clock."""
        self.quiet.append(wait_quiet(timeout=self.patience))
        first = self.timed(FIRST_CODE, "code", {"code": "1 + 1"}, {"text": "2", "count": 1})
        warm = self.timed(WARM_CODE, "code", {"code": "1 + 1"}, {"text": "2", "count": 2})
        self.made("DELETE", f"/v1/sandboxes/{CODING}/code/default")
        return [first, warm]

    def command(self) -> Sequence[Timed]:
        return [self.timed(COMMAND, "exec", {"argv": ["true"]}, {"exit_status": 0})]

    def timed(self, row: str, what: str, wish: object, expected: dict[str, object]) -> Timed:
        """One POST to the sandbox `CODING`; raises RuntimeError where the answer is not what it must be."""
        body = json.dumps(wish).encode()
        begun = time.perf_counter()
        status, content = self.kept.ask("POST", f"/v1/sandboxes/{CODING}/{what}", body)
        passed = time.perf_counter() - begun
        if status != 200 or not expected.items() <= json.loads(content).items():
            raise RuntimeError(f"{row}: {status} {content!r}")
        return Timed(row, passed * 1000)

    def steps(self) -> dict[str, float]:
        """Seconds that each step of the service's work has taken so far, as `/metrics` tells."""
        _, told = self.kept.ask("GET", "/metrics")
        return {name.decode(): float(seconds) for name, seconds in STEP.findall(told)}

    def pairs(self, seconds: float, callers: int) -> Load:
        """Pairs that callers who never rest get through."""
        lock = threading.Lock()
        done: list[Timed] = []
        taken: set[str] = set()
        deadline = time.perf_counter() + seconds

        def use(_: int) -> None:
            connection = Connection(self.socket)
            while time.perf_counter() < deadline:
                begun = time.perf_counter()
                status, content = connection.ask("POST", "/v1/pools/busy/leases", b'{"timeout": 30}')
                if status != 201:
                    raise RuntimeError(f"{status}: {content!r}")
                got = json.loads(content)
                connection.ask("DELETE", f"/v1/pools/busy/leases/{got['lease']}")
                with lock:
                    if got["id"] in taken:
                        raise RuntimeError("a clone was given twice")
                    taken.add(got["id"])
                    done.append(Timed(PAIR.format(callers), (time.perf_counter() - begun) * 1000))
            connection.close()

        self.wait_full("busy")
        before, steps = (cpu_seconds(self.pid), busy_seconds()), self.steps()
        begun = time.perf_counter()
        with ThreadPoolExecutor(callers) as threads:
            list(threads.map(use, range(callers)))
        passed = time.perf_counter() - begun
        service, machine = cpu_seconds(self.pid) - before[0], busy_seconds() - before[1]
        each = {name: (now - steps.get(name, 0)) * 1000 / len(done) for name, now in self.steps().items()}
        return Load(callers, done, len(done) / passed, service / passed, machine / passed, each)


@dataclass(frozen=True, slots=True)
class Load:
    """What came of some seconds of load: pairs with their times, all per second, cores that the service and the
    machine used, and the milliseconds of each step for one pair."""

    callers: int
    pairs: list[Timed]
    throughput: float
    service_cores: float
    machine_cores: float
    steps: dict[str, float]

    def told(self) -> str:
        """In a sentence, the longest steps first: they contain each other, and overlap."""
        longest = sorted(self.steps.items(), key=lambda one: -one[1])[:12]
        return (
            f"{self.callers} at a time: {self.throughput:.1f} pairs per second; {self.machine_cores:.2f} of "
            f"{os.cpu_count()} cores were busy, {self.service_cores:.2f} with the service's own process, the rest with "
            "CRIU, the kernel's work for it and the callers. Milliseconds of each step for one pair: "
            + ", ".join(f"`{name}` {ms:.1f}" for name, ms in longest) + "."
        )  # fmt: skip


def busy_seconds() -> float:
    """What all processors of the machine have worked."""
    fields = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its ended children's not included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def served(home: Path, undo: ExitStack) -> tuple[str, int]:
    """`thawbox serve` on this home: its socket and its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "thawbox.cli", "serve", "--json"], stdout=subprocess.PIPE,
        env={**os.environ, "THAWBOX_HOME": str(home)},
    )  # fmt: skip
    undo.callback(process.wait, PATIENCE)
    undo.callback(process.send_signal, signal.SIGTERM)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    process.stdout.close()
    return told["socket"], process.pid


def idle(bench: Bench, seconds: float) -> tuple[float, float]:
    """Percent of one core, and MiB, of the service with its pools full and nobody asking."""
    bench.wait_full("single")
    begun, before = time.perf_counter(), cpu_seconds(bench.pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(bench.pid) - before) / (time.perf_counter() - begun), rss_mib(bench.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="of acquire and release under load, by each crowd")
    parser.add_argument("--seed", type=int, default=1, help="of the order within each round")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the report")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds to wait for idle cores, before each")
    options = parser.parse_args()
    facts = machine_facts()
    with ExitStack() as undo:
        home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-"))) / "home"
        undo.callback(clear_away, home)
        where, pid = served(home, undo)
        bench = Bench(where, pid, options.quiet, Connection(where), [])
        undo.callback(bench.kept.close)
        bare_cpu, bare_rss = idle_without_pools(bench)
        bench.made("POST", "/v1/templates", {"name": "small", "spec": SPEC})
        bench.made("POST", "/v1/pools", {"name": "single", "template": "small", "low": 2, "high": 2, "limit": 4})
        idle_cpu, idle_rss = idle(bench, IDLE_SECONDS)
        bench.made("POST", "/v1/sandboxes", {"spec": {"command": ["sleep", "1000000"], "name": CODING}})
        scenarios = [
            Scenario("kept", {KEPT: "", RELEASE: ""}, lambda: bench.acquire(fresh=False)),
            Scenario("fresh", {FRESH: ""}, lambda: bench.acquire(fresh=True)),
            Scenario("look", {LOOK: ""}, bench.look),
            Scenario("code", {FIRST_CODE: "", WARM_CODE: ""}, bench.code),
            Scenario("command", {COMMAND: ""}, bench.command),
        ]
        samples = run_rounds(scenarios, rounds=options.rounds, rng=random.Random(options.seed))
        bench.made("DELETE", f"/v1/sandboxes/{CODING}?force=true")
        bench.made("DELETE", "/v1/pools/single")
        bench.made("POST", "/v1/pools", {"name": "busy", "template": "small", "low": 8, "high": 16, "limit": 32})
        loads = [bench.pairs(options.seconds, callers) for callers in CALLERS]
        after_rss = rss_mib(pid)
        bench.made("DELETE", "/v1/pools/busy?force=true")
    from thawbox.bench.samples import Sample

    samples += [Sample(one.row, number, one.value) for crowd in loads for number, one in enumerate(crowd.pairs)]
    throughput = max(one.throughput for one in loads)
    summaries = summarise(samples)
    facts["load at the end"] = load()
    facts["quiet"] = f"{sum(bench.quiet)} of {len(bench.quiet)} measurements began with idle cores"
    notes = (
        f"Callers that never rest, for {options.seconds:g} s each: no clone given twice. Each pair also restores one "
        "clone (`pool.park`) and destroys one (`remove`), which nobody waits for until the pool is empty. Where all "
        "cores are busy, more callers only wait longer: the limit is the processors' work for a clone.",
        *(one.told() for one in loads),
        f"Idle with two parked clones: {idle_cpu:.2f} % of one core over {IDLE_SECONDS:g} s, {idle_rss:.0f} MiB "
        f"resident (before it had any pool {bare_cpu:.2f} % and {bare_rss:.0f} MiB); after the load "
        f"{after_rss:.0f} MiB.",
        "The template is `sleep`: 32 MiB of limit, under 1 MiB of memory.",
    )
    bars = [
        Requirement("acquire over the socket, p50", summaries[KEPT].p50, 10, "ms"),
        Requirement("acquire over the socket, p99", summaries[KEPT].p99, 40, "ms"),
        Requirement("fewer than 50 pairs a second by", max(0.0, 50 - throughput), 0, ""),
        Requirement("CPU when idle", idle_cpu, 1, "%"),
        Requirement("memory when idle", idle_rss, 120, "MiB"),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "service.csv", samples)
    report = markdown(
        "The service", command=f"bench/service.py --rounds {options.rounds} --seconds {options.seconds:g}",
        facts=facts, summaries=summaries, clocks=CLOCKS, requirements=bars, notes=notes,
    )  # fmt: skip
    (options.out / "service.md").write_text(report)
    print(report)


def idle_without_pools(bench: Bench) -> tuple[float, float]:
    begun, before = time.perf_counter(), cpu_seconds(bench.pid)
    time.sleep(IDLE_SECONDS / 3)
    return 100 * (cpu_seconds(bench.pid) - before) / (time.perf_counter() - begun), rss_mib(bench.pid)


def clear_away(home: Path) -> None:
    """Leave nothing of the home in the kernel."""
    with Node(load_settings(home=home)) as node:
        for sandbox in node.sandboxes():
            sandbox.remove(force=True)
        node.tidy()


if __name__ == "__main__":
    main()
