"""Where a command asks: at the node's running service, or, where none runs, at the node, which it then opens itself."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeAlias

from thawbox.cli.served import Served, connected

if TYPE_CHECKING:
    from thawbox.cli.embedded import Embedded


Desk: TypeAlias = "Served | Embedded"


@contextlib.contextmanager
def reached() -> Generator[Desk]:
    """The node of THAWBOX_HOME for the block; both ways give the same answers and raise the same errors."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connected())
        if connection is not None:
            yield Served(connection)
            return
        from thawbox.cli.embedded import Embedded
        from thawbox.node import Node

        yield Embedded(stack.enter_context(Node()))
