"""thawbox itself, bare criu on the same images, and the floor: a process that forks."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from thawbox.bench.bare_criu import BareCriu
from thawbox.bench.peers.contender import CHECKPOINT, COLD, RESTORE, Measured
from thawbox.bench.peers.workloads import PORT, Workload, ask
from thawbox.engines import Place
from thawbox.engines.criu import CriuProgram
from thawbox.errors import Unsupported
from thawbox.host.reach import connect_within
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.pool import Pool, PoolSpec
from thawbox.sandbox import Sandbox, Snapshot, restoring
from thawbox.sandbox.checkpointing import Mode, without_connections

CLONE, ACQUIRE, FORK = "clone from a warm template", "acquire of a parked clone", "fork"


def spec_of(workload: Workload) -> Spec:
    """The workload as thawbox runs it; without hooks, since none of the others would tell the program anything."""
    return Spec(
        workload.command, mounts=workload.mounts, env=dict(workload.env), workdir=workload.workdir,
        ready=workload.ready, ready_timeout=300, hooks="none",
    )  # fmt: skip


class Thawbox:
    """thawbox by its Python API, and bare criu beside it, on the very same snapshot."""

    name = "thawbox"

    def __init__(self, workload: Workload, node: Node) -> None:
        self._workload = workload
        self._node = node
        self._undo = ExitStack()
        self._pool: Pool | None = None
        self._snapshot: Snapshot | None = None
        with ExitStack() as failed:
            failed.callback(self.close)
            self._undo.callback(self._remove_snapshot)  # last: the sandboxes stand on its layers
            self._original = self._undo.enter_context(node.run(spec_of(workload)))
            self._running = self._undo.enter_context(node.run(spec_of(workload)))
            self.nonce = self.ask(self._original)
            self._snapshot = self._original.checkpoint(stop=True)
            failed.pop_all()

    @property
    def clocks(self) -> dict[str, str]:
        return {
            RESTORE: "the call of `restore` with nothing held ready (checks, journal, overlays, cgroups, namespaces, "
                     "network, criu), until the program answered",
            CLONE: "the call of `clone` with memory and a shell (namespaces, cgroups, overlays) of the snapshot held "
                   "ready, until the clone answered",
            ACQUIRE: "the call of `acquire` with a clone parked, until it answered",
            CHECKPOINT: "the call of `checkpoint(full)`, until the snapshot is durable, hashed and listed",
            COLD: "the call of `run`, until the program answered",
        }  # fmt: skip

    def ask(self, sandbox: Sandbox) -> str:
        keeper = sandbox.record.keeper_pid
        return ask(lambda: connect_within(keeper, PORT, timeout=30), self._workload.path)

    def measure(self, verb: str) -> Measured:
        return {
            RESTORE: self._restore, CLONE: self._clone, ACQUIRE: self._acquire, CHECKPOINT: self._checkpoint,
            COLD: self._cold,
        }[verb]()  # fmt: skip

    def _restore(self) -> Measured:
        begun = time.perf_counter()
        sandbox, _ = self.snapshot.restore()
        nonce = self.ask(sandbox)
        ms = (time.perf_counter() - begun) * 1000
        sandbox.stop(timeout=0)
        return Measured(ms, nonce)

    def _clone(self) -> Measured:
        if not self.snapshot.warm():
            raise Unsupported("this criu has no template servers", remediation="run `make setup` to build ours")
        try:
            self._node.context.reserve.wait_full(self.snapshot.id, timeout=10)
            begun = time.perf_counter()
            with self.snapshot.clone() as clone:
                nonce = self.ask(clone)
                return Measured((time.perf_counter() - begun) * 1000, nonce)
        finally:
            self.snapshot.cool()

    def _acquire(self) -> Measured:
        """From a pool whose template is another run of the program: its clones must all tell that one's nonce."""
        pool = self._pool or self._open_pool()
        while (now := pool.statistics()).parked < now.target or now.restoring or now.ending:
            time.sleep(0.01)
        begun = time.perf_counter()
        with pool.acquire() as sandbox:
            nonce = self.ask(sandbox)
            return Measured((time.perf_counter() - begun) * 1000, self.nonce if nonce == self._golden else "")

    def _open_pool(self) -> Pool:
        name = f"bench-{self.snapshot.id[:12]}"
        self._node.create_template(name, spec_of(self._workload))
        self._undo.callback(self._node.remove_template, name)
        self._node.create_pool(PoolSpec(name, name, low=1, high=1, limit=2))
        self._undo.callback(self._node.remove_pool, name, force=True)
        self._pool = self._node.open_pool(name)
        self._undo.callback(self._pool.drain, timeout=0)
        with self._pool.acquire() as sandbox:
            self._golden = self.ask(sandbox)
        return self._pool

    def _checkpoint(self) -> Measured:
        begun = time.perf_counter()
        snapshot = self._running.checkpoint(mode=Mode.FULL)
        ms = (time.perf_counter() - begun) * 1000
        self._node.context.store.remove(snapshot.id)
        return Measured(ms)

    def _cold(self) -> Measured:
        begun = time.perf_counter()
        with self._node.run(spec_of(self._workload)) as sandbox:
            nonce = self.ask(sandbox)
            return Measured((time.perf_counter() - begun) * 1000, nonce)

    def close(self) -> None:
        self._undo.close()

    def _remove_snapshot(self) -> None:
        if self._snapshot is not None:
            self._node.context.store.remove(self._snapshot.id)

    @property
    def snapshot(self) -> Snapshot:
        """The one that is restored and cloned."""
        assert self._snapshot is not None  # noqa: S101 - made at construction
        return self._snapshot

    @property
    def running(self) -> Sandbox:
        return self._running


