"""How a workload is questioned: one word in, one JSON object out, over TCP on the sandbox's loopback.

    state   {"kept": …, "moving": …}       `kept` changes only by `grow`; `moving` holds numbers that only rise
    grow    lets the program's state grow, then answers as `state`
    move    waits until every number of `moving` has risen, then answers as `state`

`at_rest` is how many descriptors the program has while nobody is connected. A connection that says nothing is a
readiness probe.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable

PORT = 8000

Kept = Callable[[], dict[str, object]]
Moving = Callable[[], dict[str, int]]


def serve(kept: Kept, moving: Moving, grow: Callable[[], None]) -> None:
    """Answer one connection after the other, for ever."""
    listening = socket.create_server(("127.0.0.1", PORT))
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(30)
            word = connection.recv(64).decode().strip()
            if not word:
                continue
            if word == "grow":
                grow()
            if word == "move":
                wait_until_all_moved(moving)
            answer = {"kept": kept(), "moving": moving(), "at_rest": len(os.listdir("/proc/self/fd")) - 2}
            connection.sendall(json.dumps(answer).encode())


def wait_until_all_moved(moving: Moving) -> None:
    begun = moving()
    while any(now <= begun[name] for name, now in moving().items()):
        time.sleep(0.002)  # the numbers are moved by threads, signals and other processes: nothing to wait on
