"""`thawbox serve`."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thawbox.cli.output import json_option, print_json

if TYPE_CHECKING:
    from thawbox.api.serving import Answering

_LOOPBACK = ("127.", "::1", "localhost")


@click.command("serve", short_help="Own the node, and answer for it over HTTP.")
@click.option("--host", help="With --port: the address to answer on. Default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Answer on TCP too, for tokens; 0: any port.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A token that opens everything here, too: one that many nodes are given. Read at the start, kept nowhere.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Certificate chain (PEM): HTTPS.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--drain-timeout",
    metavar="SPAN",
    default="30s",
    show_default=True,
    help="How long what is under way may take to end after SIGTERM.",
)
@json_option
def serve_command(
    *, host: str | None, port: int | None, token_file: Path | None, tls_cert: Path | None, tls_key: Path | None,
    drain_timeout: str, as_json: bool,
) -> None:  # fmt: skip
    """Keep every pool of this node filled, watch over its supervised sandboxes, and answer on a socket below
    THAWBOX_HOME, which only root can open, until SIGTERM or Ctrl-C.

    Other commands find it by that socket. SIGTERM lets what is under way end; what is parked, leased and running stays
    as it is, also when the service is killed; the next start takes it up.

    With --json: {"socket", "url" (null without --port)}, once it answers.
    """
    from thawbox.api.observing import observing_as
    from thawbox.api.serving import Listening, serve
    from thawbox.api.tokens import read_secret
    from thawbox.cli.spec_text import read_span
    from thawbox.config import load_settings
    from thawbox.node import Node

    def ready(where: Answering) -> None:
        if as_json:
            print_json({"socket": str(where.socket), "url": where.url})
        else:
            click.echo(f"serving on {where.socket}{f' and {where.url}' if where.url else ''}")
        sys.stdout.flush()

    if not as_json and port is not None and tls_cert is None and host and not host.startswith(_LOOPBACK):
        click.echo(f"thawbox: tokens and all else travel readable to {host}: see --tls-cert", err=True)
    secret = read_secret(token_file) if token_file is not None else ""
    listening = Listening(host, port, tls_cert, tls_key, secret)
    seconds = read_span(drain_timeout)
    settings = load_settings()
    observing = observing_as(settings, node=socket.gethostname())
    with contextlib.closing(observing), Node(settings, telemetry=observing.telemetry) as node:
        serve(node, listening=listening, drain_timeout=seconds, ready=ready, observing=observing)
