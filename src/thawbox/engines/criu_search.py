"""Searching the memory in a chain of images, without bringing it to life."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thawbox.engines.criu_pages import Memory
from thawbox.engines.criu_reader import merged_pages

_WORD = 8
_CHUNK = 4 << 20
_PAIR = struct.Struct("=QQ")


def find_pairs(chain: Sequence[Path], task: int, pairs: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
    """For each of `pairs` (16 bytes), the addresses at which it lies on an 8-byte border in the memory of `task`.

    `chain` is images dirs, base first; `task` is a pid inside. Raises NotFound where there is no such task.
    """
    wanted = [_PAIR.unpack(pair) for pair in pairs]
    found: list[list[int]] = [[] for _ in pairs]
    before, expected = 0, -1  # a pair may lie across two stretches
    for address, words in _stretches(chain, task):
        last = before if address == expected else ~wanted[0][0] & (2**64 - 1)
        joined = np.concatenate((np.array([last], np.uint64), words))
        for places, (first, second) in zip(found, wanted, strict=True):
            at = np.flatnonzero(joined[1:] == np.uint64(second))
            at = at[joined[at] == np.uint64(first)]
            places += [address + (int(index) - 1) * _WORD for index in at]
        before, expected = int(words[-1]), address + len(words) * _WORD
    return tuple(map(tuple, found))


def _stretches(chain: Sequence[Path], task: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    for segment in merged_pages(chain).segments(Memory(shared=False, number=task)):
        with segment.file.open("rb") as file:
            file.seek(segment.offset)
            for at in range(0, segment.length, _CHUNK):
                content = file.read(min(_CHUNK, segment.length - at))
                yield segment.address + at, np.frombuffer(content, np.uint64)
