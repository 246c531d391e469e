"""Deltas against a model: whatever a task does to its memory between links, every link reads back as it was dumped."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from thawbox.engines.criu_delta import flatten, is_clean, make_delta, make_full
from thawbox.engines.criu_images import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, MM, VmaStatus, write_entries
from thawbox.engines.criu_pagemap import IN_PARENT, LAZY, PAGE, PRESENT, collapse, expand, read_pagemap, write_pagemap
from thawbox.engines.criu_pages import Memory, memories
from thawbox.engines.criu_reader import MergedPages, merged_pages
from thawbox.engines.proto import mm_pb2, vma_pb2

MM_FIELDS = ("start_code", "end_code", "start_data", "end_data", "start_stack", "start_brk", "brk", "arg_start",
             "arg_end", "env_start", "env_end")  # fmt: skip
FIRST, SPAN = 0x7F0000000, 40
ANON, FILE, HUGE, VDSO = "anonymous", "file", "huge", "vdso"
TASK, OTHER, SHARED = Memory(False, 7), Memory(False, 8), Memory(True, 5)

Dump = dict[Memory, dict[int, int]]
"""For each memory its dumped pages: page number to content, a small number, 0 for an all-zero page."""
Link = tuple[Dump, list[str]]
"""A dump and the kind of mapping at each of its page slots."""
Restored = dict[Memory, dict[int, bytes]]


def page_of(content: int) -> bytes:
    """A page that differs from every other content's only in its middle, from some only in one byte."""
    page = bytearray(PAGE)
    if content:
        page[(content * 977) % PAGE] = content
    return bytes(page)


def write_dump(images: Path, dump: Dump, vmas: dict[int, str]) -> None:
    """A full images dir as CRIU writes it; `vmas` says for each page slot of a task what kind of mapping it is in."""
    images.mkdir()
    for pages_id, (memory, pages) in enumerate(sorted(dump.items()), start=1):
        numbers = np.array(sorted(pages), np.int64)
        flags = np.where(numbers % 3 == 0, PRESENT | LAZY, PRESENT).astype(np.uint8)
        write_pagemap(images / memory.pagemap_name, collapse(pages_id, numbers, flags))
        (images / f"pages-{pages_id}.img").write_bytes(b"".join(page_of(pages[n]) for n in numbers.tolist()))
        if not memory.shared:
            write_entries(images / f"mm-{memory.number}.img", MM, [mm_of(vmas)])


def mm_of(vmas: dict[int, str]) -> mm_pb2.mm_entry:
    status = {
        ANON: VmaStatus.REGULAR | VmaStatus.ANON_PRIVATE,
        FILE: VmaStatus.REGULAR | VmaStatus.FILE_PRIVATE,
        HUGE: VmaStatus.REGULAR | VmaStatus.ANON_PRIVATE,
        VDSO: VmaStatus.REGULAR | VmaStatus.ANON_PRIVATE | VmaStatus.VDSO,
    }
    entries = [
        vma_pb2.vma_entry(
            start=number * PAGE,
            end=(number + 1) * PAGE,
            pgoff=0,
            shmid=0,
            prot=3,
            flags=MAP_PRIVATE
            | {ANON: MAP_ANONYMOUS, FILE: 0, HUGE: MAP_ANONYMOUS | MAP_HUGETLB, VDSO: MAP_ANONYMOUS}[kind],
            status=int(status[kind]),
            fd=-1,
        )
        for number, kind in sorted(vmas.items())
    ]
    return mm_pb2.mm_entry(**{f"mm_{name}": 0 for name in MM_FIELDS}, exe_file_id=1, vmas=entries)


def restored(links: list[Path], vmas: dict[int, str]) -> Restored:
    """What a restore of the newest link brings back: where the mapping is anonymous, absent and zero are the same."""
    merged = merged_pages(links)
    return {memory: meaning(memory, pages_at(merged, memory), vmas) for memory in merged.memories}


def pages_at(merged: MergedPages, memory: Memory) -> dict[int, bytes]:
    pages: dict[int, bytes] = {}
    for numbers, rows in merged.read(merged.chain(memory)):
        pages |= {number: row.tobytes() for number, row in zip(numbers.tolist(), rows, strict=True)}
    return pages


def meaning(memory: Memory, pages: dict[int, bytes], vmas: dict[int, str]) -> dict[int, bytes]:
    def absent_is_zero(number: int) -> bool:
        return memory.shared or vmas[number] == ANON

    return {number: page for number, page in pages.items() if page != bytes(PAGE) or not absent_is_zero(number)}


