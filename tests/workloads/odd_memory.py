"""Memory that a fork gives its child otherwise or not at all, each with a content that must come back.

`odd_memory.py [sysv|filter]`: with System V shared memory as well, or under a seccomp filter of its own that kills the
process for what a copy of it would have to do.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import secrets
import struct
import sys

from answering import serve

SIZE = 64 << 10
PAGE = 4096
PROT_NONE = 0
MADV_DONTFORK, MADV_WIPEONFORK, MADV_GUARD_INSTALL = 10, 18, 102
SYS_IO_SETUP, SYS_CLONE, SYS_MUNMAP, SYS_SETSID, SYS_CLOSE_RANGE = 206, 56, 11, 112, 436

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 4]
libc.shmat.restype = ctypes.c_void_p


class Area:
    """Private memory by address, so that it may be made unreadable and be read again."""

    def __init__(self, advice: int = 0, *, flags: int = 0, fd: int = -1, guards: int = 0) -> None:
        flags = flags or mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.at = libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        ctypes.memmove(self.at, os.urandom(SIZE), SIZE)
        if advice:
            assert libc.madvise(ctypes.c_void_p(self.at), SIZE, advice) == 0
        self.readable = SIZE - guards * PAGE
        if guards and libc.madvise(ctypes.c_void_p(self.at + self.readable), guards * PAGE, MADV_GUARD_INSTALL):
            self.readable = SIZE  # a kernel before 6.13

    def protect(self, protection: int) -> Area:
        assert libc.mprotect(ctypes.c_void_p(self.at), SIZE, protection) == 0
        return self

    def digest(self) -> str:
        return hashlib.sha256(ctypes.string_at(self.at, self.readable)).hexdigest()


def sealed_by_filter() -> None:
    """From now on clone, munmap, setsid and close_range kill this process: mmap and exit are all it needs."""
    fatal = (SYS_CLONE, SYS_SETSID, SYS_CLOSE_RANGE)
    program = [(0x20, 0, 0, 0)]  # load the number of the system call
    for left, number in reversed(list(enumerate(reversed(fatal)))):
        program.append((0x15, left + 1, 0, number))  # jump over what is left, and over `allow`
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x80000000)]  # allow; kill the process
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    arguments = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(arguments), 0, 0) == 0


def ring() -> bool:
    """Whether an AIO context, with its ring of memory, could be made."""
    context = ctypes.c_ulong()
    return libc.syscall(SYS_IO_SETUP, 8, ctypes.byref(context)) == 0


def shared(kind: str) -> Area | None:
    if kind == "memfd":
        fd = os.memfd_create("odd")
        os.ftruncate(fd, SIZE)
        return Area(flags=mmap.MAP_SHARED, fd=fd)
    number = libc.shmget(0, SIZE, 0o1600)
    at = libc.shmat(number, None, 0)
    area = Area()
    area.at = at
    ctypes.memmove(at, os.urandom(SIZE), SIZE)
    return area


areas = {
    "plain": Area(),
    "not forked": Area(MADV_DONTFORK),
    "wiped in a fork": Area(MADV_WIPEONFORK),
    "unreadable": Area().protect(PROT_NONE),
    "guarded": Area(guards=4),
    "memfd": shared("memfd"),
    "anonymous shared": Area(flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
}
has_ring = ring()
locked = Area()
if libc.mlock(ctypes.c_void_p(locked.at), SIZE) == 0:
    areas["locked"] = locked
if "sysv" in sys.argv:
    areas["System V"] = shared("sysv")
nonce = secrets.token_hex(16)


def kept() -> dict[str, object]:
    areas["unreadable"].protect(mmap.PROT_READ)
    digests = {name: area.digest() for name, area in areas.items()}
    areas["unreadable"].protect(PROT_NONE)
    return {"nonce": nonce, "ring": has_ring, **digests}


if "filter" in sys.argv:
    sealed_by_filter()
turns = {"turns": 0}


def moving() -> dict[str, int]:
    turns["turns"] += 1
    return turns.copy()


serve(kept, moving, lambda: None)
