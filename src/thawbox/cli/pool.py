"""`thawbox pool …`: through `thawbox serve` where it runs; else the command keeps the pool for as long as it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from thawbox.cli.desk import reached
from thawbox.cli.names import complete_pool, complete_sandbox, complete_template
from thawbox.cli.output import human_ms, json_option, print_json, print_table
from thawbox.cli.spec_text import read_span

_pool_argument = click.argument("name", metavar="POOL", shell_complete=complete_pool)
_SHOWN = ("name", "template", "low", "high", "limit", "parked", "leased", "restoring", "waiting")


@click.group("pool", short_help="Keep clones parked, take one, give it back.")
def pool_command() -> None:
    """Keep clones of a template parked, restored and frozen, so that taking one is a thaw.

    `thawbox serve` keeps pools filled in the background. Without it everything here works too, but a pool is filled
    only while a command is at work on it.
    """


def _span(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    return None if value is None else read_span(value)


def _print(pool: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(pool)
        return
    for key, value in pool.items():
        click.echo(f"{key:14} {value if value not in (None, '') else '-'}")


@pool_command.command("create", short_help="Make a pool from a template.")
@_pool_argument
@click.option(
    "--template", required=True, metavar="TEMPLATE", shell_complete=complete_template,
    help="What its clones are made from.",
)  # fmt: skip
@click.option("--low", type=int, default=1, show_default=True, help="Clones to keep parked at least.")
@click.option("--high", type=int, default=4, show_default=True, help="Clones to keep parked at most, after bursts.")
@click.option("--limit", type=int, default=16, show_default=True, help="Parked and leased clones together at most.")
@click.option(
    "--lease-ttl",
    metavar="SPAN",
    callback=_span,
    default="1h",
    show_default=True,
    help="After which a lease ends by itself.",
)
@click.option("--parallel", type=int, default=2, show_default=True, help="Clones to restore at the same time.")
@json_option
def create_command(name: str, as_json: bool, **options: Any) -> None:
    """Make a pool. `thawbox serve` begins to fill it at once.

    With --json: as `pool show`.
    """
    with reached() as node:
        made = node.create_pool(name, options)
    if as_json:
        print_json(made)
    else:
        click.echo(name)


@pool_command.command("ls", short_help="List pools.")
@json_option
def ls_command(as_json: bool) -> None:
    """List every pool of this node.

    With --json: {"pools": [as `pool show`]}.
    """
    with reached() as node:
        pools = node.pools()
    if as_json:
        print_json({"pools": pools})
        return
    rows = [tuple(str(pool.get(key, "-")) for key in _SHOWN) for pool in pools]
    print_table(tuple(key.upper() for key in _SHOWN), rows)


@pool_command.command("show", short_help="Show what a pool has and did.")
@_pool_argument
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show a pool as it was made and as it is.

    With --json: {"name", "template", "low", "high", "limit", "parked", "leased", "restoring", "waiting", "lease_ttl",
    "parallel", "drained", "open"}; while `thawbox serve` runs also "digest", "target", "stale", "ending", "totals"
    and "last_failure".
    """
    with reached() as node:
        found = node.pool(name)
    _print(found, as_json=as_json)


@pool_command.command("acquire", short_help="Take a running clone from a pool.")
@_pool_argument
@click.option(
    "--timeout", metavar="SPAN", callback=_span, default="30s", show_default=True, help="How long to wait for a clone."
)
@click.option(
    "--ttl", metavar="SPAN", callback=_span, help="After which the lease ends by itself. Default: the pool's."
)
@json_option
def acquire_command(name: str, timeout: float, ttl: float | None, as_json: bool) -> None:
    """Take a sandbox that nobody else has; print its name. It is destroyed when it is released or its lease ends.

    With --json: {"id", "name", "pool", "acquire_ms", "lease", "until"}; acquire_ms is what the pool took, until the
    end of the lease in seconds since 1970.
    """
    with reached() as node:
        taken = node.acquire(name, timeout=timeout, ttl=ttl)
    if as_json:
        print_json(taken)
    else:
        click.echo(f"{taken['name']}   {human_ms(taken['acquire_ms'])}")


@pool_command.command("release", short_help="Give a clone back.")
@click.argument("reference", metavar="SANDBOX|LEASE", shell_complete=complete_sandbox)
@click.option("--reset", is_flag=True, help="Let the pool park a new clone in its place.")
@json_option
def release_command(reference: str, reset: bool, as_json: bool) -> None:
    """End a lease; the sandbox is destroyed, and a used one never comes back into a pool.

    With --json: {"id", "name", "pool", "lease"}.
    """
    with reached() as node:
        released = node.release(reference, reset=reset)
    if as_json:
        print_json(released)
    else:
        click.echo(released["name"])


@pool_command.command("drain", short_help="Empty a pool for good.")
@_pool_argument
@click.option(
    "--timeout", metavar="SPAN", callback=_span, help="After which leases are ended. Default: at the end of their time."
)
@json_option
def drain_command(name: str, timeout: float | None, as_json: bool) -> None:
    """Give out nothing any more, let the leases end, destroy everything. The pool stays known, and empty.

    With --json: {"name"}.
    """
    with reached() as node:
        node.drain(name, timeout=timeout)
    _tell_name(name, as_json=as_json)


@pool_command.command("roll", short_help="Replace parked clones of an older template.")
@_pool_argument
@click.option("--timeout", metavar="SPAN", callback=_span, help="How long to wait for it. Default: until it is done.")
@json_option
def roll_command(name: str, timeout: float | None, as_json: bool) -> None:
    """Wait until no parked clone is of an older template: none of them is handed out after this.

    After `template rebuild` a pool that is kept by `thawbox serve` does this by itself. With --json: {"name"}.
    """
    with reached() as node:
        node.roll(name, timeout=timeout)
    _tell_name(name, as_json=as_json)


@pool_command.command("rm", short_help="Destroy and forget a pool.")
@_pool_argument
@click.option("-f", "--force", is_flag=True, help="End its leases too.")
@json_option
def rm_command(name: str, force: bool, as_json: bool) -> None:
    """Destroy what a pool has parked, and forget the pool. Its template stays.

    With --json: {"name"}.
    """
    with reached() as node:
        node.remove_pool(name, force=force)
    _tell_name(name, as_json=as_json)


def _tell_name(name: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name})
    else:
        click.echo(name)
