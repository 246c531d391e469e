"""SQLite databases that are open in a tree: what their processes remember of the file's identity, put right.

A restored file has another device and inode number. SQLite remembers those of each file it has open (`unixFileId` in
its os_unix.c: device and inode, eight bytes each, side by side). With a rollback journal it compares the inode before
every transaction and refuses to write to a file that moved; with any journal it would take a second connection of the
same process for another file, and lose its locks when that one is closed. So the pair is found in the process's memory
and replaced, before the process runs. It is the same file: whoever else holds that pair there wants the new one too.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thawbox.host.proc import pid_inside

# For every descriptor in the frozen moment: plain calls take half the time of Path's.
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

_MAGIC = b"SQLite format 3\0"
"""https://sqlite.org/fileformat2.html, section 1.3."""
_NOT_A_FILE = ("socket:", "pipe:", "anon_inode:", "/dev/", "/proc/", "/sys/", "/memfd:")
_IDENTITY = struct.Struct("=QQ")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 20
_PRESENT = 0b11 << 62  # in memory or in swap (Documentation/admin-guide/mm/pagemap.rst)
_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ 0\b(?!.*\[(?:vvar|vdso))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """A database that process `pid` (as numbered inside) has open at `fd`, with the identity it then had.

    `places` are the addresses at which that identity lies in its memory, None where nobody has looked yet.
    """

    pid: int
    fd: int
    device: int
    inode: int
    places: tuple[int, ...] | None = None

    @property
    def identity(self) -> bytes:
        """The sixteen bytes that SQLite remembers."""
        return _IDENTITY.pack(self.device, self.inode)


def find_databases(pids: Iterable[int]) -> tuple[OpenDatabase, ...]:
    """The SQLite databases that the processes `pids` (the host's numbers) have open."""
    found: list[OpenDatabase] = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            opened = list(_opened_by(pid))
            if opened:
                inside = pid_inside(pid) or 0
                found += [OpenDatabase(inside, fd, status.st_dev, status.st_ino) for fd, status in opened]
    return tuple(sorted(found, key=lambda one: (one.pid, one.fd)))


def _opened_by(pid: int) -> Iterator[tuple[int, os.stat_result]]:
    directory = f"/proc/{pid}/fd"
    for fd in os.listdir(directory):
        path = f"{directory}/{fd}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(_NOT_A_FILE):
                continue
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size < len(_MAGIC):
                continue
            with open(path, "rb", buffering=0) as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    yield int(fd), status


def mend_identities(pids: Iterable[int], databases: Iterable[OpenDatabase]) -> int:
    """Tell the restored processes `pids` (the host's numbers) who their databases are now; returns how many places.

    The processes must not run meanwhile. Raises OSError when their memory cannot be read or written.
    """
    wanted: dict[int | None, list[OpenDatabase]] = {}
    for database in databases:
        wanted.setdefault(database.pid, []).append(database)
    if not wanted:
        return 0  # nothing is looked up
    return sum(_mend(pid, wanted[inside]) for pid in pids if (inside := pid_inside(pid)) in wanted)


def _mend(pid: int, databases: list[OpenDatabase]) -> int:
    changes: dict[bytes, bytes] = {}
    known: dict[int, bytes] = {}
    for database in databases:
        now = os.stat(f"/proc/{pid}/fd/{database.fd}")
        new = _IDENTITY.pack(now.st_dev, now.st_ino)
        if new != database.identity:
            changes[database.identity] = new
            known |= dict.fromkeys(database.places or (), database.identity)
    if not changes:
        return 0
    if any(database.places is None for database in databases):
        return _replace_in_memory(pid, changes)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for place, old in known.items():
            if os.pread(memory.fileno(), _IDENTITY.size, place) != old:
                return _replace_in_memory(pid, changes)  # not the memory that was searched
            os.pwrite(memory.fileno(), changes[old], place)
    return len(known)


def _replace_in_memory(pid: int, changes: dict[bytes, bytes]) -> int:
    places = 0
    buffer = bytearray(_CHUNK + _IDENTITY.size)  # one for all: fresh memory costs more than what is read into it
    view = memoryview(buffer)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for start, end in _present_runs(pid, pagemap.fileno()):
            for at in range(start, end, _CHUNK):
                # a pair may lie across two chunks
                length = os.preadv(memory.fileno(), [view[: min(len(buffer), end - at)]], at)
                for offset, new in _matches(buffer, length, changes):
                    os.pwrite(memory.fileno(), new, at + offset)
                    places += 1
    return places


def _matches(content: bytearray, length: int, changes: dict[bytes, bytes]) -> Iterator[tuple[int, bytes]]:
    for old, new in changes.items():
        # The low bytes of the inode: the whole pair is mostly zeros, which takes six times as long to find.
        rare = old[_IDENTITY.size // 2 :].rstrip(b"\0") or b"\0"
        at = content.find(rare, 8, length)
        while at >= 0:
            if at % 8 == 0 and bytes(content[at - 8 : at + 8]) == old:  # both are eight-byte numbers, and lie so
                yield at - 8, new
            at = content.find(rare, at + 1, length)


def _present_runs(pid: int, pagemap: int) -> Iterator[tuple[int, int]]:
    """Addresses of anonymous writable memory that is there, in runs: untouched pages stay untouched."""
    for match in _WRITABLE.finditer(Path(f"/proc/{pid}/maps").read_text()):
        start, end = int(match[1], 16), int(match[2], 16)
        run = 0
        for first in range(start, end, _CHUNK * 128):
            pages = min(end - first, _CHUNK * 128) // _PAGE
            entries = array.array("Q", os.pread(pagemap, pages * 8, first // _PAGE * 8))
            for number, entry in enumerate(entries):
                here = first + number * _PAGE
                if entry & _PRESENT:
                    run = run or here
                elif run:
                    yield run, here
                    run = 0
        if run:
            yield run, end
