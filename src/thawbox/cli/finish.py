"""The process that finishes what `checkpoint --async` answered for: `python -m thawbox.cli.finish PIPE LOCK`.

The arguments are numbers of descriptors: see `sandbox.background.hand_over`, which starts it. Nobody reads its output;
how it ended is told to `snapshots wait` through the store.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

PROGRAM: Sequence[str] = (sys.executable, "-m", "thawbox.cli.finish")


def main(arguments: Sequence[str]) -> int:
    from thawbox.errors import ThawboxError
    from thawbox.node import Node
    from thawbox.sandbox.background import decode_order, finish_order

    pipe, lock = (int(text) for text in arguments)
    with os.fdopen(pipe, "rb") as file:
        content = file.read()
    if not content:  # whoever began it died before it was ours
        return 1
    order = decode_order(content)
    with contextlib.suppress(ThawboxError, OSError), Node(order.settings) as node:
        finish_order(node.context, order, lock=lock)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
