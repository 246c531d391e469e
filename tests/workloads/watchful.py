"""A parent, a subreaper among its children, that note all they are told of processes, signals and descriptors.

Nobody of them ever ends, so nothing is to be told, ever: no child too many, no SIGCHLD, no descriptor, no signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from answering import serve

ALL_CHILDREN = 0x40000000  # __WALL
CLONED = 0x80000000  # __WCLONE
PR_SET_CHILD_SUBREAPER = 36

libc = ctypes.CDLL(None, use_errno=True)
seen: list[str] = []
looks = {"looks": 0}


def children_of_all_threads() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return sorted(int(word) for task in tasks for word in (task / "children").read_text().split())


def descriptors() -> list[str]:
    names = sorted(os.listdir("/proc/self/fd"), key=int)
    found = []
    for name in names:
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return [one for one in found if "/proc/" not in one and "socket:" not in one]


def ended(options: int) -> str:
    status = ctypes.c_int()
    pid = libc.wait4(-1, ctypes.byref(status), options | os.WNOHANG, None)
    return f"{pid} {os.strerror(ctypes.get_errno()) if pid < 0 else ''}".strip()


def told() -> dict[str, object]:
    return {
        "children": children_of_all_threads(),
        "any": ended(ALL_CHILDREN), "cloned": ended(CLONED), "ordinary": ended(0),
        "group": os.getpgid(0), "session": os.getsid(0),
        "mapped": "CRIU" in Path("/proc/self/maps").read_text(),
    }  # fmt: skip


def watch(report: int) -> None:
    """Look all the time, and write to `report` what was ever different from the first look."""
    first = told()
    while True:
        now = told()
        looks["looks"] += 1
        if now != first:
            os.write(report, json.dumps({"pid": os.getpid(), "was": first, "is": now}).encode() + b"\n")
        time.sleep(0.0005)


def on_signal(number: int, _frame: object) -> None:
    os.write(theirs, json.dumps({"pid": os.getpid(), "signal": number}).encode() + b"\n")


def become_subreaper() -> None:
    """A child that is a subreaper, with a grandchild of its own."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        watch(theirs)
    watch(theirs)


def kept() -> dict[str, object]:
    while select.select([ours], [], [], 0)[0]:
        seen.extend(os.read(ours, 1 << 16).decode().splitlines())
    subreaper = ctypes.c_int()
    libc.prctl(37, ctypes.byref(subreaper), 0, 0, 0)
    return {"told": seen, "descriptors": before, "descriptors now": descriptors(), "subreaper": subreaper.value}


ours, theirs = os.pipe()
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, on_signal)
if "subreaper" in sys.argv:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
for _ in range(2):
    if os.fork() == 0:
        watch(theirs)
if os.fork() == 0:
    become_subreaper()
threading.Thread(target=watch, args=(theirs,), daemon=True).start()
before = descriptors()
serve(kept, lambda: dict(looks), lambda: None)
