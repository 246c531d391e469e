"""`thawbox snapshots …`: what the store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from thawbox import views
from thawbox.cli import exit_status
from thawbox.cli.names import complete_snapshot, opened, snapshot_argument
from thawbox.cli.output import human_age, human_size, json_option, print_json, print_table, progress_of
from thawbox.cli.replicas import checked_replicas, replicate_command, where_command
from thawbox.cli.transfers import export_command, import_command, pull_command, push_command

if TYPE_CHECKING:
    from thawbox.model import SnapshotId
    from thawbox.node import Node
    from thawbox.store import Problem, Record, Store


@click.group("snapshots", short_help="Look at, verify, name, keep, move and remove snapshots.")
def snapshots_command() -> None:
    """Look at, verify, name, keep, move and remove the snapshots of this node.

    A snapshot is meant by its id, a beginning of it of at least six digits, or a name.
    """


def _row(stored: Record) -> tuple[str, ...]:
    manifest, facts = stored.manifest, stored.facts
    return (
        stored.id[:12], ", ".join(facts.names) or "-", str(manifest.body.get("name", "-")), manifest.kind.value,
        (manifest.parent or "-")[:12], human_size(stored.bytes), human_age(manifest.created_at),
        "pinned" if facts.pinned else "",
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

    wanted = read_labels(labels).items()
    with opened() as node:
        found = [stored for stored in node.context.store.records() if wanted <= stored.facts.labels.items()]
    if as_json:
        print_json({"snapshots": [views.snapshot_brief(stored) for stored in found]})
    elif quiet:
        click.echo("".join(f"{stored.id}\n" for stored in found), nl=False)
    else:
        print_table(_HEAD, [_row(stored) for stored in found])


@snapshots_command.command("show", short_help="Show everything about a snapshot.")
@snapshot_argument
@json_option
def show_command(reference: str, as_json: bool) -> None:
    """Show what a snapshot is: its manifest, names, labels, times, and the machine it was made on.

    With --json: the fields of `snapshots ls`, and {"chain", "files", "layers", "compat", "body"}.
    """
    with opened() as node:
        store = node.context.store
        shown = views.snapshot_whole(store, store.resolve(reference))
        stored = store.record(store.resolve(reference))
    if as_json:
        print_json(shown)
        return
    manifest, chain = stored.manifest, cast("list[str]", shown["chain"])
    rows = {**views.snapshot_brief(stored), "bytes": human_size(stored.bytes), "chain": f"{len(chain)} long"}
    rows |= {"files": len(manifest.files), "kernel": manifest.compat.kernel, "engine": manifest.compat.engine}
    for key, value in rows.items():
        click.echo(f"{key:12} {'-' if value in (None, '', [], {}) else value}")


@snapshots_command.command("chain", short_help="List the chain that ends in a snapshot.")
@snapshot_argument
@json_option
def chain_command(reference: str, as_json: bool) -> None:
    """List a snapshot and the parents it is a delta of, base first.

    With --json: {"chain": [… the fields of `snapshots ls` …]}.
    """
    with opened() as node:
        store = node.context.store
        snapshot = store.resolve(reference)
        shown = views.snapshot_chain(store, snapshot)
        links = [store.record(link) for link in store.chain(snapshot)]
    if as_json:
        print_json(shown)
    else:
        print_table(_HEAD, [_row(stored) for stored in links])


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
        snapshot = node.wait(token, timeout=read_span(timeout) if timeout else None)
        _print_changed(node, snapshot.id, as_json=as_json)


@snapshots_command.command("flatten", short_help="Rewrite a chain as one full snapshot.")
@snapshot_argument
@click.option("--name", default="", help="A name for the full snapshot.")
@json_option
def flatten_command(reference: str, name: str, as_json: bool) -> None:
    """Make a full snapshot that restores as this link of a chain does; the chain stays. Prints its id.

    With --json: as `snapshots ls` shows one.
    """
    with opened() as node:
        snapshot = node.snapshot(reference).flatten(name=name)
        _print_changed(node, snapshot.id, as_json=as_json)


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
    with opened() as node:
        store = node.context.store
        wanted = [store.resolve(reference) for reference in references] or sorted(store.catalog.ids())
        problems = _verify_each(store, wanted, deep=deep)
    if as_json:
        print_json(views.verification(problems))
    else:
        for one in problems:
            click.echo(f"{one.snapshot[:12]}  {one.file}: {one.cause}")
        click.echo(f"{len(wanted)} verified, {f'{len(problems)} problems' if problems else 'nothing wrong'}", err=True)
    return exit_status.DAMAGED if problems else 0


def _verify_each(store: Store, wanted: list[SnapshotId], *, deep: bool) -> list[Problem]:
    problems: list[Problem] = []
    with progress_of("verifying", len(wanted)) as advance:
        for snapshot in wanted:
            problems += [one for one in store.verify([snapshot], deep=deep) if one not in problems]
            advance()
    return problems


@snapshots_command.command("rm", short_help="Remove snapshots.")
@click.argument("references", metavar="SNAPSHOT...", nargs=-1, required=True, shell_complete=complete_snapshot)
@click.option("--cascade", is_flag=True, help="Also remove what depends on them.")
@json_option
def rm_command(references: tuple[str, ...], cascade: bool, as_json: bool) -> None:
    """Remove snapshots. Refused, naming them, while others depend on one, and for one that is pinned or in use.

    With --json: {"removed": [ID]}, children first.
    """
    removed: list[SnapshotId] = []
    with opened() as node:
        store = node.context.store
        for snapshot in [store.resolve(reference) for reference in references]:
            if snapshot not in removed:
                removed += store.remove(snapshot, cascade=cascade)
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

    with opened() as node:
        allowed = read_size(budget) if budget is not None else node.settings.disk_budget
        report = node.context.store.gc(budget=allowed, dry_run=dry_run)
    if as_json:
        print_json(views.collection(report))
        return
    for verdict in report.removed:
        size = human_size(verdict.frees)
        click.echo(f"{verdict.id[:12]}  {'would go' if dry_run else 'removed'} ({size}): {verdict.reason}")
    for verdict in report.kept:
        click.echo(f"{verdict.id[:12]}  stays: {verdict.reason}")
    click.echo(f"{'would free' if dry_run else 'freed'} {human_size(report.freed_bytes)}", err=True)


def _print_changed(node: Node, snapshot: SnapshotId, *, as_json: bool) -> None:
    stored = node.context.store.record(snapshot)
    if as_json:
        print_json(views.snapshot_brief(stored))
    else:
        click.echo(stored.id)


@snapshots_command.command("name", short_help="Give a snapshot a name.")
@snapshot_argument
@click.argument("name")
@json_option
def name_command(reference: str, name: str, as_json: bool) -> None:
    """Give a snapshot a name; it moves here if another snapshot has it. With --json: as `snapshots ls` shows one."""
    with opened() as node:
        snapshot = node.context.store.resolve(reference)
        node.context.store.name(snapshot, name)
        _print_changed(node, snapshot, as_json=as_json)


@snapshots_command.command("label", short_help="Set or remove labels of a snapshot.")
@snapshot_argument
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@json_option
def label_command(reference: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels, or remove those written as KEY-. With --json: as `snapshots ls` shows one."""
    from thawbox.cli.spec_text import read_labels

    removed = [label[:-1] for label in labels if label.endswith("-") and "=" not in label]
    given = read_labels(label for label in labels if "=" in label or not label.endswith("-"))
    with opened() as node:
        snapshot = node.context.store.resolve(reference)
        for key, value in (*given.items(), *((key, None) for key in removed)):
            node.context.store.label(snapshot, key, value)
        _print_changed(node, snapshot, as_json=as_json)


@snapshots_command.command("pin", short_help="Keep a snapshot from being removed.")
@snapshot_argument
@click.option("--off", is_flag=True, help="Let it go again.")
@json_option
def pin_command(reference: str, off: bool, as_json: bool) -> None:
    """Keep a snapshot, and all it depends on, from `gc` and `rm`. With --json: as `snapshots ls` shows one."""
    with opened() as node:
        snapshot = node.context.store.resolve(reference)
        node.context.store.pin(snapshot, pinned=not off)
        _print_changed(node, snapshot, as_json=as_json)


@snapshots_command.command("expire", short_help="Let gc take a snapshot after some time.")
@snapshot_argument
@click.argument("span", metavar="SPAN|never")
@json_option
def expire_command(reference: str, span: str, as_json: bool) -> None:
    """Let `gc` take a snapshot from SPAN on (90m, 12h, 7d) from now, or never. With --json: as `snapshots ls`."""
    from thawbox.cli.spec_text import read_span

    with opened() as node:
        store = node.context.store
        snapshot = store.resolve(reference)
        store.expire(snapshot, None if span == "never" else store.now() + read_span(span))
        _print_changed(node, snapshot, as_json=as_json)
