"""A supervisor that is killed by itself: `supervising.py HOME WHEN`, WHEN being an event, or `criu:` and an event.

At the event it dies by SIGKILL; with `criu:` it goes on, and dies once the first criu after that event has begun.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from thawbox.config import Settings
from thawbox.host.proc import children, command_name
from thawbox.node import Node
from thawbox.supervisor import Event, Supervisor

home, when = Path(sys.argv[1]), sys.argv[2]
awaited = when.removeprefix("criu:")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hunt() -> None:
    while True:
        for child in children(os.getpid()):
            if "criu" in {command_name(pid) for pid in (child, *children(child))}:
                die()


def tell(event: Event) -> None:
    print(event.what, flush=True)
    if event.what != awaited:
        return
    if when == awaited:
        die()
    threading.Thread(target=hunt, daemon=True).start()


with Node(Settings(home=home)) as node, Supervisor(node.context, tell=tell):
    sys.stdin.read()
