"""How a workload is questioned: one word in, one JSON object out, over TCP on the sandbox's loopback.

    state   {"kept": …, "moving": …}       `kept` changes only by `grow`; `moving` holds numbers that only rise
    grow    lets the program's state grow, then answers as `state`
    move    waits until every number of `moving` has risen, then answers as `state`

`at_rest` says what the program is like while nobody is connected and no signal is being handled: how many descriptors
it has, and the signals that it blocks. A connection that says nothing is a readiness probe.
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
            answer = {"kept": kept(), "moving": moving(), "at_rest": at_rest()}
            connection.sendall(json.dumps(answer).encode())


def at_rest() -> dict[str, object]:
    with open("/proc/self/status") as status:
        (blocked,) = [line.split()[1] for line in status if line.startswith("SigBlk:")]
    return {"descriptors": len(os.listdir("/proc/self/fd")) - 2, "blocked": blocked}


def wait_until_all_moved(moving: Moving) -> None:
    begun = moving()
    while any(now <= begun[name] for name, now in moving().items()):
        time.sleep(0.002)  # the numbers are moved by threads, signals and other processes: nothing to wait on
