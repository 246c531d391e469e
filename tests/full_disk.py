"""A disk that is full for a while, as the node's journal sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from thawbox.node import Node

_CHANGES = ("add", "add_with_address", "update", "remove", "write_entry", "remove_entry")


class Refusals:
    """How many changes were refused."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.count += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "journal.db")


@contextmanager
def full_disk(node: Node) -> Iterator[Refusals]:
    """A block in which the journal can be read, and changed by nobody who uses this node."""
    refusals = Refusals()
    with patch.multiple(node.context.journal, **dict.fromkeys(_CHANGES, refusals)):
        yield refusals
