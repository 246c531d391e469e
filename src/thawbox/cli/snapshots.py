"""`thawbox snapshots …`: what the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from thawbox import views
from thawbox.cli import exit_status
from thawbox.cli.desk import reached
from thawbox.cli.names import complete_snapshot, opened, snapshot_argument
from thawbox.cli.output import (
    human_age,
    human_count,
    human_size,
    in_words,
    json_option,
    print_json,
    print_table,
    progress_of,
)
from thawbox.cli.replicas import checked_replicas, replicate_command, where_command
from thawbox.cli.transfers import export_command, import_command, pull_command, push_command


@click.group("snapshots", short_help="Look at, verify, name, keep, move and remove snapshots.")
def snapshots_command() -> None:
    """Look at, verify, name, keep, move and remove the snapshots of this node.

    A snapshot is meant by its id, a beginning of it of at least six digits, or a name.
    """


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["id"][:12], ", ".join(one["names"]) or "-", str(one["sandbox"]["name"] or "-"), one["kind"],
        (one["parent"] or "-")[:12], human_size(one["bytes"]), human_age(one["created_at"]),
        "pinned" if one["pinned"] else "",
    )  # fmt: skip


_HEAD = ("ID", "NAME", "SANDBOX", "KIND", "PARENT", "SIZE", "AGE", "")


for _transfer in (export_command, import_command, push_command, pull_command, replicate_command, where_command):
    snapshots_command.add_command(_transfer)


@snapshots_command.command("ls", short_help="List snapshots.")
@click.option("-q", "--quiet", is_flag=True, help="Ids alone, one a line.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label. Repeatable.")
@json_option
def ls_command(quiet: bool, labels: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of this node, oldest first; SIZE is what each added to the store.

    With --json: {"snapshots": [{"id", "names", "kind", "parent", "sandbox": {"id", "name"}, "created_at", "bytes",
    "labels", "pinned", "expires_at", "used_at"}]}.
    """
    from thawbox.cli.spec_text import read_labels

    wanted = read_labels(labels)
    with reached() as node:
        found = node.snapshots(wanted)
    if as_json:
        print_json({"snapshots": found})
    elif quiet:
        click.echo("".join(f"{one['id']}\n" for one in found), nl=False)
    else:
        print_table(_HEAD, [_row(one) for one in found])


@snapshots_command.command("show", short_help="Show everything about a snapshot.")
@snapshot_argument
@json_option
def show_command(reference: str, as_json: bool) -> None:
    """Show what a snapshot is: its manifest, names, labels, times, and the machine it was made on.

    With --json: the fields of `snapshots ls`, and {"chain", "files", "layers", "compat", "body"}.
    """
    with reached() as node:
        shown = dict(node.snapshot(reference))
    if as_json:
        print_json(shown)
        return
    chain, files, compat = shown.pop("chain"), shown.pop("files"), shown.pop("compat")
    del shown["layers"], shown["body"]
    rows = {**shown, "bytes": human_size(shown["bytes"]), "chain": f"{len(chain)} long"}
    rows |= {"files": len(files), "kernel": compat["kernel"], "engine": compat["engine"]}
    for key, value in rows.items():
        click.echo(f"{key:12} {in_words(value)}")


@snapshots_command.command("chain", short_help="List the chain that ends in a snapshot.")
@snapshot_argument
@json_option
def chain_command(reference: str, as_json: bool) -> None:
    """List a snapshot and the parents it is a delta of, base first.

    With --json: {"chain": [… the fields of `snapshots ls` …]}.
    """
    with reached() as node:
        shown = node.chain(reference)
    if as_json:
        print_json(shown)
    else:
        print_table(_HEAD, [_row(one) for one in shown["chain"]])


@snapshots_command.command("wait", short_help="Wait for a snapshot that is on its way.")
@click.argument("token")
@click.option("--timeout", metavar="SPAN", help="How long. Default: THAWBOX_ENGINE_TIMEOUT, 120s.")
@json_option
def wait_command(token: str, timeout: str | None, as_json: bool) -> None:
    """Wait until the snapshot that `checkpoint --async` gave a TOKEN for is whole; print its id.

    Fails if it could not be made. With --json: as `snapshots ls` shows one.
    """
    from thawbox.cli.spec_text import read_span

    with opened() as node:
        made = views.snapshot_brief(node.wait(token, timeout=read_span(timeout) if timeout else None).stored)
    _print_changed(made, as_json=as_json)


@snapshots_command.command("flatten", short_help="Rewrite a chain as one full snapshot.")
@snapshot_argument
@click.option("--name", default="", help="A name for the full snapshot.")
@json_option
def flatten_command(reference: str, name: str, as_json: bool) -> None:
    """Make a full snapshot that restores as this link of a chain does; the chain stays. Prints its id.

    With --json: as `snapshots ls` shows one.
    """
    with reached() as node:
        made = node.flatten(reference, name=name)
    _print_changed(made, as_json=as_json)


