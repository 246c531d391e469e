"""What a run says: a table per workload, every bar met or not, ratios to compare the next run with, and two plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thawbox.bench.peers.contender import COLD, RESTORE
from thawbox.bench.peers.ours import ACQUIRE, CLONE, FORK
from thawbox.bench.peers.run import RESTORES, Outcome, row_of
from thawbox.bench.report import Requirement, markdown, write_samples
from thawbox.bench.samples import Summary, summarise
from thawbox.errors import NotFound

BASE = ("bare criu", RESTORE)
"""What every ratio is against: within one workload, of the same run."""
OTHERS = ("podman", "runc", "crun", "gVisor runsc")
MOVED = 0.25
"""Relative change of a ratio that is worth a person's look."""

Ratios = dict[str, float]


def ratios_of(summaries: Mapping[str, Summary]) -> Ratios:
    """Each row's median against the median of bare criu's restore of the same workload."""
    found: Ratios = {}
    for row, summary in summaries.items():
        base = summaries.get(row_of(row.split(" · ")[0], *BASE))
        if base is not None and base.p50:
            found[row] = summary.p50 / base.p50
    return found


def moved(now: Ratios, before: Ratios) -> list[tuple[str, float, float]]:
    """The rows whose ratio moved by more than a quarter, with what it was and what it is, the furthest first."""
    both = [(row, before[row], now[row]) for row in now if before.get(row)]
    far = [one for one in both if abs(one[2] / one[1] - 1) > MOVED]
    return sorted(far, key=lambda one: -abs(one[2] / one[1] - 1))


