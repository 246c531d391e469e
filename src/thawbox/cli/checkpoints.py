"""`checkpoint`, `restore`, `clone`, `fork`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import click

from thawbox.cli.desk import reached
from thawbox.cli.names import opened, sandbox_argument, snapshot_argument
from thawbox.cli.output import human_ms, human_size, json_option, print_json, print_table, progress_of

_count_option = click.option(
    "-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="How many."
)
_secret_option = click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=FILE",
    help="A secret for the program's hooks, from a file; stored nowhere. Repeatable.",
)
_env_option = click.option(
    "-e",
    "--env",
    "env",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Environment entry for the program's hooks; KEY alone takes its value from here. Repeatable.",
)
_names_option = click.option(
    "--name", "clone_name", default="", help="Name of the clone; with -n, NAME-1, NAME-2, … Default: made up."
)


_eager_option = click.option(
    "--eager",
    is_flag=True,
    help="Give each clone memory of its own from the start, instead of sharing it, copy on write.",
)


@click.command("checkpoint", short_help="Make a snapshot of a sandbox.")
@sandbox_argument
@click.option("--name", "tag", default="", metavar="TAG", help="A name for the snapshot; moves here if it is taken.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label for the snapshot. Repeatable.")
@click.option("--stop", is_flag=True, help="Do not let it run on: it is then suspended, to be restored.")
@click.option("--full", "mode", flag_value="full", help="Make a full snapshot, whatever it could be a delta of.")
@click.option("--delta", "mode", flag_value="delta", help="Make a delta, or fail. Default: a delta where it can be.")
@click.option("--skip-if-clean", is_flag=True, help="If nothing changed since the last one, name that one.")
@click.option("--when-ready", is_flag=True, help="Wait until its programs say that they may be checkpointed.")
@click.option("--async", "in_background", is_flag=True, help="Answer when it runs again, with a token to wait for.")
@click.option("--ttl", metavar="SPAN", help="Let gc take it after 90m, 12h, 7d, … Default: never.")
@click.option("--pin", is_flag=True, help="Keep it, and all it depends on, from gc.")
@json_option
def checkpoint_command(
    *, name: str, tag: str, labels: tuple[str, ...], stop: bool, mode: str | None, skip_if_clean: bool,
    when_ready: bool, in_background: bool, ttl: str | None, pin: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a snapshot of a running or frozen sandbox: memory, processes, descriptors, files. Prints its id.

    The sandbox is frozen while it is dumped and runs on at once; the answer comes when the snapshot is durable. If
    it fails, the sandbox runs on as it was.

    With --async the answer comes when the sandbox runs again, and the snapshot is listed once it is whole.

    With --json: {"id", "parent", "kind" (full or delta), "frozen_ms", "total_ms", "bytes", "skipped", "freeze"
    (cow: memory was read from copies while it ran on; plain: while it was frozen), "why_plain"}; with --async
    {"token", "frozen_ms"}.
    """
    from thawbox.cli.spec_text import read_labels, read_span

    wish = {
        "mode": mode or "auto", "stop": stop, "skip_if_clean": skip_if_clean, "name": tag,
        "labels": read_labels(labels), "ttl": read_span(ttl) if ttl else None, "pinned": pin, "when_ready": when_ready,
    }  # fmt: skip
    if in_background:
        _begin(name, wish, as_json=as_json)
        return
    with reached() as node:
        report = node.checkpoint(name, wish)
    if as_json:
        print_json(report)
        return
    click.echo(report["id"])
    if report["skipped"]:
        click.echo("nothing changed since this snapshot, so none was made", err=True)
        return
    why = f" (plain: {report['why_plain']})" if report["why_plain"] else ""
    frozen, size = human_ms(report["frozen_ms"]), human_size(report["bytes"])
    click.echo(f"{report['kind']}, {size}, frozen for {frozen} of {human_ms(report['total_ms'])}{why}", err=True)


