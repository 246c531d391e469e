"""Processes and threads that write every page they have, over and over, and find out themselves if one was torn.

Each writer goes over its pages in order and stamps round N into what must hold round N - 1. Memory that was not taken
in one moment holds some other round somewhere, and whoever comes upon it, even after a restore, notes it for good. What
a writer shares with the others is stamped last: it never is ahead, and never more than one round behind.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import sys
import threading

from answering import serve

PAGE = 4096
PAGES = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
CHILDREN = 2
THREADS = 2
_ROUND = struct.Struct("<Q")

nonce = secrets.token_hex(16)
board = mmap.mmap(-1, PAGE)  # shared: one round per writer
found = mmap.mmap(-1, PAGE)  # shared: how many torn pages each writer came upon
memory = [mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(THREADS)]


def get(where: mmap.mmap, writer: int) -> int:
    return int(_ROUND.unpack_from(where, writer * _ROUND.size)[0])


def put(where: mmap.mmap, writer: int, value: int) -> None:
    _ROUND.pack_into(where, writer * _ROUND.size, value)


def write(writer: int, pages: mmap.mmap) -> None:
    unpack, pack = _ROUND.unpack_from, _ROUND.pack_into
    number = 0
    while True:
        number += 1
        if get(board, writer) != number - 1:
            put(found, writer, get(found, writer) + 1)
        for at in range(writer, PAGES * PAGE, PAGE):  # at another place of the page for each
            if unpack(pages, at)[0] != number - 1:
                put(found, writer, get(found, writer) + 1)
            pack(pages, at, number)
        put(board, writer, number)


def kept() -> dict[str, object]:
    torn = [get(found, writer) for writer in range(THREADS + CHILDREN)]
    return {"nonce": nonce, "pid": os.getpid(), "torn": torn}


def moving() -> dict[str, int]:
    return {str(writer): get(board, writer) for writer in range(THREADS + CHILDREN)}


for child in range(CHILDREN):
    if os.fork() == 0:
        write(THREADS + child, memory[0])
for thread in range(THREADS):
    threading.Thread(target=write, args=(thread, memory[thread]), daemon=True).start()
serve(kept, moving, lambda: None)
