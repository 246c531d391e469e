"""What CRIU's image files hold: framing, magic numbers and the facts we read from them.

An image file is a magic number or two and then records, each a 32-bit length and a protobuf message. Numbers and
formats are from CRIU 4.2.1: `criu/include/magic.h`, `criu/include/image.h`, `criu/image.c`, `criu/protobuf.c`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from thawbox.engines.proto import inventory_pb2, mm_pb2, pstree_pb2, stats_pb2
from thawbox.errors import CorruptSnapshot

M = TypeVar("M", bound=Message)

COMMON_MAGIC: Final = 0x54564319
SERVICE_MAGIC: Final = 0x55105940
PARENT_LINK: Final = "parent"
"""The symbolic link in an images dir that names the images dir its `in_parent` pages are in."""

MAP_PRIVATE, MAP_ANONYMOUS, MAP_LOCKED, MAP_HUGETLB = 0x02, 0x20, 0x2000, 0x40000
"""Bits of `Vma.flags` (`mmap(2)`)."""


class VmaStatus(enum.IntFlag, boundary=enum.KEEP):
    """What kind of mapping a VMA is (`VMA_AREA_*` and `VMA_*` in `criu/include/image.h`); bits of `Vma.status`."""

    REGULAR = 1 << 0
    VSYSCALL = 1 << 2
    VDSO = 1 << 3
    FILE_PRIVATE = 1 << 6
    ANON_SHARED = 1 << 8
    ANON_PRIVATE = 1 << 9
    SOCKET = 1 << 11
    VVAR = 1 << 12
    AIO_RING = 1 << 13
    SHADOW_STACK = 1 << 15
    GUARD = 1 << 16
    """Not a mapping of its own but an area inside others; stands last in the list, out of order."""
    PLUGIN = 1 << 27


@dataclass(frozen=True, slots=True)
class ImageKind(Generic[M]):
    """A kind of image file: the magic numbers at its head and the message its records hold."""

    magic: bytes
    message: type[M]


INVENTORY = ImageKind(struct.pack("<I", 0x58313116), inventory_pb2.inventory_entry)
PSTREE = ImageKind(struct.pack("<II", COMMON_MAGIC, 0x50273030), pstree_pb2.pstree_entry)
MM = ImageKind(struct.pack("<II", COMMON_MAGIC, 0x57492820), mm_pb2.mm_entry)
STATS = ImageKind(struct.pack("<II", SERVICE_MAGIC, 0x57093306), stats_pb2.stats_entry)


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a snapshot; ids are those inside its own pid namespace."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    threads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping of a task: `start` and `end` are addresses, `flags` those of mmap."""

    start: int
    end: int
    shmid: int
    prot: int
    flags: int
    status: VmaStatus


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a dump says of itself. `uptime` is the host's, in microseconds, 0 where CRIU left it out."""

    img_version: int
    uptime: int
    run_id: str


@dataclass(frozen=True, slots=True)
class DumpStats:
    """CRIU's own account of a dump. Times are microseconds, the rest pages of 4 KiB."""

    freezing_us: int
    frozen_us: int
    memdump_us: int
    memwrite_us: int
    pages_scanned: int
    pages_written: int
    shared_pages_written: int


def split_records(content: bytes, magic: bytes, *, name: str) -> list[bytes]:
    """The records of an image file, in order; raises CorruptSnapshot, naming the file, where it is no such file."""
    if not content.startswith(magic):
        raise CorruptSnapshot(f"{name} does not begin with its magic number {magic.hex()}")
    records: list[bytes] = []
    at, end = len(magic), len(content)
    while at < end:
        if at + 4 > end:
            raise CorruptSnapshot(f"{name} ends in the middle of a record's length")
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if at + size > end:
            raise CorruptSnapshot(f"{name} ends in the middle of a record of {size} bytes")
        records.append(content[at : at + size])
        at += size
    return records


def join_records(magic: bytes, records: Iterable[bytes]) -> bytes:
    """The content of an image file that holds these records."""
    parts = [magic]
    for record in records:
        parts += (struct.pack("<I", len(record)), record)
    return b"".join(parts)


def parse_record(record: bytes, message: type[M], *, name: str) -> M:
    """One record as its message; raises CorruptSnapshot, naming the file, where it cannot be that message."""
    entry = message()
    try:
        entry.ParseFromString(record)
    except DecodeError as error:
        raise CorruptSnapshot(f"{name} holds a record that is not a {message.DESCRIPTOR.name}") from error
    return entry


def read_file(path: Path) -> bytes:
    """An image file's bytes; raises CorruptSnapshot where it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptSnapshot(f"{path} is missing") from None


def read_entries(path: Path, kind: ImageKind[M]) -> list[M]:
    """Every record of an image file; raises CorruptSnapshot where it is missing or damaged."""
    records = split_records(read_file(path), kind.magic, name=str(path))
    return [parse_record(record, kind.message, name=str(path)) for record in records]


def write_entries(path: Path, kind: ImageKind[M], entries: Iterable[M]) -> None:
    """Write an image file anew. Not durable: images are fsynced by the store that takes them."""
    path.write_bytes(join_records(kind.magic, (entry.SerializeToString() for entry in entries)))


def _read_one(path: Path, kind: ImageKind[M]) -> M:
    entries = read_entries(path, kind)
    if len(entries) != 1:
        raise CorruptSnapshot(f"{path} holds {len(entries)} records where one belongs")
    return entries[0]


def read_inventory(images: Path) -> Inventory:
    """What the dump in `images` says of itself."""
    entry = _read_one(images / "inventory.img", INVENTORY)
    return Inventory(entry.img_version, entry.dump_uptime, entry.dump_criu_run_id)


def read_tasks(images: Path) -> tuple[Task, ...]:
    """The processes of a snapshot, the root of the tree first."""
    entries = read_entries(images / "pstree.img", PSTREE)
    return tuple(Task(e.pid, e.ppid, e.pgid, e.sid, tuple(e.threads)) for e in entries)


def read_vmas(images: Path, pid: int) -> tuple[Vma, ...]:
    """The mappings of task `pid` in the order CRIU wrote them: by address, guard areas last."""
    entry = _read_one(images / f"mm-{pid}.img", MM)
    return tuple(Vma(v.start, v.end, v.shmid, v.prot, v.flags, VmaStatus(v.status)) for v in entry.vmas)


def read_dump_stats(directory: Path) -> DumpStats:
    """What CRIU measured during a dump; `directory` is the work dir it was given (else the images dir)."""
    path = directory / "stats-dump"
    entry = _read_one(path, STATS)
    if not entry.HasField("dump"):
        raise CorruptSnapshot(f"{path} holds no figures of a dump")
    dump = entry.dump
    return DumpStats(
        freezing_us=dump.freezing_time,
        frozen_us=dump.frozen_time,
        memdump_us=dump.memdump_time,
        memwrite_us=dump.memwrite_time,
        pages_scanned=dump.pages_scanned,
        pages_written=dump.pages_written,
        shared_pages_written=dump.shpages_written,
    )
