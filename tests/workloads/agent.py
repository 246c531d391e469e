"""An agent as people run them: state in memory, files, a socket, a child, threads, timers, an environment."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time

from answering import serve

CHUNK = 64 << 10
MEBIBYTES = int(sys.argv[1]) if len(sys.argv) > 1 else 1

nonce = secrets.token_hex(16)
memory = [bytearray(os.urandom(CHUNK)) for _ in range(MEBIBYTES * (1 << 20) // CHUNK)]
moved = {"thread": 0, "alarm": 0}


def child_loop(link: socket.socket) -> None:
    """A second process, with a nonce of its own: answers every line with it and the lines that it has heard."""
    own, heard = secrets.token_hex(16), hashlib.sha256()
    for line in link.makefile("rb"):
        if line != b"?\n":
            heard.update(line)
        link.sendall(f"{own} {heard.hexdigest()}\n".encode())


def start_child() -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        child_loop(theirs)
        os._exit(0)
    theirs.close()
    return pid, ours


child, link = start_child()
answers = link.makefile("rb")
log = open("/var/log/agent.log", "a+b", buffering=0)
deleted = tempfile.TemporaryFile(buffering=0)
deleted.write(nonce.encode())


def tell_child(line: bytes) -> str:
    link.sendall(line + b"\n")
    return answers.readline().decode().strip()


def on_alarm(_number: int, _frame: object) -> None:
    moved["alarm"] += 1


def tick() -> None:
    while True:
        time.sleep(0.005)
        moved["thread"] += 1


def grow() -> None:
    memory.append(bytearray(os.urandom(CHUNK)))
    secrets.choice(memory)[secrets.randbelow(CHUNK)] ^= 0xFF
    log.write(f"{len(memory)} chunks\n".encode())
    deleted.write(os.urandom(100))
    tell_child(b"grown")


def kept() -> dict[str, object]:
    return {
        "nonce": nonce,
        "memory": hashlib.sha256(b"".join(memory)).hexdigest(),
        "chunks": len(memory),
        "child": tell_child(b"?"),
        "log": hashlib.sha256(os.pread(log.fileno(), 1 << 20, 0)).hexdigest(),
        "log_offset": log.tell(),
        "deleted": hashlib.sha256(os.pread(deleted.fileno(), 1 << 20, 0)).hexdigest(),
        "pids": [os.getpid(), os.getppid(), child, os.getsid(0)],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }


def moving() -> dict[str, int]:
    return {**moved, "monotonic": time.monotonic_ns(), "process_time": time.clock_gettime_ns(time.CLOCK_REALTIME)}


signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
for number in range(3):
    threading.Thread(target=tick, name=f"ticker-{number}", daemon=True).start()
print("agent ready", nonce, flush=True)
serve(kept, moving, grow)
