"""Every command explains itself, and the page made of that names all of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from thawbox.cli import exit_status
from thawbox.cli.app import thawbox

PAGE = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text()


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


COMMANDS = dict(commands(thawbox, "thawbox"))
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_on_the_page(path: str) -> None:
    assert f"\n## {path}\n" in PAGE


@pytest.mark.parametrize(("path", "command"), LEAVES.items(), ids=LEAVES)
def test_every_command_says_what_it_does_and_what_its_options_do(path: str, command: click.Command) -> None:
    assert len(inspect.cleandoc(command.help or "").splitlines()) >= 1
    assert command.short_help, f"{path} has no line in the list of commands"
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{path} {option.opts[0]} does not say what it does"


@pytest.mark.parametrize(("path", "command"), LEAVES.items(), ids=LEAVES)
def test_every_command_takes_json_and_says_what_it_then_prints(path: str, command: click.Command) -> None:
    if path == "thawbox completion":
        return  # prints what a shell reads
    assert any("--json" in option.opts for option in command.params)
    assert "--json" in (command.help or "")


@pytest.mark.parametrize("status", exit_status.MEANINGS)
def test_every_exit_status_is_on_the_page(status: int) -> None:
    assert f"\n| {status} | " in PAGE


def test_no_command_is_named_in_an_error_or_help_that_is_not_there() -> None:
    sources = Path(__file__).resolve().parents[2] / "src/thawbox"
    named: set[str] = set()
    for source in sources.rglob("*.py"):
        named |= set(re.findall(r"`thawbox ((?:snapshots )?[a-z0-9]+)", source.read_text()))
    assert {name for name in named if f"thawbox {name}" not in COMMANDS} == set()
