"""What a template server loads: which memory of a snapshot, where it lies until a clone takes it, and from which files.

Formats: struct template_* in our patch 0005 (native/criu/README.md).

Rule 1: each task has an arena in which CRIU's premapped areas lie in the order of their addresses; no arena overlaps
any mapping of any task, so that the restorer may unmap what is left of it.
Rule 2: an area lies there as far from a huge page's border as in the program, so that the kernel moves whole tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.engines.criu_images import Vma, VmaStatus, read_vmas
from thawbox.engines.criu_reader import merged_pages
from thawbox.engines.criu_vmas import absent_is_zero
from thawbox.errors import Unsupported

MAX_FILES = 240
"""Descriptors that fit into one message, less our own (SCM_MAX_FD is 253)."""
_HEADER = struct.Struct("<4I")
_TASK = struct.Struct("<QQII")
_REGION = struct.Struct("<QQQQII")
_PIECE = struct.Struct("<QQQII")
_MAGIC = 0x33425458
_MAP_PLAIN = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
_MAP_NORESERVE = 0x4000
_PAGE = 4096
_HUGE = 2 << 20
_PREMAPPED = VmaStatus.ANON_PRIVATE | VmaStatus.FILE_PRIVATE | VmaStatus.AIO_RING | VmaStatus.SHADOW_STACK
"""What CRIU may premap (`vma_entry_is_private`)."""


@dataclass(frozen=True, slots=True)
class Table:
    """The packed table, the files that it names by number, and the bytes that the server will hold."""

    content: bytes
    files: tuple[Path, ...]
    resident: int


@dataclass(slots=True)
class _Arena:
    """One task's: `regions` are packed but for their place, which is an offset until the arena has its base."""

    pid: int
    size: int = 0
    regions: list[tuple[Vma, int, int]] = field(default_factory=list[tuple[Vma, int, int]])


def make_table(chain: Sequence[Path]) -> Table:
    """The table for the merged view of a chain, base first; raises Unsupported where no server can hold it."""
    merged = merged_pages(chain)
    files: dict[Path, int] = {}
    pieces: list[bytes] = []
    arenas: list[_Arena] = []
    mappings: list[Vma] = []
    resident = 0
    for memory in merged.memories:
        if memory.shared:
            continue
        segments = list(merged.segments(memory))
        vmas = [vma for vma in read_vmas(chain[-1], memory.number) if not vma.status & VmaStatus.GUARD]
        mappings += vmas
        arena = _Arena(memory.number)
        for vma in vmas:
            if not vma.status & _PREMAPPED:
                continue
            place = _slot(arena, vma)
            if not _is_plain(vma):
                continue
            mine = [
                (max(vma.start, part.address), min(vma.end, part.address + part.length), part)
                for part in segments if part.address < vma.end and part.address + part.length > vma.start
            ]  # fmt: skip
            if not mine:
                continue
            for begin, end, part in mine:
                number = files.setdefault(part.file, len(files))
                pieces.append(_PIECE.pack(begin, end - begin, part.offset + begin - part.address, number, 0))
                resident += end - begin
            arena.regions.append((vma, place, len(mine)))
        if arena.regions:
            arenas.append(arena)
    if len(files) > MAX_FILES:
        raise Unsupported(f"the snapshot's memory lies in {len(files)} files", remediation="flatten it first")
    return Table(_packed(arenas, _room(mappings, arenas), pieces), tuple(files), resident)


def _is_plain(vma: Vma) -> bool:
    return absent_is_zero(vma) and vma.flags & ~_MAP_NORESERVE == _MAP_PLAIN


def _slot(arena: _Arena, vma: Vma) -> int:
    """Make room for an area, and for the guard page that CRIU puts below a stack; its offset in the arena."""
    size = vma.end - vma.start
    place = arena.size + _PAGE
    if size >= _HUGE:
        place += (vma.start - place) % _HUGE
    arena.size = place + size
    return place


def _room(mappings: Iterable[Vma], arenas: Sequence[_Arena]) -> int:
    """An address from which on all arenas fit where no task has anything: in the middle of the largest such hole."""
    needed = sum(_rounded(arena.size) for arena in arenas) + 2 * _HUGE
    largest, at, end = 0, 0, _HUGE
    for start, stop in sorted((vma.start, vma.end) for vma in mappings if not vma.status & VmaStatus.VSYSCALL):
        if start - end > largest:
            largest, at = start - end, end
        end = max(end, stop)
    if largest < needed:
        raise Unsupported("the program's address space has no room for a template")
    return _rounded(at + (largest - needed) // 2)


def _rounded(address: int) -> int:
    return -(-address // _HUGE) * _HUGE


def _packed(arenas: Sequence[_Arena], base: int, pieces: Sequence[bytes]) -> bytes:
    tasks: list[bytes] = []
    regions: list[bytes] = []
    for arena in arenas:
        tasks.append(_TASK.pack(base, _rounded(arena.size), arena.pid, len(arena.regions)))
        regions += [
            _REGION.pack(vma.start, vma.end, vma.flags, base + place, count, 0) for vma, place, count in arena.regions
        ]
        base += _rounded(arena.size)
    return b"".join([_HEADER.pack(_MAGIC, len(tasks), len(regions), len(pieces)), *tasks, *regions, *pieces])
