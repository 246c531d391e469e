"""Packing: how files become chunks that are stored elsewhere by digest, and chunks become files again.

Small files are packed together, so that a layer of thousands is a few objects; a big file is cut where its content
says so, at page boundaries, so that pages images which differ by a few inserted pages still share chunks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from thawbox.errors import CorruptSnapshot

PAGE = 4096
MAX_CHUNK = 4 << 20
"""Bytes in a chunk at most."""
_MIN_PAGES = 64
_MAX_PAGES = MAX_CHUNK // PAGE
_CUT_MASK = np.uint64(255)
"""One page in 256 ends a chunk: 1 MiB on average."""
_BIG = 1 << 20
"""Files from this size are cut by themselves."""
_WEIGHTS = np.random.default_rng(0x7468617762).integers(0, 1 << 63, PAGE // 8, dtype=np.uint64) | np.uint64(1)
"""Fixed odd numbers: the same page always hashes the same, on every node."""


class Chunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bytes by SHA-256 (32 bytes) and length."""

    digest: bytes
    size: int


class Stream(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Some files, one after the other, as chunks. Chunk boundaries need not be file boundaries."""

    files: tuple[bytes, ...]
    chunks: tuple[Chunk, ...]


class File(NamedTuple):
    """A file to pack or to make: its name in the snapshot or layer, and its size in bytes."""

    name: bytes
    size: int


class Slice(NamedTuple):
    """A range of one file."""

    file: bytes
    offset: int
    size: int


def group(files: Sequence[File]) -> list[list[File]]:
    """Files by stream: each big one alone, the small ones together, in the given order; empty ones are left out."""
    small = [file for file in files if 0 < file.size < _BIG]
    return [[file] for file in files if file.size >= _BIG] + ([small] if small else [])


def cut(path: Path, size: int) -> list[int]:
    """Sizes of the chunks of one big file."""
    pages = size // PAGE
    sizes: list[int] = []
    begin = 0
    for end in _page_cuts(path, pages):
        sizes.append((end - begin) * PAGE)
        begin = end
    rest = size - begin * PAGE
    return [*sizes, rest] if rest else sizes


def _page_cuts(path: Path, pages: int) -> Iterator[int]:
    """Page numbers after which to cut: where the content says so, but never too soon nor too late."""
    begin = 0
    for candidate in [*_candidates(path, pages), pages]:
        while candidate - begin > _MAX_PAGES:
            begin += _MAX_PAGES
            yield begin
        if candidate - begin >= _MIN_PAGES:
            begin = candidate
            yield begin


def _candidates(path: Path, pages: int) -> Iterator[int]:
    if pages == 0:
        return
    words = np.memmap(path, dtype=np.uint64, mode="r", shape=(pages, PAGE // 8))
    for begin in range(0, pages, _MAX_PAGES):
        sums = words[begin : begin + _MAX_PAGES] @ _WEIGHTS
        ends = np.flatnonzero(((sums >> np.uint64(40)) & _CUT_MASK) == 0)
        yield from (begin + int(end) + 1 for end in ends)


def cut_evenly(size: int) -> list[int]:
    """Sizes of the chunks of packed small files."""
    return [min(MAX_CHUNK, size - begin) for begin in range(0, size, MAX_CHUNK)]


def slices(files: Sequence[File], sizes: Sequence[int]) -> Iterator[list[Slice]]:
    """For each chunk size in turn, the ranges of files that it consists of."""
    left = iter(files)
    file, offset = File(b"", 0), 0
    for size in sizes:
        parts: list[Slice] = []
        wanted = size
        while wanted:
            if offset == file.size:
                file, offset = next(left), 0
            taken = min(wanted, file.size - offset)
            if taken:
                parts.append(Slice(file.name, offset, taken))
            offset += taken
            wanted -= taken
        yield parts


def check_streams(streams: Sequence[Stream], files: Sequence[File], *, what: str) -> dict[bytes, int]:
    """Sizes by file name, if the streams make exactly these files; raises CorruptSnapshot if they do not."""
    sizes = {file.name: file.size for file in files if file.size}
    seen: set[bytes] = set()
    for stream in streams:
        if not seen.isdisjoint(stream.files) or not sizes.keys() >= set(stream.files):
            raise CorruptSnapshot(f"{what}: its list of chunks names a file twice, or one that it does not have")
        seen.update(stream.files)
        if len(set(stream.files)) != len(stream.files):
            raise CorruptSnapshot(f"{what}: its list of chunks names a file twice")
        if any(not 0 < chunk.size <= MAX_CHUNK or len(chunk.digest) != 32 for chunk in stream.chunks):
            raise CorruptSnapshot(f"{what}: its list of chunks has one of an impossible size")
        if sum(chunk.size for chunk in stream.chunks) != sum(sizes[name] for name in stream.files):
            raise CorruptSnapshot(f"{what}: its chunks have not as many bytes as its files")
    if seen != set(sizes):
        raise CorruptSnapshot(f"{what}: its list of chunks leaves out a file")
    return sizes


def read_slices(root: Path, parts: Sequence[Slice]) -> bytes:
    """The bytes of these ranges of files below `root`, one after the other; short if a file is."""
    pieces: list[bytes] = []
    for part in parts:
        fd = os.open(os.fsencode(root) + b"/" + part.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            pieces.append(os.pread(fd, part.size, part.offset))
        finally:
            os.close(fd)
    return b"".join(pieces)


def write_slices(root: Path, parts: Sequence[Slice], content: bytes) -> None:
    """Write `content` into these ranges of existing files below `root`."""
    view = memoryview(content)
    for part in parts:
        fd = os.open(os.fsencode(root) + b"/" + part.file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            written = 0
            while written < part.size:
                written += os.pwrite(fd, view[written : part.size], part.offset + written)
        finally:
            os.close(fd)
        view = view[part.size :]
