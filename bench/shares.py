"""Which part of the CPUs a clone gets beside its busy original, and both beside busy sessions of the host.

Prints tables. Run as root: `python bench/shares.py [--rounds 5]`; a minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from thawbox.config import load_settings
from thawbox.host.cgroup_limits import node_weight
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

BUSY = Spec(("sh", "-c", "for i in 1 2 3 4; do (while :; do :; done) & done; echo up; wait"), ready="log:up")
SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-bench-")))
        node = undo.enter_context(Node(load_settings(home=scratch / "home")))
        undo.callback(node.tidy)
        original = undo.enter_context(node.run(BUSY))
        beside_each_other(node, original, rounds)
        beside_the_host(node, original, rounds, undo)


def beside_each_other(node: Node, original: Sandbox, rounds: int) -> None:
    snapshot = original.checkpoint()
    roads: dict[str, Callable[[], Sandbox]] = {
        "a fresh sandbox": lambda: node.run(BUSY),
        "a clone from the files": lambda: snapshot.clone(eager=True),
        "a clone from a template": snapshot.clone,
    }
    parts: dict[str, list[float]] = {road: [] for road in roads}
    for _ in range(rounds):
        for road, make in roads.items():
            if make == snapshot.clone and not snapshot.warm(shells=0):
                continue
            with make() as other:
                used, others = used_by(lambda: cpu_of(original), lambda: cpu_of(other))
            parts[road].append(others / (used + others))
            snapshot.cool()
    print(
        f"| beside a busy original, {os.cpu_count()} CPUs | its part of both (median of {rounds}; least) |\n|---|--:|"
    )
    for road, found in parts.items():
        if found:
            print(f"| {road} | {statistics.median(found):.2f} ({min(found):.2f}) |")


def beside_the_host(node: Node, original: Sandbox, rounds: int, undo: ExitStack) -> None:
    clone = undo.enter_context(original.checkpoint().clone(eager=True))
    seat = node.context.cgroup(original.id).layout.seat("cpu")
    if seat is None:
        return
    (group,) = seat.mount.glob(f"**/{original.id}/..")
    weights: dict[str, tuple[Path, str]] = {}
    for name, cpus in (("as a new group", 1), ("as the node's", os.cpu_count() or 1)):
        file, text = node_weight(version=seat.version, cpus=cpus)
        weights[f"{name} ({text})"] = (group / file, text)
    sessions = [
        subprocess.Popen(("sh", "-c", "while :; do :; done"), start_new_session=True)
        for _ in range(os.cpu_count() or 1)
    ]
    for one in sessions:
        undo.callback(one.wait)
        undo.callback(one.kill)
    found: dict[str, list[list[float]]] = {name: [] for name in weights}
    for _ in range(rounds):
        for name, (file, text) in weights.items():
            file.write_text(text)
            host = [lambda pid=one.pid: cpu_of_process(pid) for one in sessions]
            found[name].append(used_by(lambda: cpu_of(original), lambda: cpu_of(clone), *host))
    print(
        f"\n| the node's group weighs | original | clone | each of {len(sessions)} busy sessions |\n|---|--:|--:|--:|"
    )
    for name, samples in found.items():
        first, second, *others = (statistics.median(column) for column in zip(*samples, strict=True))
        print(f"| {name} | {first:.2f} | {second:.2f} | {statistics.mean(others):.2f} |")


def used_by(*clocks: Callable[[], float]) -> list[float]:
    """CPUs that each used, over some seconds."""
    before, begun = [clock() for clock in clocks], time.monotonic()
    time.sleep(SECONDS)
    passed = time.monotonic() - begun
    return [(clock() - was) / passed for clock, was in zip(clocks, before, strict=True)]


def cpu_of(sandbox: Sandbox) -> float:
    return sandbox.stats().cpu_usec / 1e6


def cpu_of_process(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
