"""`thawbox supervise`."""

from __future__ import annotations

from typing import Any

import click

from thawbox.cli.desk import reached
from thawbox.cli.names import sandbox_argument
from thawbox.cli.output import json_option, print_json


@click.command("supervise", short_help="Have a sandbox brought back when it dies.")
@click.option(
    "--restart",
    type=click.Choice(["no", "on-failure", "always"]),
    default="on-failure",
    show_default=True,
    help="Which ends are answered by a restore; a stop never is.",
)
@click.option(
    "--health",
    metavar="PROBE",
    help="Ask again and again whether it is well: cmd:COMMAND, http://HOST:PORT/PATH, tcp:PORT.",
)
@click.option("--health-interval", metavar="SPAN", help="Between two askings. Default: 10s.")
@click.option("--health-timeout", metavar="SPAN", help="How long each may take. Default: 5s.")
@click.option("--health-threshold", type=int, metavar="N", help="Refusals in a row that mean a hang. Default: 3.")
@click.option("--checkpoint-every", metavar="SPAN", help="Take a snapshot that often, if anything changed.")
@click.option("--checkpoint-on-pressure", is_flag=True, help="Take one when it comes near its memory limit, too.")
@click.option("--checkpoint-on-drain", is_flag=True, help="Take one when `thawbox serve` stops, too.")
@click.option("--keep", type=int, default=3, show_default=True, metavar="N", help="How many of those snapshots stay.")
@click.option("--spare", is_flag=True, help="Hold the newest snapshot's memory ready: faster, and costs that memory.")
@click.option("--off", is_flag=True, help="Watch over it no longer; forget its recoveries.")
@sandbox_argument
@json_option
def supervise_command(
    *,
    name: str,
    restart: str,
    checkpoint_every: str | None,
    checkpoint_on_pressure: bool,
    checkpoint_on_drain: bool,
    keep: int,
    spare: bool,
    off: bool,
    as_json: bool,
    **health: Any,
) -> None:
    """Have a sandbox watched over by `thawbox serve`: what dies or hangs is restored from its newest good snapshot.

    It comes back under the same id, name, address and limits. A first snapshot is taken now if there is none.

    \b
      thawbox supervise agent --health http://127.0.0.1:8000/ --checkpoint-every 30s

    With --json: {"id", "name", "restart", "is_watched"}; "is_watched" is false while no `thawbox serve` runs.
    """
    from thawbox.cli import spec_text
    from thawbox.model import Restart
    from thawbox.restart_plan import Policy, check_policy

    policy = Policy(
        restart=Restart(restart),
        health=spec_text.read_health({key: value for key, value in health.items() if value is not None}),
        checkpoint_every=spec_text.read_span(checkpoint_every) if checkpoint_every else 0.0,
        checkpoint_on_pressure=checkpoint_on_pressure,
        checkpoint_on_drain=checkpoint_on_drain,
        keep=keep,
        spare=spare,
    )
    if not off:
        check_policy(policy)
    with reached() as node:
        done = node.leave_alone(name) if off else node.supervise(name, policy)
        is_watched = node.is_served and not off
    if as_json:
        print_json({**done, "restart": "no" if off else restart, "is_watched": is_watched})
        return
    click.echo(done["name"])
    if not off and not is_watched:
        click.echo("thawbox: nothing watches yet: start `thawbox serve`", err=True)
