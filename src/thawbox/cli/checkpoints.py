"""`checkpoint`, `restore`, `clone`, `fork`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from thawbox import views
from thawbox.cli.names import opened, sandbox_argument, snapshot_argument
from thawbox.cli.output import human_ms, human_size, json_option, print_json, print_table, progress_of

if TYPE_CHECKING:
    from thawbox.sandbox import Sandbox, Snapshot
    from thawbox.sandbox.checkpointing import Wish

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
    from thawbox.sandbox.checkpointing import Mode, Wish

    wish = Wish(
        mode=Mode(mode or "auto"), stop=stop, skip_if_clean=skip_if_clean, name=tag, labels=read_labels(labels),
        ttl=read_span(ttl) if ttl else None, pinned=pin, when_ready=when_ready,
    )  # fmt: skip
    with opened() as node:
        if in_background:
            _begin(node.sandbox(name), wish, as_json=as_json)
            return
        snapshot = node.sandbox(name).checkpoint(
            mode=wish.mode, stop=wish.stop, skip_if_clean=wish.skip_if_clean, name=wish.name, labels=wish.labels,
            ttl=wish.ttl, pinned=wish.pinned, when_ready=wish.when_ready,
        )  # fmt: skip
    report = snapshot.report
    assert report is not None  # noqa: S101 - a snapshot just made has one
    if as_json:
        print_json(views.checkpoint_report(report))
        return
    click.echo(snapshot.id)
    frozen, size = human_ms(report.frozen_ms), human_size(report.bytes)
    if report.skipped:
        click.echo("nothing changed since this snapshot, so none was made", err=True)
        return
    why = f" (plain: {report.why_plain})" if report.why_plain else ""
    click.echo(f"{report.kind.value}, {size}, frozen for {frozen} of {human_ms(report.total_ms)}{why}", err=True)


def _begin(sandbox: Sandbox, wish: Wish, *, as_json: bool) -> None:
    from thawbox.cli.finish import PROGRAM

    pending = sandbox.begin_checkpoint(wish, program=PROGRAM)
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
    with opened() as node:
        sandbox, times = node.snapshot(reference).restore(**_injected(secrets, env))
    if as_json:
        print_json(views.restored(sandbox, times))
    else:
        click.echo(sandbox.name)
        click.echo(f"runs after {human_ms(times.restore_ms)}, answers after {human_ms(times.ready_ms)}", err=True)


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

    Prints their names. If one fails, none is left.

    With --json: {"sandboxes": [{"id", "name", "restore_ms", "ready_ms"}]}.
    """
    with opened() as node:
        given = _injected(secrets, env)
        _clone(node.snapshot(reference), count, clone_name, as_json=as_json, eager=eager, **given)


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
    with opened() as node:
        snapshot = node.sandbox(name).checkpoint()
        _clone(snapshot, count, clone_name, as_json=as_json, eager=eager)


class _Injected(TypedDict, total=False):
    """What is told to a restored program and stored nowhere."""

    secrets: dict[str, bytes]
    environment: dict[str, str]


def _injected(secrets: tuple[str, ...], env: tuple[str, ...]) -> _Injected:
    from thawbox.cli.spec_text import read_environment, read_pairs

    named = read_pairs(secrets, "secret")
    return {
        "secrets": {name: Path(file).read_bytes() for name, file in named.items()},
        "environment": read_environment(env),
    }


def _clone(
    snapshot: Snapshot, count: int, name: str, *, as_json: bool, eager: bool, **injected: Unpack[_Injected]
) -> None:
    with progress_of("cloning", count) as advance:
        clones = snapshot.clones_timed(count, name=name, eager=eager, progress=advance, **injected)
    made = [views.restored(sandbox, times) for sandbox, times in clones]
    if as_json:
        of_fork = {"snapshot": views.checkpoint_report(snapshot.report)} if snapshot.report is not None else {}
        print_json({"sandboxes": made, **of_fork})
    elif count == 1:
        click.echo(clones[0][0].name)
    else:
        rows = [(sandbox.name, sandbox.id, human_ms(times.ready_ms)) for sandbox, times in clones]
        print_table(("NAME", "ID", "ANSWERED AFTER"), rows)
