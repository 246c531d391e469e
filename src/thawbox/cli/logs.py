"""`thawbox logs`."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from thawbox import views
from thawbox.cli.names import opened, sandbox_argument
from thawbox.cli.output import json_option, print_json, timestamp

if TYPE_CHECKING:
    from thawbox.host.init_log import LogRecord
    from thawbox.sandbox import Sandbox


@click.command("logs", short_help="Print what a sandbox's program printed.")
@sandbox_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what it prints from now on, until it ends.")
@click.option(
    "--since", metavar="SPAN|TIME", help="Only what was printed in the last 15m, 2h, …, or since an ISO 8601 time."
)
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines (before following).")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with when it was printed, in UTC.")
@json_option
def logs_command(
    *, name: str, follow: bool, since: str | None, tail: int | None, timestamps: bool, as_json: bool
) -> None:
    """Print the log of a sandbox, running or ended: its stdout to stdout, its stderr to stderr.

    What `exec --detach` started prints here too. The log outlives restores; old lines are dropped at 12 MiB.

    With --json: {"records": [{"time", "stream", "session", "text"}]}, where session 0 is the main program; with
    --follow, one such record a line.
    """
    begin = _moment(since) if since else 0.0
    with opened() as node:
        sandbox = node.sandbox(name)
        records = _chosen(sandbox, begin=begin, tail=tail, follow=follow)
        if as_json and not follow:
            print_json({"records": [views.log_record(record) for record in records]})
            return
        try:
            for record in records:
                _print(record, as_json=as_json, timestamps=timestamps)
        except KeyboardInterrupt:
            if not follow:
                raise


def _moment(text: str) -> float:
    from thawbox.cli.spec_text import read_span
    from thawbox.errors import InvalidRequest

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    try:
        return time.time() - read_span(text)
    except InvalidRequest:
        raise InvalidRequest(
            f"{text!r} is neither a span nor a time", remediation="give 15m, 2h or 2026-01-31T12:00:00Z"
        ) from None


def _chosen(sandbox: Sandbox, *, begin: float, tail: int | None, follow: bool) -> Iterator[LogRecord]:
    from thawbox.host.init_log import cursor_after

    after = None
    if tail is not None:
        kept, last = _last_lines(sandbox.logs(), tail)
        after = cursor_after(last) if last is not None else None
        yield from (record for record in kept if record.time_ns >= begin * 1e9)
        if not follow:
            return
    yield from (record for record in sandbox.logs(after=after, follow=follow) if record.time_ns >= begin * 1e9)


def _last_lines(records: Iterable[LogRecord], count: int) -> tuple[Iterable[LogRecord], LogRecord | None]:
    """The last `count` lines, each as a record of its own, and the record after which to go on."""
    from dataclasses import replace

    lines: deque[LogRecord] = deque(maxlen=count)
    last = None
    for record in records:
        last = record
        lines.extend(replace(record, content=line) for line in record.content.splitlines(keepends=True))
    return lines, last


def _print(record: LogRecord, *, as_json: bool, timestamps: bool) -> None:
    from thawbox.cli.attach import write_record

    if as_json:
        sys.stdout.write(json.dumps(views.log_record(record), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    content = record.content
    if timestamps:
        stamp = f"{timestamp(record.time_ns / 1e9)} ".encode()
        content = b"".join(stamp + line for line in content.splitlines(keepends=True))
    write_record(record, content)