@snapshots_command.command("verify", short_help="Check stored bytes.")
@click.argument("references", metavar="[SNAPSHOT]...", nargs=-1, shell_complete=complete_snapshot)
@click.option("--deep", is_flag=True, help="Hash everything anew, also what has not changed since it was last hashed.")
@click.option("--remote", is_flag=True, help="Check the copies in the replicas instead; every byte is read.")
@click.option("--repair", is_flag=True, help="With --remote: replace what is damaged there by what is right.")
@json_option
def verify_command(references: tuple[str, ...], deep: bool, remote: bool, repair: bool, as_json: bool) -> int:
    """Check that these snapshots, by default all, are byte for byte what their ids say; name what is not.

    Exits with the status of damaged snapshots when something is wrong; a damaged snapshot is never restored.

    With --json: {"ok", "problems": [{"snapshot", "file", "cause"}]}; with --remote {"ok", "replicas": [{"where",
    "snapshot", "repaired", "faults": [{"where", "name", "cause", "kind"}]}]}.
    """
    if repair and not remote:
        raise click.UsageError("--repair needs --remote: what is damaged here is repaired by `snapshots pull`")
    if remote:
        return checked_replicas(references, repair=repair, as_json=as_json)
    with reached() as node, progress_of("verifying") as tell:
        found = dict(node.verify(references, deep=deep, tell=tell))
    verified, problems = found.pop("verified"), found["problems"]
    if as_json:
        print_json(found)
    else:
        for one in problems:
            click.echo(f"{one['snapshot'][:12]}  {one['file']}: {one['cause']}")
        click.echo(
            f"{verified} verified, {human_count(len(problems), 'problem') if problems else 'nothing wrong'}", err=True
        )
    return exit_status.DAMAGED if problems else 0


@snapshots_command.command("rm", short_help="Remove snapshots.")
@click.argument("references", metavar="SNAPSHOT...", nargs=-1, required=True, shell_complete=complete_snapshot)
@click.option("--cascade", is_flag=True, help="Also remove what depends on them.")
@json_option
def rm_command(references: tuple[str, ...], cascade: bool, as_json: bool) -> None:
    """Remove snapshots. Refused, naming them, while others depend on one, and for one that is pinned or in use.

    With --json: {"removed": [ID]}, children first.
    """
    with reached() as node:
        removed = node.remove_snapshots(references, cascade=cascade)
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo("\n".join(removed))


@snapshots_command.command("gc", short_help="Remove what expired, what is over budget, and what nothing names.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and why; change nothing.")
@click.option(
    "--budget",
    metavar="SIZE",
    help="Bytes that all snapshots may take: 20G. Default: THAWBOX_DISK_BUDGET; 0 is no limit.",
)
@json_option
def gc_command(dry_run: bool, budget: str | None, as_json: bool) -> None:
    """Remove snapshots that expired, then, over the budget, unpinned ones nobody depends on, longest unused first.

    What is pinned, held by a sandbox or being restored stays, and so does all it depends on.

    With --json: {"removed": [{"id", "reason", "bytes"}], "kept": [{"id", "reason"}], "freed_bytes", "dry_run"}.
    """
    from thawbox.cli.spec_text import read_size

    allowed = read_size(budget) if budget is not None else None
    with reached() as node:
        report = node.collect(dry_run=dry_run, budget=allowed)
    if as_json:
        print_json(report)
        return
    for one in report["removed"]:
        size = human_size(one["bytes"])
        click.echo(f"{one['id'][:12]}  {'would go' if dry_run else 'removed'} ({size}): {one['reason']}")
    for one in report["kept"]:
        click.echo(f"{one['id'][:12]}  stays: {one['reason']}")
    click.echo(f"{'would free' if dry_run else 'freed'} {human_size(report['freed_bytes'])}", err=True)


def _print_changed(snapshot: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(snapshot)
    else:
        click.echo(snapshot["id"])


@snapshots_command.command("name", short_help="Give a snapshot a name.")
@snapshot_argument
@click.argument("name")
@json_option
def name_command(reference: str, name: str, as_json: bool) -> None:
    """Give a snapshot a name; it moves here if another snapshot has it. With --json: as `snapshots ls` shows one."""
    with reached() as node:
        changed = node.change_snapshot(reference, name=name)
    _print_changed(changed, as_json=as_json)


@snapshots_command.command("label", short_help="Set or remove labels of a snapshot.")
@snapshot_argument
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@json_option
def label_command(reference: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels, or remove those written as KEY-. With --json: as `snapshots ls` shows one."""
    from thawbox.cli.spec_text import read_labels

    removed = [label[:-1] for label in labels if label.endswith("-") and "=" not in label]
    given = read_labels(label for label in labels if "=" in label or not label.endswith("-"))
    with reached() as node:
        changed = node.change_snapshot(reference, labels={**given, **dict.fromkeys(removed)})
    _print_changed(changed, as_json=as_json)


@snapshots_command.command("pin", short_help="Keep a snapshot from being removed.")
@snapshot_argument
@click.option("--off", is_flag=True, help="Let it go again.")
@json_option
def pin_command(reference: str, off: bool, as_json: bool) -> None:
    """Keep a snapshot, and all it depends on, from `gc` and `rm`. With --json: as `snapshots ls` shows one."""
    with reached() as node:
        changed = node.change_snapshot(reference, pinned=not off)
    _print_changed(changed, as_json=as_json)


@snapshots_command.command("expire", short_help="Let gc take a snapshot after some time.")
@snapshot_argument
@click.argument("span", metavar="SPAN|never")
@json_option
def expire_command(reference: str, span: str, as_json: bool) -> None:
    """Let `gc` take a snapshot from SPAN on (90m, 12h, 7d) from now, or never. With --json: as `snapshots ls`."""
    from thawbox.cli.spec_text import read_span

    ttl = None if span == "never" else read_span(span)
    with reached() as node:
        changed = node.change_snapshot(reference, ttl=ttl, never_expires=ttl is None)
    _print_changed(changed, as_json=as_json)
