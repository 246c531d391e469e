"""Clones that share a template's memory, beside bare criu restoring the same images: time, memory, and by the hundred.

Every sample is proven by the nonce and, once per round, by the digest of the agent's whole memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from thawbox.bench import agent
from thawbox.bench.bare_criu import BareCriu, upstream
from thawbox.bench.report import Requirement
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Summary
from thawbox.engines.criu import CriuEngine
from thawbox.errors import Unsupported
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.sandbox import Snapshot, cloning

MIB, LARGE_MIB, MANY = 64, 512, 100
MIBI = 1 << 20
SETTLE_SECONDS = 10.0


def clone_row(mib: int) -> str:
    return f"clone of {mib} MiB to first answer"


def bare_row(mib: int) -> str:
    return f"bare criu restore of {mib} MiB to first answer"


def eager_row(mib: int) -> str:
    return f"clone of {mib} MiB, from the files, to first answer"


PRIVATE = f"MiB: private memory of a fresh clone of {MIB} MiB"
CHARGED = f"MiB: charged to the cgroup of a fresh clone of {MIB} MiB"
HUNDRED = f"{MANY} clones of {MIB} MiB, from the call to the last first answer"
HUNDRED_MEMORY = f"MiB: {MANY} clones of {MIB} MiB, charged in all"
ACQUIRE = f"acquire of a parked clone of {MIB} MiB to first answer"


class Clones:
    """Agents frozen and held ready, of both sizes, and a pool. A context manager."""

    def __init__(self, node: Node, scratch: Path, *, sizes: Sequence[int] = (MIB, LARGE_MIB), many: int = MANY) -> None:
        engine = node.context.engine
        if not isinstance(engine, CriuEngine):
            raise Unsupported("the benchmark compares with bare criu, and this node's engine is another")
        self._node = node
        self._many = many
        self._sizes = sizes
        self._program, self._scratch = engine.program, scratch
        self._snapshots: dict[int, tuple[Snapshot, agent.Answer]] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._bare = BareCriu(undo.enter_context(upstream(self._program)), self._scratch)
            self._bare_context = replace(self._node.context, make_engine=lambda: self._bare)
            for mib in self._sizes:
                with self._node.run(Spec(agent.command(mib))) as original:
                    answer = agent.ask(original.record.keeper_pid, whole=True)
                    snapshot = original.checkpoint(stop=True)
                undo.callback(self._node.context.store.remove, snapshot.id)
                if not snapshot.warm(shells=2):
                    raise Unsupported("this criu has no template servers", remediation="run `make setup`")
                undo.callback(snapshot.cool)
                self._snapshots[mib] = snapshot, answer
            self._pool, self._golden = self._open_pool(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open_pool(self, undo: ExitStack) -> tuple[Pool, agent.Answer]:
        self._node.create_template("clones", Spec(agent.command(self._sizes[0]), ready=f"tcp:{agent.PORT}"))
        undo.callback(self._node.remove_template, "clones")
        self._node.create_pool(PoolSpec("clones", "clones", low=1, high=1, limit=2))
        undo.callback(self._node.remove_pool, "clones", force=True)
        pool = self._node.open_pool("clones")
        undo.callback(pool.drain, timeout=0)
        with pool.acquire(timeout=60) as sandbox:
            return pool, agent.ask(sandbox.record.keeper_pid, whole=True)

    def scenarios(self) -> list[Scenario]:
        """What is interleaved, with each row's clock in words."""
        found: list[Scenario] = []
        for mib in self._sizes:
            memory = {
                PRIVATE: "pages of all its processes that no other process maps (smaps_rollup), after the answer",
                CHARGED: "what its memory cgroup is charged, after the answer",
            } if mib == MIB else {}  # fmt: skip
            found += [
                Scenario(f"clone {mib}", {
                    clone_row(mib): "the call of `clone`, its snapshot's memory and shells held ready, until the "
                                    "clone's agent answered over its own socket",
                    **memory,
                }, partial(self._clone, mib)),
                Scenario(f"bare {mib}", {
                    bare_row(mib): "`criu restore` of the same images into namespaces, overlays and cgroups made "
                                   "before, from the start of the command until the agent answered",
                }, partial(self._bare_restore, mib)),
                Scenario(f"eager {mib}", {
                    eager_row(mib): "the call of `clone(eager=True)`, until the clone's agent answered",
                }, partial(self._eager, mib)),
            ]  # fmt: skip
        found += [
            Scenario("hundred", {
                HUNDRED: f"one call for {self._many} clones, memory held ready and shells made as it goes, until the "
                         "last of them answered",
                HUNDRED_MEMORY: "what the memory cgroups of all of them are charged then: all that they add to the "
                                "template's process",
            }, self._hundred),
            Scenario("acquire", {
                ACQUIRE: "the call of `acquire` with a clone parked, until it answered over its own socket",
            }, self._acquire),
        ]  # fmt: skip
        return found

    def _clone(self, mib: int) -> Sequence[Timed]:
        snapshot, original = self._snapshots[mib]
        self._node.context.reserve.wait_full(snapshot.id, timeout=SETTLE_SECONDS)
        begun = time.perf_counter()
        with snapshot.clone() as clone:
            keeper = clone.record.keeper_pid
            agent.ask(keeper)
            ms = (time.perf_counter() - begun) * 1000
            own, charged = clone.memory_use().private, clone.stats().memory
            proof = agent.prove(keeper, original)
        if mib != MIB:
            return (Timed(clone_row(mib), ms, proof),)
        return (
            Timed(clone_row(mib), ms, proof), Timed(PRIVATE, own / MIBI), Timed(CHARGED, charged / MIBI)
        )  # fmt: skip

    def _eager(self, mib: int) -> Sequence[Timed]:
        snapshot, original = self._snapshots[mib]
        self._node.context.reserve.wait_full(snapshot.id, timeout=SETTLE_SECONDS)
        begun = time.perf_counter()
        with snapshot.clone(eager=True) as clone:
            agent.ask(clone.record.keeper_pid)
            ms = (time.perf_counter() - begun) * 1000
            return (Timed(eager_row(mib), ms, agent.prove(clone.record.keeper_pid, original)),)

    def _bare_restore(self, mib: int) -> Sequence[Timed]:
        snapshot, original = self._snapshots[mib]
        record, _ = cloning.clone(self._bare_context, snapshot.id)
        with self._node.sandbox(record.id):
            return (Timed(bare_row(mib), self._bare.last.answer_ms, agent.prove(record.keeper_pid, original)),)

    def _hundred(self) -> Sequence[Timed]:
        snapshot, original = self._snapshots[self._sizes[0]]
        begun = time.perf_counter()
        clones = snapshot.clones(self._many)
        try:
            for clone in clones:
                agent.ask(clone.record.keeper_pid)
            ms = (time.perf_counter() - begun) * 1000
            charged = sum(clone.stats().memory for clone in clones)
            (proof,) = {agent.prove(clone.record.keeper_pid, original) for clone in clones[:: max(1, self._many // 10)]}
        finally:
            for clone in clones:
                clone.remove(force=True)
        return Timed(HUNDRED, ms, proof), Timed(HUNDRED_MEMORY, charged / MIBI)

    def _acquire(self) -> Sequence[Timed]:
        while (now := self._pool.statistics()).parked < now.target or now.restoring or now.ending:
            time.sleep(0.01)
        begun = time.perf_counter()
        with self._pool.acquire(timeout=30) as sandbox:
            agent.ask(sandbox.record.keeper_pid)
            ms = (time.perf_counter() - begun) * 1000
            return (Timed(ACQUIRE, ms, agent.prove(sandbox.record.keeper_pid, self._golden)),)


def requirements(found: Mapping[str, Summary]) -> list[Requirement]:
    """The bars of clones, by medians of one interleaved run."""
    return [
        Requirement(
            f"{clone_row(MIB)}, against {bare_row(MIB)}", found[clone_row(MIB)].p50 / found[bare_row(MIB)].p50, 0.4,
            "times",
        ),
        Requirement(
            f"{clone_row(LARGE_MIB)}, against {bare_row(LARGE_MIB)}",
            found[clone_row(LARGE_MIB)].p50 / found[bare_row(LARGE_MIB)].p50, 0.15, "times",
        ),
        Requirement(PRIVATE, found[PRIVATE].p50, 3, "MiB"),
        Requirement(HUNDRED, found[HUNDRED].p50, 1500, "ms"),
        Requirement(HUNDRED_MEMORY, found[HUNDRED_MEMORY].p50, 300, "MiB"),
        Requirement(ACQUIRE, found[ACQUIRE].p50, 5, "ms"),
    ]  # fmt: skip
