"""Pages that the kernel alone changed: where a thread runs is written into its memory whenever it has moved.

Restartable sequences (rseq) keep the processor's number in a struct of the thread's own memory. The kernel writes it
anew before a restored thread runs, so a page that differs in nothing else holds nothing that a restore brings back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thawbox.engines.criu_images import COMMON_MAGIC, ImageKind, read_entries, read_tasks
from thawbox.engines.criu_pagemap import PAGE, PRESENT, Integers, expand, read_pagemap
from thawbox.engines.criu_pages import Memory, find, read_chain
from thawbox.engines.criu_reader import ChainReader, page_rows, read_rows
from thawbox.engines.proto import core_pb2

CORE = ImageKind(struct.pack("<II", COMMON_MAGIC, 0x55053847), core_pb2.core_entry)

_WRITTEN_BY_KERNEL = ((0, 8), (20, 28))
"""Offsets in `struct rseq` (linux/rseq.h): cpu_id_start and cpu_id; node_id and mm_cid."""


def changed_by_kernel(images: Path, parents: Sequence[Path], *, changed: int) -> int:
    """Bytes of pages of the delta in `images` that differ from the parent's (base first) only where the kernel writes.

    0 at once where `changed`, the bytes of all pages that differ, is more than that can be. Raises CorruptSnapshot or
    BrokenChain where a link is damaged.
    """
    if not (images / "pstree.img").exists():  # nobody runs in it: pages alone, as tests make them
        return 0
    structs = {task.pid: _structs(images, task.threads) for task in read_tasks(images)}
    if changed > PAGE * sum(map(len, structs.values())):
        return 0
    return PAGE * sum(_changed_in_task(images, parents, pid, pages) for pid, pages in structs.items())


def _structs(images: Path, threads: Sequence[int]) -> dict[int, list[int]]:
    """Where the structs of these threads are: by page number, their offsets there."""
    found: dict[int, list[int]] = {}
    for thread in threads:
        path = images / f"core-{thread}.img"
        for core in read_entries(path, CORE) if path.exists() else ():
            if core.HasField("thread_core") and core.thread_core.HasField("rseq_entry"):
                address = core.thread_core.rseq_entry.rseq_abi_pointer
                found.setdefault(address // PAGE, []).append(address % PAGE)
    return found


def _changed_in_task(images: Path, parents: Sequence[Path], pid: int, wanted: dict[int, list[int]]) -> int:
    memory = Memory(shared=False, number=pid)
    path = images / memory.pagemap_name
    if not path.exists():
        return 0
    pagemap = read_pagemap(path)
    pages, flags = expand(pagemap)
    own = pages[(flags & PRESENT) != 0]
    at, is_own = find(np.array(sorted(wanted), np.int64), own)
    chain = read_chain(parents, memory)
    count = 0
    with ChainReader(chain) as parent, (images / pagemap.pages_name).open("rb") as file:
        for index in at[is_own].tolist():
            page = int(own[index])
            theirs, found = find(np.array([page], np.int64), chain.effective.pages)
            if found[0] and _is_same(file.fileno(), index, parent, theirs, wanted[page], name=str(path)):
                count += 1
    return count


def _is_same(fd: int, index: int, parent: ChainReader, theirs: Integers, offsets: list[int], *, name: str) -> bool:
    mine, other = page_rows(1), page_rows(1)
    read_rows(fd, index, mine, name=name)
    parent.gather(theirs, other, into=np.array([0], np.int64))
    one, two = mine.view(np.uint8)[0], other.view(np.uint8)[0]
    for offset in offsets:
        for begin, end in _WRITTEN_BY_KERNEL:
            one[offset + begin : offset + end] = two[offset + begin : offset + end]
    return bool((one == two).all())
