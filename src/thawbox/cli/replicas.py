"""`snapshots replicate|where` and `verify --remote`: copies of snapshots in the stores that THAWBOX_REPLICAS names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from thawbox.cli import exit_status
from thawbox.cli.names import complete_snapshot, opened
from thawbox.cli.output import counted, human_size, json_option, print_json, print_table, progress_of

if TYPE_CHECKING:
    from thawbox.model import SnapshotId
    from thawbox.node import Node
    from thawbox.store.replicas import Replicas, Standing

_references = click.argument("references", metavar="[SNAPSHOT]...", nargs=-1, shell_complete=complete_snapshot)


def _replicas(node: Node) -> Replicas:
    from thawbox.errors import InvalidRequest

    if not node.context.replicas:
        raise InvalidRequest("this node has no replicas", remediation="name stores in THAWBOX_REPLICAS")
    return node.context.replicas


@click.command("replicate", short_help="Copy snapshots to every replica.")
@_references
@json_option
def replicate_command(references: tuple[str, ...], as_json: bool) -> int:
    """Copy snapshots with their chains to every store of THAWBOX_REPLICAS; by default those that THAWBOX_MIRROR names.

    `thawbox serve` does that by itself after each checkpoint. Only what is not there travels. A replica that cannot be
    reached stops no other; the command then fails in the end.

    With --json: {"ok", "copies": [{"snapshot", "where", "moved_bytes", "failure"}]}; a copy that was there already
    moved 0 bytes.
    """
    from thawbox.store.mirror import named_by
    from thawbox.store.mirror_rules import read_rules

    copies: list[dict[str, object]] = []
    with opened() as node:
        store, replicas = node.context.store, _replicas(node)
        rules = read_rules(node.settings.mirror)
        wanted = [store.resolve(reference) for reference in references]
        wanted = wanted or [one.id for one in store.records() if named_by(rules, store, one.id)]
        with progress_of("replicating") as tell:
            for number, snapshot in enumerate(wanted, 1):
                for copied in replicas.replicate(snapshot):
                    moved = 0 if copied.report is None else copied.report.moved_bytes
                    failure = None if copied.failure is None else copied.failure.cause
                    copies.append(
                        {"snapshot": snapshot, "where": copied.where, "moved_bytes": moved, "failure": failure}
                    )
                tell(number, len(wanted))
    failed = [copy for copy in copies if copy["failure"] is not None]
    if as_json:
        print_json({"ok": not failed, "copies": copies})
    else:
        for copy in copies:
            size = human_size(int(str(copy["moved_bytes"])))
            click.echo(f"{str(copy['snapshot'])[:12]}  {copy['where']}  {copy['failure'] or size}")
        click.echo(f"{len(copies)} copies looked to, {len(failed)} failed", err=True)
    return exit_status.UNAVAILABLE if failed else 0


@click.command("where", short_help="Show which replicas have a snapshot.")
@_references
@json_option
def where_command(references: tuple[str, ...], as_json: bool) -> None:
    """Show which stores of THAWBOX_REPLICAS have these snapshots, by id; by default all that any of them has.

    A snapshot that is there is described there whole; whether its bytes are sound, `snapshots verify --remote` reads.

    With --json: {"snapshots": [{"id", "here", "replicas": [{"where", "has", "cause"}]}]}; `has` is null where a replica
    did not answer.
    """
    with opened() as node:
        store, replicas = node.context.store, _replicas(node)
        wanted = [_resolved(node, reference) for reference in references] or _everywhere(replicas)
        found = [(one, store.catalog.exists(one), replicas.where(one)) for one in wanted]
    if as_json:
        import msgspec

        shown = [
            {"id": one, "here": here, "replicas": msgspec.to_builtins(standings)} for one, here, standings in found
        ]
        print_json({"snapshots": shown})
        return
    head = ("ID", "HERE", *(standing.where for standing in found[0][2])) if found else ("ID", "HERE")
    print_table(head, [(one[:12], "yes" if here else "no", *map(_word, found_in)) for one, here, found_in in found])
    for standing in {standing for _, _, standings in found for standing in standings if standing.has is None}:
        click.echo(f"thawbox: {standing.where}: {standing.cause}", err=True)


def _word(standing: Standing) -> str:
    return "?" if standing.has is None else "yes" if standing.has else "no"


def _resolved(node: Node, reference: str) -> SnapshotId:
    """The id of a snapshot here, or else in a replica; nothing is brought."""
    from thawbox.errors import SnapshotNotFound

    try:
        return node.context.store.resolve(reference)
    except SnapshotNotFound:
        return node.context.replicas.resolve(reference)


def _everywhere(replicas: Replicas) -> list[SnapshotId]:
    return sorted({snapshot for listed in replicas.listing().values() for snapshot in listed or ()})


def checked_replicas(references: tuple[str, ...], *, repair: bool, as_json: bool) -> int:
    """`snapshots verify --remote`; returns the exit status."""
    import msgspec

    with opened() as node:
        replicas = _replicas(node)
        wanted = [_resolved(node, reference) for reference in references] or _everywhere(replicas)
        with progress_of("verifying") as tell:
            advance = counted(len(wanted) * len(replicas.backends), tell)
            checked = replicas.check(wanted, repair=repair, progress=advance)
    bad = [one for one in checked if one.faults and not one.repaired]
    if as_json:
        print_json({"ok": not bad, "replicas": msgspec.to_builtins(checked)})
    else:
        for one in checked:
            for fault in one.faults:
                click.echo(f"{one.snapshot[:12]}  {fault.where}: {fault.name}: {fault.cause}")
            if one.repaired:
                click.echo(f"{one.snapshot[:12]}  {one.where}: repaired")
        click.echo(f"{len(checked)} copies verified, {f'{len(bad)} bad' if bad else 'nothing wrong'}", err=True)
    return exit_status.DAMAGED if bad else 0
