"""`thawbox template …`: what pools and clones are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from thawbox.cli.desk import reached
from thawbox.cli.names import complete_template
from thawbox.cli.output import human_age, human_size, in_words, json_option, print_json, print_table
from thawbox.cli.spec_options import spec_of, spec_options

_template_argument = click.argument("name", metavar="TEMPLATE", shell_complete=complete_template)


@click.group("template", short_help="Make and keep what pools are made from.")
def template_command() -> None:
    """Make and keep templates: a spec and the golden snapshot of a program that was booted from it.

    Clones of a template begin where its program said that it was ready.
    """


def _tell(template: Mapping[str, Any], *, as_json: bool) -> None:
    name = template["name"]
    for exposure in template["exposures"]:
        click.echo(f"thawbox: every clone of {name} will hold what looks like a secret: {exposure}", err=True)
    if as_json:
        print_json(template)
    else:
        click.echo(name)


@template_command.command("create", short_help="Boot a spec and keep it as a template.")
@spec_options
@json_option
@_template_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
def create_command(
    *, name: str, spec_file: str | None, as_json: bool, command: tuple[str, ...], **options: Any
) -> None:
    """Run COMMAND in a sandbox until it is ready, keep a snapshot of it under the name TEMPLATE, remove the sandbox.

    Give --ready: without it the snapshot is made as soon as the program was started. Ports are not published: clones
    have none of their own on the host.

    \b
      thawbox template create web --ready tcp:8000 -- python3 -m http.server

    With --json: {"name", "snapshot", "command", "bytes", "created_at", "rebuilt_at", "exposures"}.
    """
    spec = spec_of(options, command, spec_file)
    with reached() as node:
        made = node.create_template(name, spec)
    _tell(made, as_json=as_json)


@template_command.command("ls", short_help="List templates.")
@json_option
def ls_command(as_json: bool) -> None:
    """List every template of this node.

    With --json: {"templates": [{"name", "snapshot", "command", "bytes", "created_at", "rebuilt_at",
    "exposures"}]}.
    """
    with reached() as node:
        templates = node.templates()
    if as_json:
        print_json({"templates": templates})
        return
    rows = [
        (
            one["name"], one["snapshot"][:12], human_size(one["bytes"]), human_age(one["rebuilt_at"]),
            " ".join(one["command"])[:48],
        )
        for one in templates
    ]  # fmt: skip
    print_table(("NAME", "SNAPSHOT", "SIZE", "AGE", "COMMAND"), rows)


@template_command.command("show", short_help="Show a template with its spec.")
@_template_argument
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show what a template was made from and what it holds.

    With --json: {"name", "snapshot", "command", "bytes", "created_at", "rebuilt_at", "exposures", "spec": {...}}.
    """
    with reached() as node:
        shown = dict(node.template(name))
    if as_json:
        print_json(shown)
        return
    spec: dict[str, object] = shown.pop("spec")
    for key, value in (*shown.items(), *((f"spec.{key}", value) for key, value in spec.items())):
        click.echo(f"{key:18} {in_words(value)}")


@template_command.command("rebuild", short_help="Boot a template's spec anew.")
@_template_argument
@json_option
def rebuild_command(name: str, as_json: bool) -> None:
    """Boot the template's spec anew and make clones from the result; its pools replace what they have parked.

    The old snapshot stays in use when this fails. With --json: as `template create`.
    """
    with reached() as node:
        built = node.rebuild_template(name)
    _tell(built, as_json=as_json)


@template_command.command("rm", short_help="Remove a template and its snapshot.")
@_template_argument
@json_option
def rm_command(name: str, as_json: bool) -> None:
    """Remove a template that no pool is made from. Sandboxes cloned from it live on.

    With --json: {"name"}.
    """
    with reached() as node:
        node.remove_template(name)
    if as_json:
        print_json({"name": name})
    else:
        click.echo(name)
