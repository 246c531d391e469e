"""Changes its memory in every way that matters to a delta; frozen between the steps.

Reads `step SEED` or `nonce` from the fifo `ask` and answers each with a line in the fifo `answer`. Its children do the
same step with another seed. The nonce exists only in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import secrets
import sys
from pathlib import Path

PAGE = 4096
PRIVATE, SHARED, ANONYMOUS = 2, 1, 0x20
MAYMOVE, ONTO = 1, 2
DONTNEED, HUGEPAGE = 4, 14
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

Region = list[int]
"""Address and length in bytes."""


def new_region(pages: int, flags: int, *, fd: int = -1) -> Region:
    address = libc.mmap(None, pages * PAGE, READ_WRITE, flags, fd, 0)
    assert address != FAILED
    return [address, pages * PAGE]


def write_page(region: Region, page: int, rng: random.Random) -> None:
    kind = rng.random()
    content = bytes(PAGE) if kind < 0.3 else rng.randbytes(PAGE) if kind < 0.6 else None
    where = region[0] + page * PAGE
    if content is not None:
        ctypes.memmove(where, content, PAGE)
    else:  # one byte, anywhere in the page
        ctypes.memset(where + rng.randrange(PAGE), rng.randrange(256), 1)


def churn(regions: list[Region], fixed: list[Region], rng: random.Random) -> None:
    """Write scattered pages everywhere; map, unmap, move, resize and discard some of `regions`."""
    for region in regions + fixed:
        pages = region[1] // PAGE
        for _ in range(max(1, pages // rng.choice((2, 8, 64)))):
            write_page(region, rng.randrange(pages), rng)
    regions.append(new_region(rng.randrange(1, 400), PRIVATE | ANONYMOUS))
    region = rng.choice(regions)
    where = rng.randrange(region[1] // PAGE)
    libc.madvise(region[0] + where * PAGE, rng.randrange(1, region[1] // PAGE - where + 1) * PAGE, DONTNEED)
    if len(regions) > 4:
        libc.munmap(*regions.pop(rng.randrange(len(regions))))
    region = rng.choice(regions)
    length = max(1, region[1] // PAGE + rng.randrange(-20, 60)) * PAGE
    address = libc.mremap(region[0], region[1], length, MAYMOVE, None)
    if address != FAILED:  # a region pieced together of several mappings cannot be resized
        region[:] = [address, length]
    swap_two(regions, rng)


def swap_two(regions: list[Region], rng: random.Random) -> None:
    """Move a region onto another's old address, so that the address holds other pages than the parent knew there."""
    one, two = rng.sample(regions, 2)
    size = min(one[1], two[1])
    spare = libc.mmap(None, size, 0, PRIVATE | ANONYMOUS, -1, 0)
    if move(one[0], spare, size):
        if move(two[0], one[0], size):
            move(spare, two[0], size)
        else:
            move(spare, one[0], size)


def move(old: int, new: int, size: int) -> bool:
    return libc.mremap(old, size, size, MAYMOVE | ONTO, new) != FAILED


def serve(directory: Path) -> None:
    nonce = secrets.token_hex(16)
    regions = [new_region(pages, PRIVATE | ANONYMOUS) for pages in (1, 50, 700)]
    huge = new_region(4096, PRIVATE | ANONYMOUS)
    libc.madvise(huge[0], huge[1], HUGEPAGE)
    source = os.open(directory / "mapped", os.O_RDWR)
    memory_file = os.memfd_create("churn")
    os.truncate(memory_file, 60 * PAGE + 100)
    fixed = [
        huge,
        new_region(200, SHARED | ANONYMOUS),
        new_region(60, SHARED, fd=memory_file),
        new_region(100, PRIVATE, fd=source),
    ]
    ask, answer = (os.open(directory / name, os.O_RDWR) for name in ("ask", "answer"))
    children = [fork_child(regions, fixed) for _ in range(2)]
    os.write(answer, b"ready\n")
    while True:
        for line in os.read(ask, 4096).decode().splitlines():
            if line.startswith("step "):
                seed = int(line.split()[1])
                churn(regions, fixed, random.Random(seed))
                for number, (to_child, from_child) in enumerate(children):
                    os.write(to_child, f"{seed * 10 + number}\n".encode())
                    os.read(from_child, 100)
                if seed % 3 == 0:
                    children.append(fork_child(regions, fixed))
            os.write(answer, f"{nonce}\n".encode())


def fork_child(regions: list[Region], fixed: list[Region]) -> tuple[int, int]:
    """A child that does a churn of its own copy for every seed it is sent; returns where to send and to listen."""
    mine, to_child = os.pipe()
    from_child, theirs = os.pipe()
    if os.fork():
        return to_child, from_child
    while True:
        churn(regions, fixed, random.Random(int(os.read(mine, 100))))
        os.write(theirs, b"done\n")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
