"""Which pages an images dir holds, and where in a chain of them each page's bytes are.

Rule 1: memory is described by arrays with one element per 4 KiB page, sorted by page number (address / 4096); no
Python loop runs once per page, and only reading and writing a pagemap loops once per run of pages.
Rule 2: a page that the newest link's pagemap does not name is absent, whatever older links hold; a page it names as
`in_parent` has the bytes of its parent's *effective* page. This is how `criu/pagemap.c` reads a chain.
Rule 3: within one pages file pages lie in the order of their addresses, without gaps; so a pagemap is also an index.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from thawbox.engines.criu_pagemap import IN_PARENT, LAZY, PAGE, PRESENT, Integers, Mask, Pagemap, expand, read_pagemap
from thawbox.errors import BrokenChain, CorruptSnapshot

_NAME: Final = re.compile(r"pagemap-(shmem-)?([0-9]+)\.img")


@dataclass(frozen=True, slots=True, order=True)
class Memory:
    """What one pagemap describes: the private memory of task `number`, or the shared memory segment `number`."""

    shared: bool
    number: int

    def __str__(self) -> str:
        return f"shared memory {self.number}" if self.shared else f"task {self.number}"

    @property
    def pagemap_name(self) -> str:
        return f"pagemap-shmem-{self.number}.img" if self.shared else f"pagemap-{self.number}.img"


@dataclass(frozen=True, slots=True)
class EffectivePages:
    """Where in a chain each page of one memory is: `pages[i]` is page `offset[i]` of link `link[i]`'s pages file.

    `lazy[i]` is what that link's dump said of the page: it may be brought in after the task runs.
    """

    pages: Integers
    link: NDArray[np.int16]
    offset: Integers
    lazy: Mask


NO_PAGES: Final = EffectivePages(
    np.empty(0, np.int64), np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.bool_)
)


def memories(images: Path) -> tuple[Memory, ...]:
    """Every memory that an images dir has a pagemap of, tasks first, by number."""
    found = (_NAME.fullmatch(entry.name) for entry in images.iterdir())
    return tuple(sorted(Memory(bool(match[1]), int(match[2])) for match in found if match))


def find(needles: Integers, pages: Integers) -> tuple[Integers, Mask]:
    """For each needle its index in `pages` (both sorted) and whether it is there at all (else the index is 0)."""
    if not len(pages):
        return np.zeros(len(needles), np.int64), np.zeros(len(needles), np.bool_)
    index = np.searchsorted(pages, needles)
    index[index == len(pages)] = 0
    return index, pages[index] == needles


def resolve(parent: EffectivePages, pagemap: Pagemap, link: int, *, name: str) -> EffectivePages:
    """The effective pages of a link, given those of its parent; raises BrokenChain where the parent lacks a page."""
    if pagemap.total(IN_PARENT) > len(parent.pages):
        raise BrokenChain(f"{name} takes more pages from its parent than the parent has")
    pages, flags = expand(pagemap)
    present = (flags & PRESENT) != 0
    links = np.full(len(pages), link, np.int16)
    offset = np.cumsum(present) - 1
    inherited = np.flatnonzero(~present)
    index, found = find(pages[inherited], parent.pages)
    if not found.all():
        address = int(pages[inherited[~found][0]]) * PAGE
        raise BrokenChain(f"{name} takes the page at {address:#x} from its parent, which has no such page")
    lazy = (flags & LAZY) != 0
    links[inherited] = parent.link[index]
    offset[inherited] = parent.offset[index]
    lazy[inherited] = parent.lazy[index]
    return EffectivePages(pages, links, offset, lazy)


def check_pages_size(images: Path, pagemap: Pagemap) -> None:
    """Raise CorruptSnapshot unless the pages file has exactly the bytes that its pagemap names."""
    path, expected = images / pagemap.pages_name, pagemap.total(PRESENT) * PAGE
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CorruptSnapshot(f"{path} is missing") from None
    if size != expected:
        raise CorruptSnapshot(f"{path} has {size} bytes where its pagemap names {expected}")


@dataclass(frozen=True, slots=True)
class Chain:
    """The effective pages of one memory at the newest link, and the pages file of each link (None: it has none)."""

    effective: EffectivePages
    files: tuple[Path | None, ...]

    def file(self, link: int) -> Path:
        """The pages file of a link; raises CorruptSnapshot where it has none."""
        path = self.files[link]
        if path is None:
            raise CorruptSnapshot(f"link {link} of the chain has no pages of this memory")
        return path


def read_chain(links: Sequence[Path], memory: Memory) -> Chain:
    """Where the pages of `memory` are, along images dirs named base first. A memory the newest link lacks has none."""
    effective, files = NO_PAGES, list[Path | None]()
    for number, images in enumerate(links):
        path = images / memory.pagemap_name
        if not path.exists():
            effective = NO_PAGES  # CRIU, too, ends the chain at a link without this pagemap
            files.append(None)
            continue
        pagemap = read_pagemap(path)
        check_pages_size(images, pagemap)
        effective = resolve(effective, pagemap, number, name=str(path))
        files.append(images / pagemap.pages_name)
    return Chain(effective, tuple(files))


def runs(keys: Iterable[Integers]) -> Iterator[tuple[int, int]]:
    """The half-open index ranges in which every one of these arrays counts up by one."""
    columns = list(keys)
    if not len(columns[0]):
        return
    breaks = np.zeros(len(columns[0]) - 1, np.bool_)
    for column in columns:
        breaks |= np.diff(column) != 1
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(columns[0])]
    yield from itertools.pairwise(edges)
