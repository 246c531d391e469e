"""Shared memory keeps its name along a chain.

CRIU names a shared mapping or memfd by its inode number, which is another one after every restore; a delta would hold
all of it again, because CRIU looks for a page in the parent under the same name. So the new dump takes over the
parent's names. Which segment takes which name decides only how much is saved, never what is restored: every page is
compared before it is left to the parent.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from thawbox.engines.criu_images import COMMON_MAGIC, ImageKind, read_entries, write_entries
from thawbox.engines.proto import memfd_pb2

MEMFDS: Final = ImageKind(
    COMMON_MAGIC.to_bytes(4, "little") + (0x48453499).to_bytes(4, "little"), memfd_pb2.memfd_inode_entry
)
MEMFDS_NAME: Final = "memfd.img"

Memfd = memfd_pb2.memfd_inode_entry


def read_memfds(images: Path) -> list[Memfd]:
    """The memfds of a dump in CRIU's own order, anonymous shared mappings among them; none where it has no image."""
    path = images / MEMFDS_NAME
    return sorted(read_entries(path, MEMFDS), key=lambda memfd: memfd.inode_id) if path.exists() else []


def adopt_names(ours: Iterable[Memfd], theirs: Iterable[Memfd], *, reserved: Iterable[int]) -> dict[int, int]:
    """For each of our memfds the number it gets: that of one of the parent's like it, else its own or an unused one.

    Two are alike when name, size and page size are; the first takes the first's. `reserved` numbers are never given.
    """
    taken, heirs, given = set(reserved), defaultdict[object, list[int]](list), dict[int, int]()
    for memfd in theirs:
        if memfd.shmid not in taken:
            heirs[_likeness(memfd)].append(memfd.shmid)
    left_over = list[int]()
    for memfd in ours:
        if names := heirs[_likeness(memfd)]:
            given[memfd.shmid] = names.pop(0)
        else:
            left_over.append(memfd.shmid)
    taken.update(given.values())
    for number in left_over:
        given[number] = next(name for name in itertools.chain((number,), itertools.count(1)) if name not in taken)
        taken.add(given[number])
    return given


def _likeness(memfd: Memfd) -> object:
    return memfd.name, memfd.size, memfd.hugetlb_flag


def rename_memfds(images: Path, given: Mapping[int, int]) -> None:
    """Write the names that `adopt_names` gave into the dump's list of memfds; the pagemaps are the caller's."""
    if all(old == new for old, new in given.items()):
        return
    entries = read_entries(images / MEMFDS_NAME, MEMFDS)
    for memfd in entries:
        memfd.shmid = given[memfd.shmid]
    write_entries(images / MEMFDS_NAME, MEMFDS, entries)
