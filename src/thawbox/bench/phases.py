"""Where the milliseconds of create, restore, clone and acquire go, by the steps that the node tells of (telemetry).

Being told costs something: CRIU asks before it goes on at each of its phases. The figures without are in `clones`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, cast

from thawbox.bench import agent
from thawbox.bench.rounds import Scenario, Timed
from thawbox.bench.samples import Summary
from thawbox.config import Settings
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.pool import PoolSpec
from thawbox.sandbox import Sandbox
from thawbox.telemetry import Step, Telemetry

MIB = 64
_PARTS = {
    "shell": "the shell: taken from the reserve, or made (directories, cgroups, namespaces, mounts)",
    "template.until-fork": "template: asked, and its turn",
    "template.fork": "template: forked, with all its memory",
    "template.cgroups": "template: cgroups joined",
    "template.namespaces": "template: namespaces entered",
    "criu.until-pre-restore": "CRIU: entered, options and images read",
    "criu.until-setup-namespaces": "CRIU: the root task is forked",
    "criu.until-post-setup-namespaces": "CRIU: its clocks and SysV objects",
    "criu.until-post-restore": "CRIU: tasks forked, memory, files, threads",
    "criu.until-pre-resume": "CRIU: credentials and seccomp filters",
    "criu.until-end": "CRIU: let go of, and its answer",
    "hooks": "programs told",
    "ready": "readiness",
    "pool.lease": "parked clone: leased, in the journal",
    "pool.thaw": "parked clone: thawed",
}
REST = "the rest: snapshot found, journal, locks, init's first answer"
ANSWER = "the agent's first answer"
ACQUIRE, READY, EAGER, RESTORE, CREATE = ROADS = (
    "acquire of a parked clone",
    "clone, memory and shell held ready",
    "clone, nothing held ready",
    "restore, nothing held ready",
    "create, of a program that does nothing",
)


def row_of(road: str, part: str) -> str:
    return f"{road} · {part}"


class Phases:
    """An agent's snapshot on a node that tells of its steps. A context manager."""

    def __init__(self, settings: Settings, *, mib: int = MIB) -> None:
        self._mib = mib
        self._ended: list[Step] = []
        self._node = Node(settings, telemetry=Telemetry(self._observe))
        self._undo = ExitStack()

    def _observe(self, step: Step) -> Callable[[], None]:
        return lambda: self._ended.append(step)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self._node)
            original = self._node.run(Spec(agent.command(self._mib)))
            undo.callback(original.remove, force=True)
            self._answer = agent.ask(original.record.keeper_pid, whole=True)
            self._original = original
            self._snapshot = original.checkpoint(stop=True)
            undo.callback(lambda: self._node.context.store.remove(self._snapshot.id))
            self._open_pool(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open_pool(self, undo: ExitStack) -> None:
        self._node.create_template("phases", Spec(agent.command(self._mib), ready=f"tcp:{agent.PORT}"))
        undo.callback(self._node.remove_template, "phases")
        self._node.create_pool(PoolSpec("phases", "phases", low=1, high=1, limit=2))
        undo.callback(self._node.remove_pool, "phases", force=True)
        self._pool = self._node.open_pool("phases")
        undo.callback(self._pool.drain, timeout=0)
        with self._pool.acquire(timeout=60) as sandbox:
            self._golden = agent.ask(sandbox.record.keeper_pid, whole=True)

    def scenarios(self) -> list[Scenario]:
        parts = {**{name: name for name in _PARTS.values()}, REST: REST, ANSWER: ANSWER}
        return [
            Scenario(road, {row_of(road, part): clock for part, clock in parts.items()}, measure)
            for road, measure in {
                ACQUIRE: self._acquired,
                READY: self._ready,
                EAGER: self._eager,
                RESTORE: self._restored,
                CREATE: self._created,
            }.items()
        ]

    def _acquired(self) -> Sequence[Timed]:
        while (now := self._pool.statistics()).parked < now.target or now.restoring or now.ending:
            time.sleep(0.01)
        self._ended.clear()
        with self._pool.acquire(timeout=30) as sandbox:
            return self._measured(ACQUIRE, sandbox, "pool.acquire", self._golden)

    def _ready(self) -> Sequence[Timed]:
        if not self._snapshot.warm(shells=1):
            raise AssertionError("this criu has no template servers")
        try:
            self._node.context.reserve.wait_full(self._snapshot.id, timeout=10)
            self._ended.clear()
            with self._snapshot.clone() as clone:
                return self._measured(READY, clone, "clone", self._answer)
        finally:
            self._snapshot.cool()

    def _eager(self) -> Sequence[Timed]:
        self._ended.clear()
        with self._snapshot.clone(eager=True) as clone:
            return self._measured(EAGER, clone, "clone", self._answer)

    def _restored(self) -> Sequence[Timed]:
        self._ended.clear()
        restored, _ = self._snapshot.restore(eager=True)
        try:
            return self._measured(RESTORE, restored, "restore", self._answer)
        finally:
            restored.stop(timeout=0)

    def _created(self) -> Sequence[Timed]:
        self._ended.clear()
        with self._node.run(Spec(("sleep", "600"))) as sandbox:
            return self._measured(CREATE, sandbox, "run", None)

    def _measured(self, road: str, sandbox: Sandbox, whole: str, original: agent.Answer | None) -> Sequence[Timed]:
        """The parts of what brought `sandbox`, and its first answer: none where there is no `original` to compare."""
        begun = time.perf_counter()
        if original is not None:
            agent.ask(sandbox.record.keeper_pid)
        answer_ms = (time.perf_counter() - begun) * 1000
        (step,) = [one for one in self._ended if one.name == whole and one.parent is None]  # not the pool's own
        inside = {name: 0.0 for name in _PARTS}
        for one in self._ended:
            if one.name in inside and _is_within(one, step):
                inside[one.name] += one.seconds * 1000
        rest = step.seconds * 1000 - sum(inside.values())
        proof = "" if original is None else agent.prove(sandbox.record.keeper_pid, original)
        return [
            *(Timed(row_of(road, _PARTS[name]), ms, proof) for name, ms in inside.items()),
            Timed(row_of(road, REST), rest, proof), Timed(row_of(road, ANSWER), answer_ms, proof),
        ]  # fmt: skip


def _is_within(step: Step, whole: Step) -> bool:
    at = step.parent
    while at is not None and at is not whole:
        at = at.parent
    return at is whole


def table(found: Mapping[str, Summary]) -> str:
    """The medians as a Markdown table, a column for each road. Sums of medians are not exact."""
    lines = [f"| ms (p50) | {' | '.join(ROADS)} |", "|---|" + "--:|" * len(ROADS)]
    for part in (*_PARTS.values(), REST, ANSWER):
        lines.append(f"| {part} | {' | '.join(f'{found[row_of(road, part)].p50:.2f}' for road in ROADS)} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Summary], out: Path) -> bool:
    """Draw the medians as stacked bars into `out` (.svg and .png); False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "thawbox"  # the same picture gives the same file
    figure, drawn = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    axes: Any = drawn  # matplotlib's types are partly unknown
    left = [0.0] * len(ROADS)
    for number, part in enumerate((*_PARTS.values(), REST, ANSWER)):
        values = [max(0.0, found[row_of(road, part)].p50) for road in ROADS]
        axes.barh(ROADS, values, left=left, color=mpl.colormaps["tab20"](number), label=part)
        left = [begin + value for begin, value in zip(left, values, strict=True)]
    axes.set_xlabel(f"milliseconds, {MIB} MiB Python agent: medians of each part")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    cast(Any, figure).legend(loc="outside lower center", ncols=2, fontsize="x-small", frameon=False)
    figure.savefig(str(out.with_suffix(".svg")), metadata={"Date": None})  # pyright: ignore[reportUnknownMemberType]
    figure.savefig(str(out.with_suffix(".png")), dpi=110)  # pyright: ignore[reportUnknownMemberType]
    pyplot.close(figure)
    return True
