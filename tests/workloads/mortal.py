"""A program that dies or hangs as it is told, with a nonce and memory that only a restore can bring back.

One word over TCP on port 8000: `state` answers with JSON; `grow` changes the memory and the file first; `fill` takes
110 MiB more; `eat` takes memory until the kernel kills; `fail` ends by an uncaught MemoryError; `segv` by SIGSEGV;
`exit` with status 0; `hang` answers and then deadlocks. A request that begins with `GET ` is answered in HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import secrets
import signal
import socket
import threading

nonce = secrets.token_hex(16)
memory = [os.urandom(1 << 20)]
file = open("/var/log/mortal.log", "a+b", buffering=0)
lock = threading.Lock()


def digest() -> str:
    """Of the memory, without another copy of it."""
    whole = hashlib.sha256()
    for chunk in memory:
        whole.update(chunk)
    return whole.hexdigest()


def state() -> bytes:
    return json.dumps({
        "nonce": nonce,
        "memory": digest(),
        "file": hashlib.sha256(os.pread(file.fileno(), 1 << 20, 0)).hexdigest(),
        "chunks": len(memory),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
    }).encode()  # fmt: skip


def obey(word: str) -> None:
    if word == "grow":
        memory.append(os.urandom(1 << 16))
        file.write(b"grown\n")
    elif word == "eat":
        while True:
            memory.append(bytearray(b"x" * (1 << 20)))
    elif word == "fill":
        memory.append(os.urandom(110 << 20))
    elif word == "fail":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
        bytearray(1 << 40)
    elif word == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "exit":
        os._exit(0)


listening = socket.create_server(("127.0.0.1", 8000))
while True:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(30)
        word = connection.recv(256).decode().strip()
        if word.startswith("GET "):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            continue
        if not word:
            continue
        obey(word)
        with contextlib.suppress(OSError):  # a restore may find the asker gone
            connection.sendall(state())
    if word == "hang":
        lock.acquire()
        lock.acquire()
