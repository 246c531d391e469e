"""The program that gets frozen: a Python agent with memory, a file, a thread and a socket, and how to talk to it."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass

from thawbox.errors import NotFound, Unavailable
from thawbox.host.reach import connect_within

PORT = 8000
PAUSE = 0.0005
"""Seconds between two tries to be heard: shorter than what is measured, long enough to leave the cores alone."""

SOURCE = """
import hashlib, json, os, socket, sys, threading, time
memory = os.urandom(int(sys.argv[1]) << 20)
nonce = os.urandom(16).hex()
count = 0
def tick():
    global count
    while True:
        count += 1
        time.sleep(0.05)
threading.Thread(target=tick, daemon=True).start()
journal = open("agent-journal", "a")
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 8000))
listener.listen(128)
while True:
    caller, _ = listener.accept()
    with caller:
        question = caller.recv(16)
        journal.write("asked\\n")
        journal.flush()
        digest = hashlib.sha256(memory).hexdigest() if question == b"whole" else ""
        caller.sendall(json.dumps({"nonce": nonce, "count": count, "digest": digest}).encode())
"""
"""Keeps the given number of MiB of random bytes, and a nonce that is nowhere but in its memory. It ticks in a thread,
writes to an open file, and answers on its port; asked for the whole, with the digest of all its bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said: who it is (`nonce`), how far it got (`count`), and the digest of its memory if asked."""

    nonce: str
    count: int
    digest: str


def command(mib: int) -> tuple[str, ...]:
    """The agent's command line, with `mib` MiB of state."""
    return ("python3", "-c", SOURCE, str(mib))


def ask(pid: int, *, whole: bool = False, timeout: float = 30.0) -> Answer:
    """Ask the agent in the network namespace of process `pid`, again and again until it answers.

    Raises Unavailable after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _ask_once(pid, b"whole" if whole else b"hello", timeout)
        except (NotFound, OSError, json.JSONDecodeError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"the agent beside process {pid} did not answer within {timeout:g} s") from error
        time.sleep(PAUSE)


def _ask_once(pid: int, question: bytes, timeout: float) -> Answer:
    with connect_within(pid, PORT, timeout=timeout) as link:
        link.sendall(question)
        link.shutdown(socket.SHUT_WR)
        said = b""
        while part := link.recv(4096):
            said += part
    heard = json.loads(said)
    return Answer(heard["nonce"], heard["count"], heard["digest"])


def prove(pid: int, original: Answer) -> str:
    """The proof that the agent beside `pid` is the one that gave `original`, brought back: nonce, count, every byte.

    Raises AssertionError where it is not: a cold start must never pass for a restore.
    """
    now = ask(pid, whole=True)
    if now.nonce != original.nonce or now.digest != original.digest or now.count < original.count:
        raise AssertionError(f"not a restore: {original} became {now}")
    return now.nonce