class Bare:
    """`criu dump` and `criu restore` by themselves: the same images, everything else made before the clock starts."""

    name = "bare criu"

    def __init__(
        self, thawbox: Thawbox, workload: Workload, node: Node, scratch: Path, *, program: CriuProgram
    ) -> None:  # fmt: skip
        self._thawbox = thawbox
        self._images = scratch / "bare-images"
        work = scratch / "bare-work"
        work.mkdir(exist_ok=True)

        def ask_beside(keeper: int) -> str:
            return ask(lambda: connect_within(keeper, PORT, timeout=30), workload.path)

        self._engine = BareCriu(program, work, ask=ask_beside)
        self._node = node
        self._context = replace(node.context, make_engine=lambda: self._engine)
        self.nonce = thawbox.nonce

    @property
    def clocks(self) -> dict[str, str]:
        return {
            RESTORE: "`criu restore` of the same images into namespaces, overlays and cgroups made before, until the "
                     "program answered",
            CHECKPOINT: "`criu dump --leave-running` of the same program, from the start of the command to its exit; "
                        "nothing flushed to the disk, nothing hashed",
        }  # fmt: skip

    def measure(self, verb: str) -> Measured:
        if verb == CHECKPOINT:
            return self._dump()
        record, _ = restoring.restore(self._context, self._thawbox.snapshot.id)
        sandbox = self._node.sandbox(record.id)
        nonce = self._thawbox.ask(sandbox)
        sandbox.stop(timeout=0)
        return Measured(self._engine.last.answer_ms, nonce)

    def _dump(self) -> Measured:
        record = self._thawbox.running.record
        self._images.mkdir()
        try:
            with without_connections(self._node.context, record):
                self._engine.dump(Place(record.keeper_pid), self._images, while_stopped=lambda: None)
        finally:
            shutil.rmtree(self._images)
        return Measured(self._engine.last.whole_ms)

    def close(self) -> None:
        """Nothing is its own: thawbox's sandboxes are frozen and brought back."""


class Fork:
    """The floor: a warm process forks, and the child answers. No identity, no namespaces, no files of its own."""

    name = "fork() of a warm process"

    def __init__(self, thawbox: Thawbox) -> None:
        self._keeper = thawbox.running.record.keeper_pid
        self.nonce = self._ask("/")

    def _ask(self, path: str) -> str:
        return ask(lambda: connect_within(self._keeper, PORT, timeout=30), path)

    @property
    def clocks(self) -> dict[str, str]:
        return {FORK: "a request over the program's socket that a forked child answers"}

    def measure(self, verb: str) -> Measured:  # noqa: ARG002 - it has one
        begun = time.perf_counter()
        nonce = self._ask("/fork")
        return Measured((time.perf_counter() - begun) * 1000, nonce)

    def close(self) -> None:
        """The process is thawbox's."""
