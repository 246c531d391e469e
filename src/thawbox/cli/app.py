"""The command's root: which commands there are, and what becomes of whatever one of them raises.

Rule 1: nothing but click is imported before a command is known; every call waits for imports.
Rule 2: a command returns its exit status (None: 0), prints through `output`, and lets errors rise to here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from thawbox.cli import exit_status

_SECTIONS = {
    "Sandboxes": {
        "run": "run", "exec": "exec", "ps": "sandboxes", "inspect": "sandboxes", "logs": "logs", "stats": "sandboxes",
        "cp": "copy", "preflight": "preflight",
        "stop": "sandboxes", "rm": "sandboxes", "freeze": "sandboxes", "thaw": "sandboxes",
    },
    "Snapshots": {
        "checkpoint": "checkpoints", "restore": "checkpoints", "clone": "checkpoints", "fork": "checkpoints",
        "snapshots": "snapshots",
    },
    "Pools": {"template": "template", "pool": "pool"},
    "The service": {"serve": "serve", "token": "token"},
    "Work that must not be lost": {"supervise": "supervise", "workflow": "workflow"},
    "Clusters": {"cluster": "cluster", "k8s": "k8s"},
    "This machine": {"doctor": "doctor", "demo": "demo", "bench": "bench", "completion": "completion"},
}  # fmt: skip
_MODULES = {name: module for section in _SECTIONS.values() for name, module in section.items()}


class _Commands(click.Group):
    """The table above as a click group; a module is imported when its command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"thawbox.cli.{_MODULES[cmd_name]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)  # noqa: S101 - a slip in the table above
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self._summary(ctx, name)) for name in names])

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=90) if command is not None else ""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="thawbox", message="thawbox %(version)s")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; errors too. May also follow the command.")
@click.option("--verbose", is_flag=True, help="With an error, show the engine's log. May also follow the command.")
def thawbox(as_json: bool, verbose: bool) -> None:
    """Freeze running sandboxes, bring them back, clone them.

    A sandbox is a process tree with its own files, network and limits. `checkpoint` makes a snapshot of one while it
    runs; `restore` brings that very sandbox back; `clone` makes new ones that go on from the same moment.

    \b
      thawbox run --name agent -- python3 agent.py
      thawbox checkpoint agent --name warm
      thawbox clone warm -n 3

    State lives below THAWBOX_HOME (default /var/lib/thawbox). docs/cli.md lists the exit statuses.
    """


def _end_by_signal(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # so that what was begun is undone on the way out


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `arguments` (default: the program's own) and exit with its status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if "_THAWBOX_COMPLETE" in os.environ:
        thawbox.main(args, prog_name="thawbox")  # click answers the shell, and exits
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # what JSON is, whatever the locale says
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_by_signal)
    status = run(args)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.exit(status)


def run(args: list[str]) -> int:
    """Carry out one command line and return its exit status; failures are told on stderr."""
    own = args[: args.index("--")] if "--" in args else args
    try:
        return _carried_out(args)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exit_status.USAGE
    except (KeyboardInterrupt, click.Abort):
        return exit_status.INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return exit_status.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last place: what nobody foresaw is told as the defect it is
        from thawbox.cli.failures import SeveralFailed, tell

        errors = error.errors if isinstance(error, SeveralFailed) else [error]
        return tell(errors, as_json="--json" in own, verbose="--verbose" in own)


def _carried_out(args: list[str]) -> int:
    try:
        with thawbox.make_context("thawbox", args) as context:
            status = thawbox.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    return status if isinstance(status, int) else 0


def _forget_output() -> None:
    """Whoever read our output went away: what is still buffered must not fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
