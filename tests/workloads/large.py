"""Large areas of memory of every kind that a restore may bring in before the program has them where they belong.

`kept` tells a digest of all of them, the child's too, how the kernel sees them, and how many tasks there are. `grow`
maps an area right behind one of them and forks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
from pathlib import Path

from answering import serve

MIB = 1 << 20
SIZE = int(sys.argv[1]) * MIB if len(sys.argv) > 1 else 24 * MIB
READ, WRITE, PRIVATE, ANONYMOUS, FIXED = 1, 2, 2, 0x20, 0x10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def mapped(size: int, at: int = 0) -> int:
    flags = PRIVATE | ANONYMOUS | (FIXED if at else 0)
    address = libc.mmap(at, size, READ | WRITE, flags, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def filled(address: int, size: int, *, every: int = 1) -> int:
    """Random pages, or only each so manyth of them."""
    for at in range(0, size, every * MIB):
        ctypes.memmove(address + at, os.urandom(MIB), MIB)
    return address


def digest(address: int, size: int) -> str:
    return hashlib.sha256(ctypes.string_at(address, size)).hexdigest()


with_holes, constant, inherited, room = mapped(SIZE), mapped(SIZE), mapped(SIZE), mapped(3 * SIZE)
filled(with_holes, SIZE, every=3)
libc.mprotect(filled(constant, SIZE), SIZE, READ)
filled(inherited, SIZE)
libc.munmap(filled(room, SIZE) + SIZE, 2 * SIZE)  # with nothing behind it
AREAS = [(room, SIZE), (with_holes, SIZE), (constant, SIZE), (inherited, SIZE)]
asking, told = os.pipe(), os.pipe()
CHILD = os.fork()
if CHILD == 0:
    filled(inherited, SIZE, every=4)  # its own now, the rest its parent's too
    libc.mprotect(mapped(4096), 4096, 0)  # or the next would be one with what it shares: restores look for equal areas
    mine = filled(mapped(SIZE), SIZE)
    while os.read(asking[0], 1):
        tasks = len(os.listdir("/proc/self/task"))
        os.write(told[1], f"{digest(inherited, SIZE)} {digest(mine, SIZE)} {tasks}".encode())
    os._exit(0)


def of_child() -> str:
    os.write(asking[1], b"?")
    return os.read(told[0], 1000).decode()


def seen(pid: int | str) -> list[str]:
    """Protection and flags of the large areas of nobody's file, each once: the kernel may merge neighbours."""
    areas: set[str] = set()
    for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE):
        if not area:
            continue
        head, flags = area.splitlines()[0].split(), area.split("VmFlags:")[1].split()
        begin, end = (int(number, 16) for number in head[0].split("-"))
        if head[4] == "0" and end - begin >= SIZE:
            areas.add(f"{head[1]} {' '.join(flag for flag in flags if flag != 'sd')}")
    return sorted(areas)


def kept() -> dict[str, object]:
    return {
        "digests": [digest(*area) for area in AREAS], "child": of_child(), "areas": seen("self"),
        "areas of the child": seen(CHILD), "tasks": len(os.listdir("/proc/self/task")),
    }  # fmt: skip


def grow() -> None:
    filled(mapped(SIZE, at=room + SIZE), SIZE)
    AREAS[0] = (room, 2 * SIZE)
    expected = digest(*AREAS[0])
    if (pid := os.fork()) == 0:
        os._exit(digest(*AREAS[0]) != expected)
    assert os.waitpid(pid, 0)[1] == 0


serve(kept, dict, grow)
