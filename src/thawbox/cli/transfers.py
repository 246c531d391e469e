"""`snapshots export|import|push|pull`: snapshots on their way to and from other machines."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from thawbox.cli.names import opened, snapshot_argument
from thawbox.cli.output import human_count, human_size, json_option, print_json, progress_of_bytes

if TYPE_CHECKING:
    from thawbox.store.transfer import OnProgress, TransferReport


@contextlib.contextmanager
def _progress(what: str) -> Generator[OnProgress]:
    with progress_of_bytes(what) as advance:
        yield lambda progress: advance(progress.done_bytes, progress.total_bytes)


def _print_report(report: TransferReport, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report))
        return
    for snapshot in report.snapshots:
        click.echo(snapshot)
    for fault in report.faults:
        click.echo(f"thawbox: {fault.where} failed to serve {fault.name}: {fault.cause}", err=True)
    moved = f"{human_count(len(report.snapshots), 'snapshot')} in {human_count(report.chunks_moved, 'chunk')}"
    click.echo(f"moved {moved} ({human_size(report.moved_bytes)}); {len(report.present)} there already", err=True)


@click.command("export", short_help="Write a snapshot with its chain to a file.")
@snapshot_argument
@click.argument("file", type=click.Path())
@click.option("--oci", is_flag=True, help="Write a checkpoint archive for checkpointctl, Podman and OCI registries.")
@json_option
def export_command(reference: str, file: str, oci: bool, as_json: bool) -> None:
    """Write a snapshot and all it depends on to one new file, for `snapshots import` elsewhere.

    The file appears when it is whole. With --json: what was written, as `snapshots push` says it.

    With --oci the file is for other tools: a checkpoint archive and an OCI image in one, chain and layers merged, never
    encrypted. It is for looking, archiving and forensics; `import` does not read it, and other runtimes can, as a rule,
    not restore it (docs/store-format.md says why). With --json then: {"snapshot", "file", "bytes"}.
    """
    if oci:
        _export_for_tools(reference, Path(file), as_json=as_json)
        return
    from thawbox.store.archive import export_archive

    with opened() as node, _progress("exporting") as on_progress:
        store = node.context.store
        report = export_archive(store, store.resolve(reference), Path(file), on_progress=on_progress)
    _print_report(report, as_json=as_json)


def _export_for_tools(reference: str, file: Path, *, as_json: bool) -> None:
    from thawbox.sandbox.exporting import export_for_tools

    with opened() as node:
        snapshot = node.context.store.resolve(reference)
        size = export_for_tools(node.context, snapshot, file)
    if as_json:
        print_json({"snapshot": snapshot, "file": str(file), "bytes": size})
    else:
        click.echo(snapshot)
        click.echo(f"{human_size(size)} in {file}", err=True)


@click.command("import", short_help="Bring snapshots in from a file.")
@click.argument("file", type=click.Path())
@click.option("--name", default="", help="A name for the snapshot; the file must then hold just one chain.")
@json_option
def import_command(file: str, name: str, as_json: bool) -> None:
    """Bring every snapshot of a file made by `export` in. Nothing in it is trusted: all is checked before it is seen.

    But restoring a snapshot runs what is in it: import only what you or somebody you trust made.

    With --json: {"snapshots": [ID]}, the newest of each chain.
    """
    from thawbox.store.archive import import_archive

    with opened() as node, _progress("importing") as on_progress:
        heads = import_archive(node.context.store, Path(file), name=name, on_progress=on_progress)
    if as_json:
        print_json({"snapshots": [head.id for head in heads]})
    else:
        click.echo("\n".join(head.id for head in heads))


@click.command("push", short_help="Send a snapshot with its chain to a remote store.")
@snapshot_argument
@click.argument("url")
@click.option("--repair", is_flag=True, help="Read back what is there, and replace what is damaged.")
@json_option
def push_command(reference: str, url: str, repair: bool, as_json: bool) -> None:
    """Send a snapshot and all it depends on to s3://, gs://, az:// or file://; only what is not there travels.

    Credentials come from the environment, as each provider's own tools take them. Interrupted, call it again.

    With --json: {"snapshots", "present", "chunks_moved", "chunks_present", "moved_bytes", "faults"}.
    """
    from thawbox.store.backends import open_backend
    from thawbox.store.push import push

    with opened() as node, _progress("pushing") as on_progress:
        store = node.context.store
        report = push(store, open_backend(url), store.resolve(reference), on_progress=on_progress, repair=repair)
    _print_report(report, as_json=as_json)


@click.command("pull", short_help="Bring a snapshot with its chain from remote stores.")
@click.argument("reference", metavar="ID")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option("--name", default="", help="A name for the snapshot here.")
@json_option
def pull_command(reference: str, urls: tuple[str, ...], name: str, as_json: bool) -> None:
    """Bring a snapshot, by its id or a beginning of it there, and all it depends on that is not here.

    Of several stores each is asked in turn for what the one before it could not serve, whole. Interrupted, call it
    again. With --json: what was moved, as `snapshots push` says it.
    """
    from thawbox.store.backends import open_backend
    from thawbox.store.pull import pull, resolve_remote

    backends = [open_backend(url) for url in urls]
    with opened() as node, _progress("pulling") as on_progress:
        snapshot = resolve_remote(backends[0], reference)
        report = pull(node.context.store, backends, snapshot, name=name, on_progress=on_progress)
    _print_report(report, as_json=as_json)