def _begin(name: str, wish: dict[str, Any], *, as_json: bool) -> None:
    """Here, also where the node is served: a process of its own finishes the snapshot in either case."""
    from thawbox.cli.finish import PROGRAM
    from thawbox.sandbox.wishes import Mode, Wish

    given: dict[str, Any] = {**wish, "mode": Mode(wish["mode"])}
    with opened() as node:
        pending = node.sandbox(name).begin_checkpoint(Wish(**given), program=PROGRAM)
    if as_json:
        print_json({"token": pending.token, "frozen_ms": round(pending.frozen_ms, 3)})
        return
    click.echo(pending.token)
    click.echo(f"frozen for {human_ms(pending.frozen_ms)}; `thawbox snapshots wait {pending.token}` waits", err=True)


@click.command("restore", short_help="Bring the sandbox of a snapshot back.")
@snapshot_argument
@_secret_option
@_env_option
@json_option
def restore_command(reference: str, secrets: tuple[str, ...], env: tuple[str, ...], as_json: bool) -> None:
    """Bring back the very sandbox that a snapshot was made of: same id, name, address and limits. Prints its name.

    Refused while that sandbox runs: stop it first, or make a clone. If it fails, nothing has changed.

    With --json: {"id", "name", "restore_ms" (until it ran), "ready_ms" (until it answered)}.
    """
    with reached() as node:
        done = node.restore(reference, **_injected(secrets, env))
    if as_json:
        print_json(done)
    else:
        runs, answers = human_ms(done["restore_ms"]), human_ms(done["ready_ms"])
        click.echo(done["name"])
        click.echo(f"runs after {runs}, answers after {answers}", err=True)


@click.command("clone", short_help="Make new sandboxes from a snapshot.")
@snapshot_argument
@_count_option
@_names_option
@_eager_option
@_secret_option
@_env_option
@json_option
def clone_command(
    *, reference: str, count: int, clone_name: str, eager: bool, secrets: tuple[str, ...], env: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Make new sandboxes that go on from a snapshot, each with its own id, name, host name, network and files.

    Prints their names. If one fails, none is left. Ports that the original publishes stay its own.

    With --json: {"sandboxes": [{"id", "name", "restore_ms", "ready_ms"}]}.
    """
    with reached() as node, progress_of("cloning") as tell:
        made = node.clone(reference, count, name=clone_name, eager=eager, tell=tell, **_injected(secrets, env))
    _print_clones(made, as_json=as_json)


@click.command("fork", short_help="Checkpoint a sandbox and clone it.")
@sandbox_argument
@_count_option
@_names_option
@_eager_option
@json_option
def fork_command(name: str, count: int, clone_name: str, eager: bool, as_json: bool) -> None:
    """Checkpoint a running sandbox and make clones of it, which run beside it. Prints their names.

    With --json: {"sandboxes": [{"id", "name", "restore_ms", "ready_ms"}], "snapshot": {…as checkpoint…}}.
    """
    with reached() as node, progress_of("cloning") as tell:
        made = node.fork(name, count, name=clone_name, eager=eager, tell=tell)
    _print_clones(made, as_json=as_json)


class _Injected(TypedDict):
    """What is told to a restored program and stored nowhere."""

    secrets: dict[str, bytes]
    environment: dict[str, str]


def _injected(secrets: tuple[str, ...], env: tuple[str, ...]) -> _Injected:
    from thawbox.cli.spec_text import read_environment, read_pairs

    named = read_pairs(secrets, "secret", form="NAME=FILE")
    return {
        "secrets": {name: Path(file).read_bytes() for name, file in named.items()},
        "environment": read_environment(env),
    }


def _print_clones(made: Mapping[str, Any], *, as_json: bool) -> None:
    clones: list[dict[str, Any]] = made["sandboxes"]
    if as_json:
        print_json(made)
    elif len(clones) == 1:
        click.echo(clones[0]["name"])
    else:
        rows = [(one["name"], one["id"], human_ms(one["ready_ms"])) for one in clones]
        print_table(("NAME", "ID", "ANSWERED AFTER"), rows)
