"""Names of sandboxes and snapshots as arguments, completed by the shell; and the node that knows them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from thawbox.cli.desk import reached
from thawbox.errors import ThawboxError

if TYPE_CHECKING:
    from thawbox.node import Node

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


@contextlib.contextmanager
def opened() -> Generator[Node]:
    """The node of THAWBOX_HOME for the block."""
    from thawbox.node import Node

    with Node() as node:
        yield node


def _beginning_with(incomplete: str, named: Iterable[tuple[str, str]]) -> list[CompletionItem]:
    return [CompletionItem(name, help=what) for name, what in named if name.startswith(incomplete)]


def complete_sandbox(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of this node's sandboxes, with their states."""
    with contextlib.suppress(ThawboxError, OSError, sqlite3.Error), reached() as node:
        return _beginning_with(incomplete, ((one["name"], one["state"]) for one in node.sandboxes(show_all=True)))
    return []


def complete_snapshot(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of this node's snapshots, and the beginnings of the ids of those without a name."""
    with contextlib.suppress(ThawboxError, OSError, sqlite3.Error), reached() as node:
        found: list[tuple[str, str]] = []
        for one in node.snapshots({}):
            about = str(one["sandbox"]["name"] or "")
            found += [(name, about) for name in one["names"]] or [(one["id"][:12], about)]
        return _beginning_with(incomplete, found)
    return []


def complete_template(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of this node's templates."""
    with contextlib.suppress(ThawboxError, OSError, sqlite3.Error), reached() as node:
        return _beginning_with(incomplete, ((one["name"], "") for one in node.templates()))
    return []


def complete_pool(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of this node's pools, with the templates that they are of."""
    with contextlib.suppress(ThawboxError, OSError, sqlite3.Error), reached() as node:
        return _beginning_with(incomplete, ((one["name"], one["template"]) for one in node.pools()))
    return []


def sandbox_argument(command: _Decorated) -> _Decorated:
    """One sandbox: name, id, or the beginning of an id."""
    return click.argument("name", metavar="SANDBOX", shell_complete=complete_sandbox)(command)


def sandboxes_argument(command: _Decorated) -> _Decorated:
    """One sandbox or more."""
    return click.argument(
        "names", metavar="SANDBOX...", nargs=-1, required=True, shell_complete=complete_sandbox
    )(command)  # fmt: skip


def snapshot_argument(command: _Decorated) -> _Decorated:
    """One snapshot: name, id, or the beginning of an id."""
    return click.argument("reference", metavar="SNAPSHOT", shell_complete=complete_snapshot)(command)
