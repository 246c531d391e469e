"""Reads the effective pages of a chain: in bulk for comparing and flattening, as segments for whoever maps them.

Files are read, not mapped: a file that is cut short under a mapping kills the whole process with SIGBUS, and reading
into a buffer that stays in the processor's cache is as fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from thawbox.engines.criu_pagemap import PAGE, Integers
from thawbox.engines.criu_pages import Chain, EffectivePages, Memory, memories, read_chain, runs
from thawbox.errors import CorruptSnapshot, NotFound

CHUNK: Final = 256
"""Pages handled at a time: 1 MiB, small enough for a processor's caches and large enough to forget Python's overhead
(64 is 30 % slower, 512 no faster)."""

Rows = NDArray[np.uint64]
"""Pages as an array of shape (pages, 512)."""


def page_rows(count: int) -> Rows:
    """A buffer for `count` pages."""
    return np.zeros((count, PAGE // 8), np.uint64)


def read_rows(fd: int, offset: int, rows: Rows, *, name: str) -> None:
    """Fill `rows` with pages from page `offset` of a file on; raises CorruptSnapshot where the file ends too early."""
    view, at = rows.data.cast("B"), offset * PAGE
    while len(view):
        done = os.preadv(fd, [view], at)
        if not done:
            raise CorruptSnapshot(f"{name} ends at {at} bytes, in the middle of its pages")
        view, at = view[done:], at + done


def write_rows(fd: int, offset: int, rows: Rows) -> None:
    """Write `rows` from page `offset` of a file on."""
    view, at = np.ascontiguousarray(rows).data.cast("B"), offset * PAGE
    while len(view):
        done = os.pwritev(fd, [view], at)
        view, at = view[done:], at + done


class FileRows:
    """The pages of one pages file, in their order there; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> FileRows:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, low: int, rows: Rows) -> None:
        """Fill `rows` with the pages from number `low` on; raises CorruptSnapshot where the file ends too early."""
        read_rows(self._fd, low, rows, name=str(self._path))


class ChainReader:
    """The bytes of one memory's effective pages. Owns one descriptor per link it has read from; a context manager."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._fds: dict[int, int] = {}
        self._undo = ExitStack()
        self._span = page_rows(2 * CHUNK)

    def __enter__(self) -> ChainReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()
        self._fds.clear()

    def _open(self, link: int) -> tuple[int, str]:
        path = self._chain.file(link)
        if link not in self._fds:
            self._fds[link] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._undo.callback(os.close, self._fds[link])
        return self._fds[link], str(path)

    def gather(self, index: Integers, rows: Rows, *, into: Integers) -> None:
        """Read effective page `index[i]` into row `into[i]`, for every i; both ascend, and the rows are distinct."""
        links, offsets = self._chain.effective.link[index], self._chain.effective.offset[index]
        for link in np.flatnonzero(np.bincount(links)).tolist():
            mine = np.flatnonzero(links == link)
            self._gather_from(link, offsets[mine], rows, into[mine])

    def _gather_from(self, link: int, offsets: Integers, rows: Rows, into: Integers) -> None:
        fd, name = self._open(link)
        count, at = len(offsets), 0
        if offsets[-1] - offsets[0] == into[-1] - into[0] == count - 1:
            read_rows(fd, int(offsets[0]), rows[int(into[0]) : int(into[0]) + count], name=name)
            return
        while at < count:  # one read per span of the file, however scattered the wanted pages are in it
            first = int(offsets[at])
            end = int(np.searchsorted(offsets, first + len(self._span)))
            span = self._span[: int(offsets[end - 1]) - first + 1]
            read_rows(fd, first, span, name=name)
            rows[into[at:end]] = span[offsets[at:end] - first]
            at = end


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes of memory at `address` whose content is in `file` from byte `offset` on."""

    address: int
    length: int
    file: Path
    offset: int


class MergedPages:
    """The memory of a chain's newest link, whichever link each page is in. Links are images dirs, base first."""

    def __init__(self, links: Sequence[Path]) -> None:
        self._links = tuple(links)
        self.memories = memories(self._links[-1])

    def chain(self, memory: Memory) -> Chain:
        """Where the pages of one memory are; raises NotFound where the newest link has no such memory."""
        if memory not in self.memories:
            raise NotFound(f"{self._links[-1]} has no memory of {memory}")
        return read_chain(self._links, memory)

    def segments(self, memory: Memory) -> Iterator[Segment]:
        """The memory as the fewest stretches that lie together both in memory and in a file, by address."""
        chain = self.chain(memory)
        where = chain.effective
        for first, end in _stretches(where):
            address, offset = int(where.pages[first]) * PAGE, int(where.offset[first]) * PAGE
            yield Segment(address, (end - first) * PAGE, chain.file(int(where.link[first])), offset)

    def read(self, chain: Chain) -> Iterator[tuple[Integers, Rows]]:
        """A memory's present pages as (page numbers, rows), at most CHUNK pages at a time; the rows are reused."""
        pages = chain.effective.pages
        rows = page_rows(CHUNK)
        with ChainReader(chain) as reader:
            for low in range(0, len(pages), CHUNK):
                high = min(low + CHUNK, len(pages))
                reader.gather(np.arange(low, high), rows, into=np.arange(high - low))
                yield pages[low:high], rows[: high - low]


def _stretches(where: EffectivePages) -> Iterator[tuple[int, int]]:
    # A step to another link must break a stretch even where pages and offsets happen to go on counting.
    return runs((where.pages, where.offset + where.link.astype(np.int64) * (1 << 46)))


def merged_pages(links: Sequence[Path]) -> MergedPages:
    """A reader of the memory at the newest of these images dirs (base first)."""
    return MergedPages(links)
