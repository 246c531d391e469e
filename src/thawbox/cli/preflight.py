"""`thawbox preflight`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from thawbox.cli import exit_status
from thawbox.cli.desk import reached
from thawbox.cli.names import sandbox_argument
from thawbox.cli.output import json_option, print_json, print_table


@click.command("preflight", short_help="Name what in a sandbox cannot be frozen.")
@sandbox_argument
@json_option
def preflight_command(name: str, as_json: bool) -> int:
    """Look through every process and descriptor of a sandbox for what a checkpoint would refuse, and say what to do.

    A checkpoint does the same first. Exits with the status of an unfit host when something would make it fail.

    With --json: {"ok", "findings": [{"pid" (inside), "program", "where", "what", "cause", "remediation",
    "blocking"}]}; what is not blocking may go well.
    """
    with reached() as node:
        found = node.preflight(name)
    ok = found["ok"]
    if as_json:
        print_json(found)
        return 0 if ok else exit_status.UNFIT
    if found["findings"]:
        print_table(("VERDICT", "PID", "PROGRAM", "WHERE", "WHAT", "CAUSE", "REMEDY"), [*map(_row, found["findings"])])
    click.echo("It can be checkpointed." if ok else "It cannot be checkpointed.")
    return 0 if ok else exit_status.UNFIT


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "refused" if one["blocking"] else "perhaps"
    said = (str(one[key]) for key in ("pid", "program", "where", "what", "cause", "remediation"))
    return (verdict, *said)
