"""`thawbox token …`: who may ask the node's service over TCP, and what."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from thawbox.api.tokens import Tokens


@click.group("token", short_help="Make and remove tokens for the service.")
def token_command() -> None:
    """Make and remove the tokens that `thawbox serve --port` asks for. They count at once, also while it runs."""


@contextlib.contextmanager
def _tokens() -> Generator[Tokens]:
    """The node's tokens for the block; the service, which reads the same file, need not be asked."""
    from thawbox.api.book import Book
    from thawbox.api.tokens import Tokens
    from thawbox.config import load_settings
    from thawbox.host.files import private_directory

    with contextlib.closing(Book(private_directory(load_settings().home))) as book:
        yield Tokens(book)


@token_command.command("create", short_help="Make a token.")
@click.option("--name", required=True, help="Whose it is: it stands in lists, in the audit log, and with what it made.")
@click.option(
    "--scope",
    type=click.Choice(["read", "use", "admin"]),
    required=True,
    help="read: look; use: run, exec, checkpoint, acquire; admin: all, the host's directories and ports too.",
)
@click.option("--ttl", metavar="SPAN", help="After which it opens nothing any more: 12h, 30d. Default: never.")
@click.option("--sandboxes", type=click.IntRange(min=0), metavar="N", help="Sandboxes that it may have at a time.")
@click.option("--memory", metavar="SIZE", help="Memory that the limits of these may add up to: 8G.")
@click.option("--snapshot-bytes", metavar="SIZE", help="Bytes that its snapshots may take: 20G.")
@json_option
def create_command(
    *, name: str, scope: str, ttl: str | None, sandboxes: int | None, memory: str | None, snapshot_bytes: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a token and print it. It is kept as a hash: this is the only time that it is shown.

    With --json: {"id", "name", "scope", "created_at", "expires_at", "limits", "token"}.
    """
    from thawbox.api.tokens import Limits, token_shown
    from thawbox.cli.spec_text import read_size, read_span

    limits = Limits(
        sandboxes=sandboxes,
        memory=read_size(memory) if memory is not None else None,
        snapshot_bytes=read_size(snapshot_bytes) if snapshot_bytes is not None else None,
    )
    with _tokens() as tokens:
        token, text = tokens.create(name, scope=scope, limits=limits, ttl=read_span(ttl) if ttl else None)
    if as_json:
        print_json({**token_shown(token), "token": text})
    else:
        click.echo(text)


@token_command.command("ls", short_help="List tokens.")
@json_option
def ls_command(as_json: bool) -> None:
    """List every token, those that expired too. Their text is kept nowhere.

    With --json: {"tokens": [{"id", "name", "scope", "created_at", "expires_at", "limits"}]}.
    """
    from thawbox.api.tokens import token_shown

    with _tokens() as tokens:
        shown: list[Mapping[str, Any]] = [token_shown(token) for token in tokens.all()]
    if as_json:
        print_json({"tokens": shown})
        return
    rows = [(one["name"], one["id"], one["scope"], one["created_at"], one["expires_at"] or "-") for one in shown]
    print_table(("NAME", "ID", "SCOPE", "CREATED", "EXPIRES"), rows)


@token_command.command("rm", short_help="Remove a token.")
@click.argument("token", metavar="NAME|ID")
@json_option
def rm_command(token: str, as_json: bool) -> None:
    """Let a token open nothing from now on. What it made stays.

    With --json: {"id", "name"}.
    """
    with _tokens() as tokens:
        removed = tokens.remove(token)
    if as_json:
        print_json({"id": removed.id, "name": removed.name})
    else:
        click.echo(removed.name)
