"""`thawbox exec`."""

from __future__ import annotations

import os

import click

from thawbox.cli import exit_status
from thawbox.cli.names import opened, sandbox_argument
from thawbox.cli.output import json_option, print_json

_REFUSED = "give a program that the sandbox has and may run"
_INTERRUPTED = "look with `thawbox ps` what became of the sandbox"


@click.command("exec", context_settings={"allow_interspersed_args": False}, short_help="Run a command in a sandbox.")
@click.option("-i", "--interactive", is_flag=True, help="Pass our standard input on to it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running in the sandbox; its output goes to the log.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who runs it. Default: as the sandbox.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Where it starts. Default: as the sandbox.")
@click.option(
    "-e",
    "--env",
    "env",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Environment entry, over the sandbox's. Repeatable.",
)
@json_option
@sandbox_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def exec_command(
    *, name: str, interactive: bool, tty: bool, detach: bool, user: str, workdir: str, env: tuple[str, ...],
    as_json: bool, command: tuple[str, ...],
) -> int | None:  # fmt: skip
    """Run COMMAND in a running sandbox, stream its output, and exit with its status (127: no such program).

    What it leaves running in the background belongs to the sandbox and is in its snapshots. A checkpoint meanwhile
    does not disturb it. SIGINT, SIGTERM and SIGHUP are passed on to it; a second one of the same kind ends `exec`.

    \b
      thawbox exec web ps aux
      thawbox exec -it web bash
      tar c . | thawbox exec -i web tar x -C /srv

    With --json and --detach: {"session"}; otherwise --json concerns errors alone,
    also why the command could not be started or can be heard no more.
    """
    from thawbox.cli.failures import Failure, tell_of_command
    from thawbox.cli.spec_text import read_environment
    from thawbox.host.init_client import ExecRefused, ExecSession, Interrupted
    from thawbox.host.init_wire import Terminal

    if command[0] == "--":  # as in `run NAME -- COMMAND`; click takes it for an argument after the first
        command = command[1:]
    if not command:
        raise click.UsageError("no command was given")
    if detach and (interactive or tty):
        raise click.UsageError("--detach leaves nobody to talk to: it goes with neither -i nor -t")
    environment = read_environment(env)
    terminal = None
    if tty:
        from thawbox.cli.terminal import STDIN, size_of

        terminal = size_of(STDIN) or Terminal()
        environment = {"TERM": os.environ.get("TERM", "xterm"), **environment}
    with opened() as node:
        session = node.sandbox(name).exec(
            command, env=environment, user=user, workdir=workdir, terminal=terminal, stdin=interactive, detach=detach
        )
        if isinstance(session, ExecRefused):
            failure = Failure(session.exit_status, "exec.refused", f"{command[0]}: {session.message}", _REFUSED)
            return tell_of_command(failure, as_json=as_json)
        if not isinstance(session, ExecSession):
            print_json({"session": session}) if as_json else click.echo(str(session))
            return 0
        with session:
            from thawbox.cli.terminal import stream

            over = stream(session, stdin=interactive, raw=tty and interactive)
        if isinstance(over, Interrupted):
            failure = Failure(
                exit_status.SESSION_INTERRUPTED, "exec.interrupted", f"interrupted: {over.cause}", _INTERRUPTED
            )
            return tell_of_command(failure, as_json=as_json)
        return over
