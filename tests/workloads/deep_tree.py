"""A process tree five deep; on every level a nonce that only it knows and a child that ended and was not waited for."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path

from answering import serve

DEPTH = 5


def start_zombie() -> int:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.close(write)
    os.read(read, 1)  # returns when the child, who held the other end too, has ended
    os.close(read)
    return pid


def descend(level: int) -> socket.socket | None:
    """Start the levels below and return the link to the next one; in each of them, never return."""
    if level == DEPTH:
        return None
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    live(level + 1, theirs)
    os._exit(0)


def live(level: int, above: socket.socket) -> None:
    nonce, zombie = secrets.token_hex(8), start_zombie()
    below, count = descend(level), 0
    for line in above.makefile("rb"):
        count += line == b"grow\n"
        under = ask(below, line) if below else []
        above.sendall(json.dumps([[level, nonce, count, os.getpid(), zombie], *under]).encode() + b"\n")


def ask(link: socket.socket, line: bytes) -> list[object]:
    link.sendall(line)
    with link.makefile("rb") as answer:
        levels: list[object] = json.loads(answer.readline())
    return levels


def tasks() -> list[str]:
    """pid, name, state, parent and group of every process in sight, sleeping or running counted as one."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        fields = (directory / "stat").read_text().split()
        found.append(" ".join([*fields[:2], "Z" if fields[2] == "Z" else "alive", *fields[3:6]]))
    return sorted(found)


zombie = start_zombie()
below = descend(1)
assert below is not None
serve(
    lambda: {"levels": ask(below, b"tell\n"), "zombie": zombie, "tasks": tasks()},
    lambda: {"monotonic": time.monotonic_ns()},
    lambda: ask(below, b"grow\n") and None,
)
