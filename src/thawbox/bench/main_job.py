"""The main job, measured: create, checkpoint, restore and clone, beside bare criu doing the same in the same run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from thawbox.bench import agent
from thawbox.bench.bare_criu import BareCriu, PlainProcess, upstream
from thawbox.bench.report import Requirement
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Summary
from thawbox.engines import Place
from thawbox.engines.criu import CriuEngine
from thawbox.errors import Unsupported
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox, Snapshot, restoring
from thawbox.sandbox.checkpointing import CheckpointReport, Mode, without_connections

MIB = 64
CLONES = 20
_MEBIBYTE = 1 << 20

FROZEN, CHECKPOINT = "checkpoint, frozen", "checkpoint, whole"
BARE_FROZEN, BARE_DUMP = "bare criu dump, frozen", "bare criu dump, whole"
RESTORE, RESTORED = "restore to first answer", "restore, until it runs"
BARE_RESTORE, BARE_RESTORED = "bare criu restore to first answer", "bare criu restore, until it runs"
CLONE = "clone to first answer"
PLAIN_RESTORE, PLAIN_DUMP = "unshare + criu restore to first answer", "criu dump of a plain process, whole"
PLAIN_FROZEN = "criu dump of a plain process, frozen"
CREATE, FIRST_WORDS = "create to first instruction", "create to the clock its program reads"
ALL_CLONES, EAGER_CLONES = f"{CLONES} clones, to the last first answer", f"{CLONES} clones, each from the files"
WARM_CLONE = "clone from a warm template to first answer"

_SHOW_CLOCK = ("sh", "-c", "date +%s.%N >/started; exec sleep 3600")
_INTERPRETER = ("python3", "-c", "import time\nwhile True: time.sleep(3600)")
_ORDINARY = """
import asyncio, collections, decimal, email, http.server, json, logging, os, re, sqlite3, time, urllib.request, uuid
random = os.urandom(64 << 20)
records = [{"id": str(uuid.uuid4()), "number": n, "text": "line %d " % n * 8} for n in range(60000)]
table = sqlite3.connect(":memory:")
table.execute("create table records (id, text)")
table.executemany("insert into records values (?, ?)", ((r["id"], r["text"]) for r in records))
open("notes", "w").write("\\n".join(r["text"] for r in records))
print("ready", flush=True)
while True: time.sleep(3600)
"""


class MainJob:
    """The sandboxes and the peer that the scenarios work on; a context manager that leaves nothing behind.

    The rows are named for the usual size: other values of `mib` and `clones` are for a quick look alone.
    """

    def __init__(self, node: Node, scratch: Path, *, mib: int = MIB, clones: int = CLONES) -> None:
        engine = node.context.engine
        if not isinstance(engine, CriuEngine):
            raise Unsupported("the benchmark compares with bare criu, and this node's engine is another")
        self._node = node
        self._scratch = scratch
        self._count = clones
        with ExitStack() as undo:
            peer = undo.enter_context(upstream(engine.program))
            self._bare = BareCriu(peer, scratch)
            self._bare_context = replace(node.context, make_engine=lambda: self._bare)
            undo.callback(lambda: node.context.store.remove(self._snapshot.id))
            self._running = undo.enter_context(node.run(Spec(agent.command(mib))))
            self._away = undo.enter_context(node.run(Spec(agent.command(mib))))
            self._original = agent.ask(self._away.record.keeper_pid, whole=True)
            self._running_original = agent.ask(self._running.record.keeper_pid, whole=True)
            self._snapshot = self._away.checkpoint(stop=True)
            self._plain = undo.enter_context(PlainProcess(peer, scratch, mib=mib))
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def scenarios(self) -> list[Scenario]:
        """What is interleaved, with each row's clock in words."""
        return [
            Scenario("checkpoint", {
                FROZEN: "CRIU's own count (stats-dump): from its first stop of a task until its last thaw, the copy of "
                        "changed files included",
                CHECKPOINT: "the call of `checkpoint`, until the snapshot is durable, hashed and listed",
            }, self._checkpoint),
            Scenario("bare dump", {
                BARE_FROZEN: "the same count, of the same sandbox, dumped by the criu command",
                BARE_DUMP: "`criu dump` of the same sandbox, from the start of the command to its exit",
            }, self._bare_dump),
            Scenario("restore", {
                RESTORE: "the call of `restore` (find and check the snapshot, journal, directories, overlays, cgroups, "
                         "namespaces, criu, init's answer), until the agent answered over its own socket",
                RESTORED: "the same, until `restore` says that the tree runs",
            }, self._restore),
            Scenario("bare restore", {
                BARE_RESTORE: "`criu restore` of the same images into namespaces, overlays and cgroups made before, "
                              "from the start of the command until the agent answered",
                BARE_RESTORED: "the same, until the exit of the command",
            }, self._bare_restore),
            Scenario("clone", {
                CLONE: "the call of `clone`, until the clone's agent answered over its own socket",
            }, self._clone),
            Scenario("plain process", {
                PLAIN_RESTORE: "`unshare … criu restore` of the same program without thawbox (no init, no overlay, no "
                               "cgroup), from the start of unshare until the agent answered",
                PLAIN_FROZEN: "the same count, of that process",
                PLAIN_DUMP: "`criu dump` of that process, from the start of the command to its exit",
            }, self._plain_process),
            Scenario("create", {
                CREATE: "the call of `run`, until the program's exec has succeeded",
                FIRST_WORDS: "the call of `run`, until the clock that its program (sh, which starts date) reads",
            }, self._create),
            Scenario("warm clone", {
                WARM_CLONE: "as for a clone, a moment after a template server began to hold the snapshot's memory, "
                            "while shells for more are made; held ready for good: bench/clones.py",
            }, self._warm_clone),
            Scenario("clones", {
                ALL_CLONES: f"one call for {CLONES} clones of a snapshot that nothing holds ready, loading its "
                            "template included, until the last of them answered",
            }, self._clones),
            Scenario("eager clones", {
                EAGER_CLONES: "the same without a template: each clone reads the snapshot's files",
            }, self._eager_clones),
        ]  # fmt: skip

    def _checkpoint(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        snapshot = self._running.checkpoint(mode=Mode.FULL)
        whole_ms = (time.perf_counter() - begun) * 1000
        self._node.context.store.remove(snapshot.id)
        agent.prove(self._running.record.keeper_pid, self._running_original)
        return Timed(FROZEN, _report(snapshot).frozen_ms), Timed(CHECKPOINT, whole_ms)

    def _bare_dump(self) -> Sequence[Timed]:
        record = self._running.record
        images = self._scratch / "bare-images"
        images.mkdir()
        with without_connections(self._node.context, record):
            self._bare.dump(Place(record.keeper_pid), images, while_stopped=lambda: None)
        shutil.rmtree(images)
        return Timed(BARE_FROZEN, self._bare.last.frozen_ms), Timed(BARE_DUMP, self._bare.last.whole_ms)

    def _restore(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        sandbox, times = self._snapshot.restore()
        keeper = sandbox.record.keeper_pid
        agent.ask(keeper)
        answer_ms = (time.perf_counter() - begun) * 1000
        proof = agent.prove(keeper, self._original)
        sandbox.stop(timeout=0)
        return Timed(RESTORE, answer_ms, proof), Timed(RESTORED, times.restore_ms, proof)

    def _bare_restore(self) -> Sequence[Timed]:
        record, _ = restoring.restore(self._bare_context, self._snapshot.id)
        times = self._bare.last
        proof = agent.prove(record.keeper_pid, self._original)
        self._away.stop(timeout=0)
        return Timed(BARE_RESTORE, times.answer_ms, proof), Timed(BARE_RESTORED, times.whole_ms, proof)

    def _clone(self) -> Sequence[Timed]:
        begun = time.perf_counter()
        with self._snapshot.clone() as clone:
            keeper = clone.record.keeper_pid
            agent.ask(keeper)
            answer_ms = (time.perf_counter() - begun) * 1000
            return (Timed(CLONE, answer_ms, agent.prove(keeper, self._original)),)

    def _plain_process(self) -> Sequence[Timed]:
        try:
            times, first = self._plain.restore()
            proof = agent.prove(first, self._plain.original)
            dumped = self._plain.dump(first)
        finally:
            self._plain.end()
        return (
            Timed(PLAIN_RESTORE, times.answer_ms, proof), Timed(PLAIN_FROZEN, dumped.frozen_ms),
            Timed(PLAIN_DUMP, dumped.whole_ms),
        )  # fmt: skip

    def _create(self) -> Sequence[Timed]:
        begun = time.time()
        sandbox, create_ms = self._node.run_timed(Spec(_SHOW_CLOCK))
        with sandbox:
            started = _first_words(sandbox)
        return Timed(CREATE, create_ms), Timed(FIRST_WORDS, (started - begun) * 1000)

    def _warm_clone(self) -> Sequence[Timed]:
        if not self._snapshot.warm():
            raise Unsupported("this criu has no template servers", remediation="run `make setup` to build ours")
        try:
            (timed,) = self._clone()
        finally:
            self._snapshot.cool()
        return (Timed(WARM_CLONE, timed.value, timed.proof),)

    def _clones(self) -> Sequence[Timed]:
        try:
            return (self._clones_timed(ALL_CLONES, eager=False),)
        finally:
            self._snapshot.cool()

    def _eager_clones(self) -> Sequence[Timed]:
        return (self._clones_timed(EAGER_CLONES, eager=True),)

    def _clones_timed(self, row: str, *, eager: bool) -> Timed:
        begun = time.perf_counter()
        clones = self._snapshot.clones(self._count, eager=eager)
        try:
            keepers = [clone.record.keeper_pid for clone in clones]
            for keeper in keepers:
                agent.ask(keeper)
            wall_ms = (time.perf_counter() - begun) * 1000
            (proof,) = {agent.prove(keeper, self._original) for keeper in keepers}
        finally:
            for clone in clones:
                clone.remove(force=True)
        return Timed(row, wall_ms, proof)


def _report(snapshot: Snapshot) -> CheckpointReport:
    if snapshot.report is None:
        raise AssertionError(f"{snapshot} was not made by this process")
    return snapshot.report


def _first_words(sandbox: Sandbox) -> float:
    """What the program's `date` printed: seconds since the epoch, by the clock that host and sandbox share."""
    path = Path(f"/proc/{sandbox.record.keeper_pid}/root/started")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and (said := path.read_text()).endswith("\n"):
            return float(said)
        time.sleep(agent.PAUSE)
    raise AssertionError("the program never read its clock")


def snapshot_sizes(node: Node) -> dict[str, float]:
    """Bytes of full snapshots: of a plain interpreter, and of ordinary state within a limit of 512 MiB."""
    return {
        "plain Python interpreter": _size(node, Spec(_INTERPRETER), wait=lambda _: None),
        "ordinary state, limit 512 MiB": _size(
            node, Spec(("python3", "-c", _ORDINARY), memory=512 * _MEBIBYTE, ready="log:ready"), wait=lambda _: None
        ),
    }


def _size(node: Node, spec: Spec, *, wait: Callable[[Sandbox], None]) -> float:
    with node.run(spec) as sandbox:
        wait(sandbox)
        snapshot: Snapshot = sandbox.checkpoint(mode=Mode.FULL)
        size = snapshot.stored.bytes
        node.context.store.remove(snapshot.id)
    return float(size)


def requirements(found: Mapping[str, Summary], sizes: Mapping[str, float]) -> list[Requirement]:
    """The bars that the main job has to clear, by medians of one interleaved run."""

    def ratio(row: str, other: str) -> float:
        return found[row].p50 / found[other].p50

    plain, ordinary = (size / _MEBIBYTE for size in sizes.values())
    return [
        Requirement(f"{FROZEN}, {MIB} MiB, against {BARE_DUMP}", ratio(FROZEN, BARE_DUMP), 1.2, "times"),
        Requirement(f"{FROZEN}, against {BARE_FROZEN}", ratio(FROZEN, BARE_FROZEN), 1.2, "times"),
        Requirement(
            f"{RESTORE}, {MIB} MiB, against {BARE_RESTORE} (same images, namespaces ready)",
            ratio(RESTORE, BARE_RESTORE), 1.3, "times",
        ),
        Requirement(f"{RESTORE}, against {PLAIN_RESTORE}", ratio(RESTORE, PLAIN_RESTORE), 1.3, "times"),
        Requirement(RESTORE, found[RESTORE].p50, 500, "ms"),
        Requirement(CREATE, found[CREATE].p50, 40, "ms"),
        Requirement("full snapshot of a plain Python interpreter", plain, 40, "MiB"),
        Requirement("full snapshot of ordinary state, limit 512 MiB", ordinary, 200, "MiB"),
        Requirement(f"{ALL_CLONES}, against {CLONES} restores", ratio(ALL_CLONES, RESTORE) / CLONES, 1 / 1.5, "times"),
        Requirement(
            f"{EAGER_CLONES}, against {CLONES} restores", ratio(EAGER_CLONES, RESTORE) / CLONES, 1 / 1.5, "times"
        ),
    ]  # fmt: skip
