"""`thawbox bench`: thawbox beside what one would use instead, on this machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.output import human_ms, json_option, print_json, print_table
from thawbox.errors import InvalidRequest

if TYPE_CHECKING:
    from thawbox.bench.peers.run import Outcome, Plan
    from thawbox.bench.peers.workloads import Workload

_QUICK_ROUNDS = 5
_CHECKOUT = Path(__file__).parents[3]
_LAST_REPORT = _CHECKOUT / "docs" / "benchmarks" / "peers.json"


@click.command("bench", short_help="Measure this machine, beside criu, runc, podman and gVisor.")
@click.option("--quick", is_flag=True, help="One workload, few rounds: what moved since the last report?")
@click.option("--rounds", type=click.IntRange(min=1), help="Measurements of each row. Default: 20; 10 above 64 MiB.")
@click.option(
    "--workload", "chosen", multiple=True, metavar="WORD", help="Only workloads whose name has it. Repeatable."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order within each round.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write report, samples and plots there.")
@click.option(
    "--against", type=click.Path(path_type=Path, dir_okay=False), help="With --quick: the peers.json to compare with."
)
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Measure a program of yours too: its spec, as for `thawbox run`. On port 8000 it must tell, as JSON, a nonce "
    "that it made in its memory.",
)
@click.option("--nonce-path", default="/", show_default=True, metavar="PATH", help="Where it tells that.")
@click.option(
    "--runsc",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="gVisor's program. Default: the one found.",
)
@json_option
def bench_command(
    *, quick: bool, rounds: int | None, chosen: tuple[str, ...], seed: int, out: Path | None, against: Path | None,
    spec_file: str | None, nonce_path: str, runsc: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Restore, clone, acquire, checkpoint and start programs by thawbox and by what one would use instead.

    Everything is measured in one run, interleaved in random order, since no machine is equally fast for long; every
    restored program must tell the nonce that the frozen one made in its memory. What is not installed is left out by
    name (`scripts/setup-peers` installs it on Debian). It works in a directory of its own and leaves nothing behind.

    \b
      thawbox bench --quick
      thawbox bench --workload 64 --rounds 20 --out /tmp/report
      thawbox bench --spec agent.json --nonce-path /state --workload agent

    With --json: {"rows": [{"row", "n", "p50", "p95", "p99", "ratio"}], "missing": {name: why}, "moved": [{"row",
    "before", "now"}]}; milliseconds; `ratio` is against bare criu's restore of the same workload.
    """
    from thawbox.bench.machine import machine_facts
    from thawbox.bench.peers import report
    from thawbox.bench.samples import summarise

    facts = machine_facts()
    outcome = _measured(
        _plan(_own(spec_file, nonce_path), quick=quick, rounds=rounds, chosen=chosen, seed=seed, runsc=runsc)
    )
    summaries = summarise(outcome.samples)
    ratios = report.ratios_of(summaries)
    before = report.read_ratios(against or _LAST_REPORT) if against or (quick and _LAST_REPORT.exists()) else {}
    moved = report.moved(ratios, before)
    if out is not None:
        words = [f"--rounds {rounds}"] * bool(rounds) + [f"--workload {word!r}" for word in chosen] + [f"--seed {seed}"]
        report.write_report(out, outcome, command=f"thawbox bench {' '.join(words)}", facts=facts)
    if as_json:
        print_json({
            "rows": [
                {"row": one.row, "n": one.n, "p50": round(one.p50, 3), "p95": round(one.p95, 3),
                 "p99": round(one.p99, 3), "ratio": round(ratios[one.row], 4) if one.row in ratios else None}
                for one in summaries.values()
            ],
            "missing": outcome.missing,
            "moved": [{"row": row, "before": then, "now": now} for row, then, now in moved],
        })  # fmt: skip
        return
    rows = [
        (one.row, str(one.n), human_ms(one.p50), human_ms(one.p95), _in_words(ratios.get(one.row)))
        for one in sorted(summaries.values(), key=lambda one: one.p50)
    ]  # fmt: skip
    print_table(("WHAT", "N", "P50", "P95", "AGAINST BARE CRIU"), rows)
    for name, why in outcome.missing.items():
        click.echo(f"not measured: {name}: {why}")
    for row, then, now in moved:
        click.echo(f"moved: {row}: {then:.2f} times bare criu's restore in the last report, {now:.2f} now")
    if before and not moved:
        click.echo("nothing moved by more than a quarter since the last report")


def _in_words(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _own(spec_file: str | None, nonce_path: str) -> Workload | None:
    if spec_file is None:
        return None
    from thawbox.bench.peers.workloads import of_spec
    from thawbox.cli.spec_text import spec_from

    return of_spec(spec_from({}, file=spec_file), path=nonce_path)


def _plan(
    own: Workload | None, *, quick: bool, rounds: int | None, chosen: tuple[str, ...], seed: int, runsc: Path | None
) -> Plan:
    from thawbox.bench.peers import workloads
    from thawbox.bench.peers.run import Plan

    small: list[Workload] = [workloads.python(64)]
    if not quick:
        small = [workloads.python(0), *small, workloads.tables(), workloads.node_server()]
    small += [own] if own is not None else []
    large = [] if quick else [workloads.python(256), workloads.python(1024)]
    usual = _QUICK_ROUNDS if quick else 20
    listed = [(one, rounds or usual) for one in small] + [(one, rounds or usual // 2) for one in large]
    wanted = tuple(
        (one, count) for one, count in listed if not chosen or any(word.lower() in one.name.lower() for word in chosen)
    )
    if not wanted:
        names = ", ".join(one.name for one, _ in listed)
        raise InvalidRequest(f"no workload is called like {' or '.join(chosen)}", remediation=f"there are: {names}")
    return Plan(wanted, seed=seed, patience=0.5 if quick else 2.0, runsc=runsc or _find_runsc())


def _find_runsc() -> Path | None:
    own = _CHECKOUT / ".cache" / "peers" / "usr" / "bin" / "runsc"
    found = shutil.which("runsc")
    return own if own.exists() else Path(found) if found else None


def _measured(plan: Plan) -> Outcome:
    from thawbox.bench.peers.run import run_plan
    from thawbox.config import load_settings
    from thawbox.node import Node

    with tempfile.TemporaryDirectory(prefix="thawbox-bench-") as scratch, contextlib.ExitStack() as undo:
        node = undo.enter_context(Node(load_settings(home=Path(scratch) / "home")))
        undo.callback(node.tidy)
        with _progress() as progress:
            return run_plan(node, Path(scratch), plan, progress=progress)


@contextlib.contextmanager
def _progress() -> Generator[Callable[[str, int, int], None]]:
    """A progress bar where somebody looks: what is measured, of how many."""
    import sys

    if not sys.stderr.isatty():
        yield lambda _what, _done, _most: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task: Any = bar.add_task("", total=None)
        yield lambda what, done, most: bar.update(task, description=what, completed=done, total=most)
