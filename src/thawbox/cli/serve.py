"""`thawbox serve`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from thawbox.cli.names import opened
from thawbox.cli.output import json_option, print_json

if TYPE_CHECKING:
    from pathlib import Path


@click.command("serve", short_help="Keep pools filled and sandboxes alive.")
@json_option
def serve_command(as_json: bool) -> None:
    """Keep every pool of this node filled and watch over its supervised sandboxes, until SIGTERM or Ctrl-C.

    Other commands find it by its socket below THAWBOX_HOME, which only root can open. When it ends, or is killed, what
    is parked and leased stays as it is; the next start takes it up.

    With --json: {"socket"}, once it answers.
    """
    from thawbox.api.serving import serve

    def ready(socket: Path) -> None:
        if as_json:
            print_json({"socket": str(socket)})
        else:
            click.echo(f"serving on {socket}")
        sys.stdout.flush()

    with opened() as node:
        serve(node, ready=ready)