def meaning_of_dump(dump: Dump, vmas: dict[int, str]) -> Restored:
    return {
        memory: meaning(memory, {number: page_of(content) for number, content in pages.items()}, vmas)
        for memory, pages in dump.items()
    }


def filled(found: Restored) -> Restored:
    """Without memories of which nothing but zeros would be restored: a mapping that has no pages is the same."""
    return {memory: pages for memory, pages in found.items() if pages}


slots = st.integers(FIRST, FIRST + SPAN - 1)
one_memory = st.dictionaries(slots, st.integers(0, 4), min_size=1)
one_dump = st.dictionaries(st.sampled_from([TASK, OTHER, SHARED]), one_memory, min_size=1)
layout = st.lists(st.sampled_from([ANON, ANON, FILE, HUGE, VDSO]), min_size=SPAN, max_size=SPAN)
link = st.tuples(one_dump, layout)


def lazy_pages_of(images: Path) -> set[int]:
    """The pages of tasks that CRIU may bring in after the task runs."""
    found = set[int]()
    for memory in memories(images):
        pages, flags = expand(read_pagemap(images / memory.pagemap_name))
        found |= set() if memory.shared else set(pages[(flags & LAZY) != 0].tolist())
    return found


def vmas_of(kinds: list[str]) -> dict[int, str]:
    return {FIRST + slot: kind for slot, kind in enumerate(kinds)}


@settings(max_examples=60, deadline=None)
@given(st.lists(link, min_size=1, max_size=5))
def test_every_link_of_a_chain_reads_back_as_it_was_dumped(dumps: list[Link]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, links = Path(scratch), list[Path]()
        for number, (dump, kinds) in enumerate(dumps):
            images, vmas = root / str(number), vmas_of(kinds)
            write_dump(images, dump, vmas)
            if links:
                make_delta(images, links, parent_link=f"../{number - 1}")
            else:
                make_full(images)
            links.append(images)
        for number, (dump, kinds) in enumerate(dumps):
            expected, vmas = meaning_of_dump(dump, vmas_of(kinds)), vmas_of(kinds)
            assert restored(links[: number + 1], vmas) == expected
            flat = root / f"flat{number}"
            flat.mkdir()
            flatten(links[: number + 1], flat)
            assert restored([flat], vmas) == expected
            assert not (flat / "parent").exists()
            assert lazy_pages_of(flat) <= {page for page in vmas if vmas[page] == ANON}


@settings(max_examples=60, deadline=None)
@given(st.lists(link, min_size=1, max_size=3))
def test_a_delta_follows_the_rules_that_stock_criu_restores_by(dumps: list[Link]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, links = Path(scratch), list[Path]()
        for number, (dump, kinds) in enumerate(dumps):
            images, vmas = root / str(number), vmas_of(kinds)
            write_dump(images, dump, vmas)
            make_delta(images, links, parent_link=f"../{number - 1}") if links else make_full(images)
            links.append(images)
            for memory in dump:
                pagemap = read_pagemap(images / memory.pagemap_name)
                pages, flags = expand(pagemap)
                assert memory.shared or len(pages), "CRIU dies of a task with an empty pagemap"
                for page, flag in zip(pages.tolist(), flags.tolist(), strict=True):
                    assert memory.shared or vmas[page] != HUGE or flag & PRESENT
                    assert flag == IN_PARENT or flag == (PRESENT | LAZY if page % 3 == 0 else PRESENT)
                assert (images / pagemap.pages_name).stat().st_size == pagemap.total(PRESENT) * PAGE


@settings(max_examples=60, deadline=None)
@given(link, link)
def test_a_delta_is_clean_exactly_when_memory_means_the_same(
    one: tuple[Dump, list[str]], two: tuple[Dump, list[str]]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (dump, kinds), (changed, _) = one, two
        for name, content in (("base", dump), ("same", dump), ("other", changed)):
            write_dump(root / name, content, vmas_of(kinds))
        make_full(root / "base")
        assert is_clean(make_delta(root / "same", [root / "base"], parent_link="../base"))
        report = make_delta(root / "other", [root / "base"], parent_link="../base")
        before, after = (filled(meaning_of_dump(pages, vmas_of(kinds))) for pages in (dump, changed))
        if before != after:
            assert not is_clean(report)
