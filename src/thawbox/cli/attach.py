"""`run --attach`: the main program's output here, its exit status ours."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

import click

from thawbox.cli import exit_status
from thawbox.cli.names import opened
from thawbox.errors import SandboxNotFound
from thawbox.host.init_wire import Stream
from thawbox.sandbox.observe import exit_status as status_of

if TYPE_CHECKING:
    from thawbox.host.init_log import LogRecord
    from thawbox.sandbox import Sandbox


def write_record(record: LogRecord, content: bytes) -> None:
    """What the program printed, to the stream it went to; init's own words to stderr."""
    target = sys.stdout.buffer if record.stream is Stream.STDOUT else sys.stderr.buffer
    target.write(content)
    target.flush()


def follow_to_end(identity: str, *, remove: bool) -> int:
    """Print what the main program of a sandbox prints until it ends; its exit status. Interrupted, it runs on.

    With `remove` the sandbox is gone afterwards, in every case.
    """
    with contextlib.ExitStack() as undo:
        node = undo.enter_context(opened())
        sandbox = node.sandbox(identity)
        if remove:
            undo.callback(_remove, sandbox)
        try:
            for printed in sandbox.logs(follow=True):
                write_record(printed, printed.content)
        except KeyboardInterrupt:
            if not remove:
                click.echo(f"thawbox: {sandbox.name} runs on; `thawbox stop {sandbox.name}` ends it", err=True)
            return exit_status.INTERRUPTED
        record = sandbox.record
        status = status_of(node.context, record)
        if status is None:
            click.echo(f"thawbox: {sandbox.name}: {record.ended_why}", err=True)
            return 128 + signal.SIGKILL
        return status


def _remove(sandbox: Sandbox) -> None:
    with contextlib.suppress(SandboxNotFound):
        sandbox.remove(force=True)
