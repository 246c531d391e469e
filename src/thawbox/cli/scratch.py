"""A node for one command alone: `doctor` and `demo` try things where no sandbox of the user's is."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from thawbox.host.files import remove_tree
from thawbox.node import Node

if TYPE_CHECKING:
    from thawbox.config import Settings


@contextlib.contextmanager
def scratch_node(settings: Settings) -> Generator[Node]:
    """A node in a new directory on the filesystem of THAWBOX_HOME; gone after the block, with all that it held."""
    beside = settings.home
    while not beside.is_dir():
        beside = beside.parent
    home = Path(tempfile.mkdtemp(prefix="thawbox-scratch-", dir=beside))
    with contextlib.ExitStack() as undo:
        undo.callback(remove_tree, home)
        node = Node(replace(settings, home=home))
        undo.callback(_leave_nothing, node)
        yield node


def _leave_nothing(node: Node) -> None:
    for sandbox in node.sandboxes():
        sandbox.remove(force=True)
    node.tidy()
    node.close()
