"""`thawbox preflight`."""

from __future__ import annotations

import click

from thawbox import views
from thawbox.cli import exit_status
from thawbox.cli.names import opened, sandbox_argument
from thawbox.cli.output import json_option, print_json


@click.command("preflight", short_help="Name what in a sandbox cannot be frozen.")
@sandbox_argument
@json_option
def preflight_command(name: str, as_json: bool) -> int:
    """Look through every process and descriptor of a sandbox for what a checkpoint would refuse, and say what to do.

    A checkpoint does the same first. Exits with the status of an unfit host when something would make it fail.

    With --json: {"ok", "findings": [{"pid" (inside), "program", "where", "what", "cause", "remediation",
    "blocking"}]}; what is not blocking may go well.
    """
    with opened() as node:
        findings = node.sandbox(name).preflight()
    shown = views.preflight_findings(findings)
    ok = shown["ok"]
    if as_json:
        print_json(shown)
        return 0 if ok else exit_status.UNFIT
    for finding in findings:
        click.echo(f"{'refused' if finding.blocking else 'perhaps'}  {finding}")
        click.echo(f"         {finding.remediation}")
    click.echo("It can be checkpointed." if ok else "It cannot be checkpointed.")
    return 0 if ok else exit_status.UNFIT
