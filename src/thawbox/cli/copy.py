"""`thawbox cp`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from thawbox.cli.names import complete_sandbox, opened
from thawbox.cli.output import human_size, json_option, print_json
from thawbox.errors import InvalidTransition, NotFound

if TYPE_CHECKING:
    from thawbox.host.copies import Moved, Opener
    from thawbox.node import Node
    from thawbox.sandbox import Record


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if "/" in incomplete or ":" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    names = [CompletionItem(f"{one.value}:", help=one.help) for one in complete_sandbox(ctx, param, incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@click.command("cp", short_help="Copy files between the host and a sandbox.")
@click.argument("source", shell_complete=_complete)
@click.argument("target", shell_complete=_complete)
@json_option
def cp_command(source: str, target: str, as_json: bool) -> None:
    """Copy a file or directory from or to a sandbox that has processes: one of both is SANDBOX:PATH.

    It arrives whole or not at all: into TARGET if that is a directory, else under that name; a file there is
    replaced. What is copied in belongs to the sandbox's user. No link inside a sandbox leads out of it. A path of
    the host that holds a colon is written with a slash before it: ./a:b.

    \b
      thawbox cp model.bin agent:/srv/
      thawbox cp agent:/srv/results ./results

    With --json: {"files", "bytes", "left_out"}: sockets, pipes and devices are left out.
    """
    inside_from, inside_to = _place_in(source), _place_in(target)
    if (inside_from is None) == (inside_to is None):
        raise click.UsageError("one of SOURCE and TARGET, not both, is SANDBOX:PATH")
    with opened() as node:
        if inside_to is not None:
            moved = _copy_in(node, source, *inside_to)
        else:
            assert inside_from is not None  # noqa: S101 - one of both is
            moved = _copy_out(node, *inside_from, target)
    if as_json:
        print_json({"files": moved.files, "bytes": moved.bytes, "left_out": moved.left_out})
        return
    for path in moved.left_out:
        click.echo(f"thawbox: left out {path}: it has no content to copy", err=True)
    click.echo(f"{moved.files} file{'' if moved.files == 1 else 's'}, {human_size(moved.bytes)}", err=True)


def _place_in(text: str) -> tuple[str, str] | None:
    """The sandbox and the path in it that a text names; None for a path of the host."""
    name, colon, path = text.partition(":")
    return (name, path or "/") if colon and name and "/" not in name else None


def _living(node: Node, name: str) -> Record:
    from thawbox.lifecycle import ALIVE

    record = node.sandbox(name).record
    if record.phase not in ALIVE:
        remedy = "restore it, or clone one of its snapshots"
        raise InvalidTransition(f"{record.name} is {record.phase.value}: it has no files now", remediation=remedy)
    return record


def _opener(record: Record, stack: contextlib.ExitStack) -> Opener:
    from thawbox.host.copies import within
    from thawbox.host.inside import open_root

    root_fd = open_root(record.keeper_pid, started=record.keeper_started)
    stack.callback(os.close, root_fd)
    return within(root_fd)


def _copy_in(node: Node, source: str, name: str, path: str) -> Moved:
    from thawbox.host.copies import copy_between, on_host
    from thawbox.host.identity import lookup_user
    from thawbox.sandbox.shells import root_layers

    Path(source).lstat()  # what is missing on the host is not told as missing in the sandbox
    # Alone: a checkpoint then sees all of it or nothing.
    with node.context.exclusive(node.sandbox(name).id), contextlib.ExitStack() as stack:
        record = _living(node, name)
        account = lookup_user(root_layers(node.context, record), record.spec.user)
        with _naming(record.name, path):
            inside = _opener(record, stack)
            return copy_between(on_host, source, inside, path, owner=(account.uid, account.gid))


def _copy_out(node: Node, name: str, path: str, target: str) -> Moved:
    from thawbox.host.copies import copy_between, on_host

    record = _living(node, name)
    with contextlib.ExitStack() as stack, _naming(record.name, path):
        return copy_between(_opener(record, stack), path, on_host, target)


@contextlib.contextmanager
def _naming(name: str, path: str) -> Generator[None]:
    """What is missing in the sandbox is told as the sandbox's, not as the host's."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename not in (path, str(PurePosixPath(path).parent)):
            raise
        remedy = f"`thawbox exec {name} ls` shows what is there"
        raise NotFound(f"there is no {error.filename} in {name}", remediation=remedy) from None
