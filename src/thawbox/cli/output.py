"""What the commands share in speaking: JSON or words, sizes, ages, tables, progress."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from thawbox.views import timestamp

__all__ = ["coloured_state", "timestamp"]
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STATE_COLOURS = {"running": "green", "frozen": "cyan", "lost": "red", "suspended": "blue"}


def _wanted(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    return value or bool(ctx.find_root().params.get("as_json"))


def json_option(command: _Decorated) -> _Decorated:
    """Give a command `--json` (as the parameter `as_json`) and `--verbose`."""
    with_json = click.option("--json", "as_json", is_flag=True, callback=_wanted, help="Print one JSON object.")
    verbose = click.option("--verbose", is_flag=True, expose_value=False, help="With an error, show the engine's log.")
    return with_json(verbose(command))


def print_json(answer: Mapping[str, object]) -> None:
    """The one object that a command with `--json` prints on stdout."""
    json.dump(answer, sys.stdout, default=str, ensure_ascii=False)
    sys.stdout.write("\n")


def in_words(value: object) -> str:
    """A value of JSON as a person reads it; `-` for nothing."""
    if value is None or value in ("", [], (), {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value)


def human_count(count: int, what: str) -> str:
    """`1 snapshot`, `2 snapshots`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def human_size(size: float | None) -> str:
    """Bytes as a person reads them: `64.0 MiB`; `-` for None."""
    if size is None:
        return "-"
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def human_duration(seconds: float) -> str:
    """A span of time in its largest fitting unit: `42s`, `7m`, `3h`, `12d`."""
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / size:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def human_age(moment: str) -> str:
    """How long ago `moment` (as `timestamp` writes it) was."""
    return human_duration(time.time() - datetime.fromisoformat(moment).timestamp())


def human_ms(milliseconds: float) -> str:
    """Milliseconds with as many digits as mean something."""
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def coloured_state(state: str) -> str:
    """The word for a state; in its colour on a terminal."""
    return click.style(state, fg=_STATE_COLOURS.get(state)) if sys.stdout.isatty() else state


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; the head in bold on a terminal."""
    widths = [max(len(click.unstyle(row[column])) for row in (head, *rows)) for column in range(len(head))]
    for number, row in enumerate((head, *rows)):
        padded = [cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)]
        line = "   ".join(padded).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 and sys.stdout.isatty() else line)


@contextlib.contextmanager
def progress_of_bytes(what: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar on stderr where somebody looks at it; call what it gives with the bytes done and in all."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def counted(total: int, tell: Callable[[int, int], None]) -> Callable[[], None]:
    """To be called after each step; `tell` then hears how many of `total` are done."""
    numbers = itertools.count(1)
    return lambda: tell(next(numbers), total)


@contextlib.contextmanager
def progress_of(what: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar on stderr, where somebody looks at it; call what it gives with the steps done and in all."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=total > 1)
