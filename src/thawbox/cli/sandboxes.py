"""`ps`, `inspect`, `stats`, `stop`, `rm`, `freeze`, `thaw`: looking at sandboxes, and the verbs without much to say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from thawbox import views
from thawbox.cli.failures import SeveralFailed
from thawbox.cli.names import complete_sandbox, opened, sandbox_argument, sandboxes_argument
from thawbox.cli.output import (
    coloured_state,
    human_age,
    human_size,
    json_option,
    print_json,
    print_table,
)
from thawbox.errors import ThawboxError

if TYPE_CHECKING:
    from thawbox.sandbox import Record, Sandbox


@click.command("ps", short_help="List sandboxes.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Those that ended too.")
@click.option("-q", "--quiet", is_flag=True, help="Names alone, one a line.")
@json_option
def ps_command(show_all: bool, quiet: bool, as_json: bool) -> None:
    """List the sandboxes that have processes; with --all, also those that were suspended, ended or were lost.

    With --json: {"sandboxes": [{"id", "name", "state", "command", "created_at", "address", "parent_snapshot",
    "labels"}]}, oldest first.
    """
    with opened() as node:
        from thawbox.lifecycle import ALIVE

        seen = [sandbox.record for sandbox in node.sandboxes()]
        shown = [record for record in seen if show_all or record.phase in ALIVE]
    if as_json:
        print_json({"sandboxes": [views.sandbox_brief(record) for record in shown]})
    elif quiet:
        click.echo("".join(f"{record.name}\n" for record in shown), nl=False)
    else:
        print_table(("NAME", "ID", "STATE", "AGE", "COMMAND"), [_row(record) for record in shown])


def _row(record: Record) -> tuple[str, ...]:
    command = " ".join(record.spec.command).replace("\n", " ")
    shown = command if len(command) <= 48 else command[:47] + "…"
    return record.name, record.id, coloured_state(record.phase.value), human_age(record.created_at), shown


@click.command("inspect", short_help="Show everything about a sandbox.")
@sandbox_argument
@json_option
def inspect_command(name: str, as_json: bool) -> None:
    """Show a sandbox's spec and all that is known of it now.

    With --json: {"id", "name", "state", "pid" (of its init, on the host), "cgroup", "address", "parent_snapshot",
    "created_at", "hostname", "machine_id", "layers", "ended_at", "ended_why", "exit_status", "recoveries", "spec":
    {...}}. What does not exist is null: the pid of a sandbox that has ended, an address without --net nat.
    """
    with opened() as node:
        found = views.sandbox_whole(node.context, node.sandbox(name).record)
    if as_json:
        print_json(found)
        return
    spec: dict[str, object] = found.pop("spec")
    for key, value in (*found.items(), *((f"spec.{key}", value) for key, value in spec.items())):
        click.echo(f"{key:22} {_in_words(value)}")


def _in_words(value: object) -> str:
    if value is None or value in ("", [], (), {}):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value)


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
    with opened() as node:
        from thawbox.lifecycle import ALIVE

        chosen = [node.sandbox(name)] if name else [one for one in node.sandboxes() if one.state in ALIVE]
        used = [views.sandbox_stats(one) for one in chosen]
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


def _for_each(names: Sequence[str], act: Callable[[Sandbox], None], *, as_json: bool, removed: bool = False) -> None:
    """Act on every sandbox named, also when it failed for one; then say what was done and raise what was not."""
    done: list[dict[str, object]] = []
    failed: list[Exception] = []
    with opened() as node:
        from thawbox.host.cgroup import remove_node_group

        for name in names:
            try:
                sandbox = node.sandbox(name)
                act(sandbox)
                shown = views.sandbox_state(sandbox) if not removed else None
            except (ThawboxError, OSError, sqlite3.Error) as error:
                failed.append(error)
            else:
                done.append(shown or {"id": sandbox.id, "name": sandbox.name, "state": "removed"})
        if removed and not node.sandboxes():
            remove_node_group(node.context.layout, node.context.tag)
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
    _for_each(names, lambda sandbox: sandbox.stop(timeout=timeout), as_json=as_json)


@click.command("rm", short_help="Remove ended sandboxes and their files.")
@sandboxes_argument
@click.option("-f", "--force", is_flag=True, help="End those that run first, by SIGKILL.")
@json_option
def rm_command(names: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove sandboxes with their files and logs. Snapshots made of them stay.

    With --json: {"sandboxes": [{"id", "name", "state": "removed"}]}.
    """
    _for_each(names, lambda sandbox: sandbox.remove(force=force), as_json=as_json, removed=True)


@click.command("freeze", short_help="Stop every task of sandboxes, memory held.")
@sandboxes_argument
@json_option
def freeze_command(names: tuple[str, ...], as_json: bool) -> None:
    """Stop every task until `thaw`: memory is held, no CPU is used. A frozen sandbox can be checkpointed.

    With --json: {"sandboxes": [{"id", "name", "state"}]}.
    """
    _for_each(names, lambda sandbox: sandbox.freeze(), as_json=as_json)


@click.command("thaw", short_help="Let frozen sandboxes run again.")
@sandboxes_argument
@json_option
def thaw_command(names: tuple[str, ...], as_json: bool) -> None:
    """Let every task of frozen sandboxes run again, where it was.

    With --json: {"sandboxes": [{"id", "name", "state"}]}.
    """
    _for_each(names, lambda sandbox: sandbox.thaw(), as_json=as_json)
