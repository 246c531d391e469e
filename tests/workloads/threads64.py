"""64 threads, each with a nonce on its own stack and a count of its own."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

from answering import serve

COUNT = 64
counts = [0] * COUNT
nonces = [""] * COUNT
rounds = [0]
shown = threading.Barrier(COUNT + 1)


def live(number: int) -> None:
    own = secrets.token_hex(8)
    nonces[number] = own
    shown.wait()
    while True:
        time.sleep(0.01)
        nonces[number] = hashlib.sha256(f"{own} {rounds[0]}".encode()).hexdigest()
        counts[number] += 1


def grow() -> None:
    rounds[0] += 1
    begun = list(counts)
    while any(counts[number] < begun[number] + 2 for number in range(COUNT)):
        time.sleep(0.005)  # until every thread has seen the new round


def kept() -> dict[str, object]:
    tasks = sorted(int(task.name) for task in Path("/proc/self/task").iterdir())
    return {"nonces": list(nonces), "tasks": tasks, "pid": os.getpid(), "rounds": rounds[0]}


def moving() -> dict[str, int]:
    return {str(number): count for number, count in enumerate(counts)}


for thread in range(COUNT):
    threading.Thread(target=live, args=(thread,), daemon=True).start()
shown.wait()
grow()
serve(kept, moving, grow)