def read_ratios(path: Path) -> Ratios:
    """The ratios that a run left; raises NotFound."""
    if not path.exists():
        raise NotFound(
            f"there is no earlier run to compare with at {path}", remediation="make one with `thawbox bench`"
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return {str(row): float(ratio) for row, ratio in found["ratios"].items()}


def bars(summaries: Mapping[str, Summary], workload: str) -> list[Requirement]:
    """The bars that this run can see, at one workload: those whose rows are there."""

    def p50(contender: str, verb: str) -> float | None:
        summary = summaries.get(row_of(workload, contender, verb))
        return None if summary is None else summary.p50

    found: list[Requirement] = []
    restored, cloned, acquired = (p50("thawbox", verb) for verb in (RESTORE, CLONE, ACQUIRE))
    bare = p50(*BASE)
    others = {name: ms for name in OTHERS if (ms := p50(name, RESTORE)) is not None}
    if cloned is not None and bare is not None:
        found.append(Requirement(f"{workload}: {CLONE}, against bare criu restore", cloned / bare, 0.4, "times"))
    if acquired is not None:
        found.append(Requirement(f"{workload}: {ACQUIRE} to first answer", acquired, 5, "ms"))
    if restored is not None and others:
        fastest = min(others, key=lambda name: others[name])
        what = f"{workload}: restore with no template, against the fastest other ({fastest})"
        found.append(Requirement(what, restored / others[fastest], 0.5, "times"))
    return found


def write_report(out: Path, outcome: Outcome, *, command: str, facts: Mapping[str, str]) -> str:
    """Write peers.{md,csv,json} and, where matplotlib is, peers.{svg,png} into `out`; returns the Markdown."""
    summaries = summarise(outcome.samples)
    ratios = ratios_of(summaries)
    names = list(dict.fromkeys(row.split(" · ")[0] for row in summaries))
    told = {**facts, "quiet": f"{sum(outcome.quiet)} of {len(outcome.quiet)} measurements began with idle cores"}
    text = markdown(
        "thawbox beside what one would use instead", command=command, facts=told, summaries=summaries,
        clocks=_clocks(outcome), requirements=[bar for name in names for bar in bars(summaries, name)], notes=NOTES,
    )  # fmt: skip
    glance = "\n".join(_glance(summaries, ratios, names))
    text = text.replace("## Measured\n", f"## At a glance\n\n{glance}\n\n## Measured\n", 1)
    if outcome.missing:
        lines = "\n".join(f"* **{name}**: {why}" for name, why in outcome.missing.items())
        text += f"\n## Not measured\n\n{lines}\n"
    if outcome.failures:
        counted = Counter(failure.split(":")[0] for failure in outcome.failures)
        lines = "\n".join(f"* {what}: {times} times" for what, times in counted.items())
        text += f"\n## Failed, and measured again\n\n{lines}\n\nThe last words: {outcome.failures[-1][:300]}\n"
    out.mkdir(parents=True, exist_ok=True)
    write_samples(out / "peers.csv", outcome.samples)
    (out / "peers.json").write_text(
        json.dumps({"command": command, "ratios": {row: round(ratio, 4) for row, ratio in ratios.items()}}, indent=1)
        + "\n"
    )
    if plot(out, summaries, names):
        text = text.replace("## At a glance\n", "## At a glance\n\n![medians](peers.svg)\n", 1)
    (out / "peers.md").write_text(text)
    return text


def _clocks(outcome: Outcome) -> dict[str, str]:
    """Every row's clock, told once: the rows of later workloads say the same as those of the first."""
    seen: dict[str, str] = {}
    told: dict[str, str] = {}
    for row, clock in outcome.clocks.items():
        workload, _, what = row.partition(" · ")
        told[row] = clock if what not in seen else f"as for {seen[what]}"
        seen.setdefault(what, workload)
    return told


def _glance(summaries: Mapping[str, Summary], ratios: Ratios, names: Sequence[str]) -> list[str]:
    """For each workload, how long everyone takes to bring a program back, beside starting it anew."""
    lines: list[str] = []
    for name in names:
        rows = [row for row in summaries if row.startswith(f"{name} · ")]
        shown = [row for row in rows if row.rsplit(" · ", 1)[1] in (*RESTORES, FORK, COLD)]
        lines += [f"### {name}", "", "| | p50 | against bare criu restore |", "|---|--:|--:|"]
        for row in sorted(shown, key=lambda one: summaries[one].p50):
            what = ", ".join(row.split(" · ")[1:])
            what = f"**{what}**" if what.startswith("thawbox") else what
            lines.append(f"| {what} | {summaries[row].p50:.1f} ms | {ratios.get(row, float('nan')):.2f} |")
        lines.append("")
    return lines


_COLOURS = {"thawbox": "#0f766e", "bare criu": "#475569", "fork() of a warm process": "#a3a3a3"}


def plot(out: Path, summaries: Mapping[str, Summary], names: Sequence[str]) -> bool:
    """Draw the glance as horizontal bars on a logarithmic scale; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "thawbox"  # the same picture gives the same file
    figure, axes = pyplot.subplots(
        len(names), 1, figsize=(9, 0.6 + 2.6 * len(names)), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        rows = [row for row in summaries if row.startswith(f"{name} · ")]
        shown = [row for row in rows if row.rsplit(" · ", 1)[1] in (*RESTORES, FORK, COLD)]
        shown.sort(key=lambda one: -summaries[one].p50)
        labels = [", ".join(row.split(" · ")[1:]) for row in shown]
        middles = [summaries[row].p50 for row in shown]
        errors = [[0.0] * len(shown), [summaries[row].p95 - summaries[row].p50 for row in shown]]
        colours = [_COLOURS.get(row.split(" · ")[1], "#d97706") for row in shown]
        axis.barh(labels, middles, xerr=errors, color=colours, ecolor="#00000055", height=0.7)
        for place, middle in enumerate(middles):
            axis.annotate(f"{middle:.1f}", (middle, place), xytext=(4, 0), textcoords="offset points", va="center")
        axis.set_xscale("log")
        axis.set_xlim(right=max(middles) * 2)
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("milliseconds to the first answer: median, whisker to p95; logarithmic")
    figure.savefig(str(out / "peers.svg"), metadata={"Date": None})  # pyright: ignore[reportUnknownMemberType]
    figure.savefig(str(out / "peers.png"), dpi=110)  # pyright: ignore[reportUnknownMemberType]
    pyplot.close(figure)
    return True


NOTES = (
    "Every sample of a restore, clone or acquire was proven: the program told the nonce that the frozen one had made "
    "in its memory; a cold start told another.",
    "runc, podman and bare criu use upstream's CRIU, of the same release and settings as thawbox's, without its "
    "patches: Debian 12's own fails on this kernel. Their network namespaces and root directories are made before the "
    "clock starts; thawbox makes its own within it.",
    "`checkpoint` of thawbox ends when the snapshot is flushed, hashed and listed; the others leave their images to "
    "the page cache.",
    "A cold start by thawbox ends when the program is ready, where its spec says when; by the others with its first "
    "answer, which the golden agent gives long before it has loaded.",
)
