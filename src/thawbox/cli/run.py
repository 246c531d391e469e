"""`thawbox run`."""

from __future__ import annotations

from typing import Any

import click

from thawbox.cli.desk import reached
from thawbox.cli.output import json_option, print_json
from thawbox.cli.spec_options import spec_of, spec_options


@click.command("run", context_settings={"allow_interspersed_args": False}, short_help="Start a sandbox.")
@click.option("--name", help="Its name; also its host name. Default: one is made up.")
@spec_options
@click.option("-a", "--attach", is_flag=True, help="Print its output until it ends, and exit with its status.")
@click.option(
    "--rm", "remove", is_flag=True, help="With --attach: remove the sandbox in the end, whatever that end is."
)
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
def run_command(
    *, spec_file: str | None, attach: bool, remove: bool, as_json: bool, command: tuple[str, ...], **options: Any
) -> int | None:
    """Start COMMAND in a new sandbox and leave it running; print the sandbox's name.

    Returns once the program was started, or, with --ready, once the probe succeeds. If it does not, nothing is left.

    \b
      thawbox run --name web --memory 512M --ready tcp:8000 -- python3 -m http.server
      thawbox run --rm --attach -- sh -c 'echo hello'

    With --json: {"id", "name", "state", "create_ms"}; create_ms is the time until the program was started.
    """
    if remove and not attach:
        raise click.UsageError("--rm needs --attach: a sandbox left running is removed with `thawbox rm`")
    if attach and as_json:
        raise click.UsageError("--json prints one object, --attach the program's output: choose one")
    spec = spec_of(options, command, spec_file)
    with reached() as node:
        started = node.run(spec)
    if attach:
        from thawbox.cli.attach import follow_to_end

        return follow_to_end(started["id"], remove=remove)
    if as_json:
        print_json(started)
    else:
        click.echo(started["name"])
    return None
