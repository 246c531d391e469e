"""The simulation, drawn. matplotlib is a development tool: it is imported here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thawbox.cluster.simulate import Result
from thawbox.cluster.trace import Trace
from thawbox.errors import Unsupported


def draw(result: Result, trace: Trace, out: Path) -> None:
    """Clones and waiting claims over time, the 99th percentile of each ten seconds, losses and bursts marked."""
    try:
        import matplotlib as untyped
    except ImportError as missing:
        raise Unsupported("matplotlib is not installed", remediation="pip install matplotlib") from missing
    matplotlib: Any = untyped
    matplotlib.use("Agg")
    import matplotlib.pyplot as untyped_plots

    plots: Any = untyped_plots
    figure, (clones, latency) = plots.subplots(2, 1, figsize=(10, 7), sharex=True)
    at = [moment / 60 for moment in result.series["at"]]
    for name, colour in (("leased", "tab:blue"), ("parked", "tab:green"), ("waiting", "tab:red")):
        clones.plot(at, result.series[name], label=name, color=colour, linewidth=1)
    clones.set_ylabel("clones, claims")
    clones.set_title(f"{trace.claims:,} claims on {trace.nodes:,} nodes (simulated)")
    latency.plot(at, result.series["p99_ms"], color="tab:purple", linewidth=1, label="p99 of ten seconds")
    latency.set_yscale("log")
    latency.set_ylabel("ms until the clone runs")
    latency.set_xlabel("minutes")
    for axes in (clones, latency):
        for burst in trace.bursts:
            axes.axvspan(burst.at / 60, (burst.at + burst.seconds) / 60, color="tab:orange", alpha=0.25)
        for loss in trace.losses:
            axes.axvline(loss.at / 60, color="black", linestyle=":", linewidth=1)
        axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(out)
    plots.close(figure)
