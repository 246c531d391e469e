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
_CHUNK = 4 << 20
_PRESENT = 0b11 << 62  # in memory or in swap (Documentation/admin-guide/mm/pagemap.rst)
_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ 0\b(?!.*\[(?:vvar|vdso))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """A database that process `pid` (as numbered inside) has open at `fd`, with the identity it then had."""

    pid: int
    fd: int
    device: int
    inode: int


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
    wanted: dict[int, list[OpenDatabase]] = {}
    for database in databases:
        wanted.setdefault(database.pid, []).append(database)
    if not wanted:
        return 0
    places = 0
    for pid in pids:
        mine = wanted.get(pid_inside(pid) or 0, ())
        changes: dict[bytes, bytes] = {}
        for database in mine:
            now = os.stat(f"/proc/{pid}/fd/{database.fd}")
            changes[_IDENTITY.pack(database.device, database.inode)] = _IDENTITY.pack(now.st_dev, now.st_ino)
        changes = {old: new for old, new in changes.items() if old != new}
        if changes:
            places += _replace_in_memory(pid, changes)
    return places


def _replace_in_memory(pid: int, changes: dict[bytes, bytes]) -> int:
    places = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for start, end in _present_runs(pid, pagemap.fileno()):
            for at in range(start, end, _CHUNK):
                # a pair may lie across two chunks
                content = os.pread(memory.fileno(), min(_CHUNK + _IDENTITY.size, end - at), at)
                for offset, new in _matches(content, changes):
                    os.pwrite(memory.fileno(), new, at + offset)
                    places += 1
    return places


def _matches(content: bytes, changes: dict[bytes, bytes]) -> Iterator[tuple[int, bytes]]:
    for old, new in changes.items():
        offset = content.find(old)
        while offset >= 0:
            if offset % 8 == 0:  # both are eight-byte numbers, and lie so
                yield offset, new
            offset = content.find(old, offset + 1)


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
