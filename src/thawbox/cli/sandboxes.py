"""`ps`, `inspect`, `stats`, `stop`, `rm`, `freeze`, `thaw`: looking at sandboxes, and the verbs without much to say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.desk import reached
from thawbox.cli.failures import SeveralFailed
from thawbox.cli.names import complete_sandbox, sandbox_argument, sandboxes_argument
from thawbox.cli.output import (
    coloured_state,
    human_age,
    human_size,
    in_words,
    json_option,
    print_json,
    print_table,
)
from thawbox.errors import ThawboxError

if TYPE_CHECKING:
    from thawbox.cli.desk import Desk


@click.command("ps", short_help="List sandboxes.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Those that ended too.")
@click.option("-q", "--quiet", is_flag=True, help="Names alone, one a line.")
@json_option
def ps_command(show_all: bool, quiet: bool, as_json: bool) -> None:
    """List the sandboxes that have processes; with --all, also those that were suspended, ended or were lost.

    With --json: {"sandboxes": [{"id", "name", "state", "command", "created_at", "address", "parent_snapshot",
    "labels"}]}, oldest first.
    """
    with reached() as node:
        shown = node.sandboxes(show_all=show_all)
    if as_json:
        print_json({"sandboxes": shown})
    elif quiet:
        click.echo("".join(f"{one['name']}\n" for one in shown), nl=False)
    else:
        print_table(("NAME", "ID", "STATE", "AGE", "COMMAND"), [_row(one) for one in shown])


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    command = " ".join(one["command"]).replace("\n", " ")
    shown = command if len(command) <= 48 else command[:47] + "…"
    return one["name"], one["id"], coloured_state(one["state"]), human_age(one["created_at"]), shown


@click.command("inspect", short_help="Show everything about a sandbox.")
@sandbox_argument
@json_option
def inspect_command(name: str, as_json: bool) -> None:
    """Show a sandbox's spec and all that is known of it now.

    With --json: {"id", "name", "state", "pid" (of its init, on the host), "cgroup", "address", "parent_snapshot",
    "created_at", "hostname", "machine_id", "layers", "ended_at", "ended_why", "exit_status", "recoveries", "spec":
    {...}}. What does not exist is null: the pid of a sandbox that has ended, an address without --net nat.
    """
    with reached() as node:
        found = dict(node.inspect(name))
    if as_json:
        print_json(found)
        return
    spec: dict[str, object] = found.pop("spec")
    for key, value in (*found.items(), *((f"spec.{key}", value) for key, value in spec.items())):
        click.echo(f"{key:22} {in_words(value)}")


@click.command("stats", short_help="Show memory, CPU and tasks.")
@click.argument("name", metavar="[SANDBOX]", required=False, shell_complete=complete_sandbox)
@json_option
def stats_command(name: str | None, as_json: bool) -> None:
    """Show what a sandbox, or each that has processes, uses now.

    MEMORY is what its limit counts: what it was the first to touch, page cache included. A clone that shares its
    memory was not: OWN is what no other process has, SHARED what it has with others, the template first.

    With --json, for one: {"id", "name", "state", "memory", "memory_peak", "memory_limit" (bytes), "cpu_usec",
    "pids", "pids_limit", "oom_kills", "private", "shared", "proportional" (bytes, of all its processes; the last a
    fair share of both)}; without a name: {"sandboxes": [...]} of the same.
    """
    with reached() as node:
        chosen = [name] if name else [one["id"] for one in node.sandboxes(show_all=False)]
        used = [node.stats(one) for one in chosen]
    if as_json:
        print_json(used[0] if name else {"sandboxes": used})
        return
    rows = [
        (
            one["name"], coloured_state(one["state"]),
            *(human_size(one[key]) for key in ("memory", "memory_peak", "memory_limit", "private", "shared")),
            f"{one['cpu_usec'] / 1e6:.2f} s", str(one["pids"]), str(one["oom_kills"]),
        )
        for one in used
    ]  # fmt: skip
    print_table(("NAME", "STATE", "MEMORY", "PEAK", "LIMIT", "OWN", "SHARED", "CPU TIME", "TASKS", "OOM KILLS"), rows)


def _for_each(names: Sequence[str], act: Callable[[Desk, str], Mapping[str, Any]], *, as_json: bool) -> None:
    """Act on every sandbox named, also when it failed for one; then say what was done and raise what was not."""
    done: list[Mapping[str, Any]] = []
    failed: list[Exception] = []
    with reached() as node:
        for name in names:
            try:
                done.append(act(node, name))
            except (ThawboxError, OSError, sqlite3.Error) as error:
                failed.append(error)
    if as_json:
        print_json({"sandboxes": done})
    elif done:
        click.echo("\n".join(str(one["name"]) for one in done))
    if failed:
        raise SeveralFailed(failed) if len(failed) > 1 else failed[0]


@click.command("stop", short_help="End sandboxes.")
@sandboxes_argument
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL. Default: THAWBOX_STOP_TIMEOUT, 10.",
)
@json_option
def stop_command(names: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """End the main program by SIGTERM, and whatever is left by SIGKILL. Files, logs and snapshots stay.

    With --json: {"sandboxes": [{"id", "name", "state"}]}.
    """
    _for_each(names, lambda node, name: node.stop(name, timeout=timeout), as_json=as_json)


@click.command("rm", short_help="Remove ended sandboxes and their files.")
@sandboxes_argument
@click.option("-f", "--force", is_flag=True, help="End those that run first, by SIGKILL.")
@json_option
def rm_command(names: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove sandboxes with their files and logs. Snapshots made of them stay, but those that `supervise` made.

    With --json: {"sandboxes": [{"id", "name", "state": "removed"}]}.
    """
    _for_each(names, lambda node, name: node.remove(name, force=force), as_json=as_json)


@click.command("freeze", short_help="Stop every task of sandboxes, memory held.")
@sandboxes_argument
@json_option
def freeze_command(names: tuple[str, ...], as_json: bool) -> None:
    """Stop every task until `thaw`: memory is held, no CPU is used. A frozen sandbox can be checkpointed.

    With --json: {"sandboxes": [{"id", "name", "state"}]}.
    """
    _for_each(names, lambda node, name: node.freeze(name), as_json=as_json)


@click.command("thaw", short_help="Let frozen sandboxes run again.")
@sandboxes_argument
@json_option
def thaw_command(names: tuple[str, ...], as_json: bool) -> None:
    """Let every task of frozen sandboxes run again, where it was.

    With --json: {"sandboxes": [{"id", "name", "state"}]}.
    """
    _for_each(names, lambda node, name: node.thaw(name), as_json=as_json)
