"""Deltas that must not be made, parents that are damaged, and where pages are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from thawbox.engines.criu_delta import flatten, is_clean, make_delta, make_full
from thawbox.engines.criu_images import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, MM, VmaStatus, write_entries
from thawbox.engines.criu_pagemap import IN_PARENT, PAGE, PRESENT, Pagemap, collapse, read_pagemap, write_pagemap
from thawbox.engines.criu_pages import Memory, read_chain
from thawbox.engines.criu_reader import merged_pages
from thawbox.engines.criu_shared import MEMFDS, Memfd, adopt_names, read_memfds
from thawbox.engines.proto import mm_pb2, vma_pb2
from thawbox.errors import BrokenChain, CorruptSnapshot, InvalidRequest, NotFound

TASK, SHARED = Memory(False, 2), Memory(True, 9)
MM_FIELDS = ("start_code", "end_code", "start_data", "end_data", "start_stack", "start_brk", "brk", "arg_start",
             "arg_end", "env_start", "env_end")  # fmt: skip


ANONYMOUS, FILE = VmaStatus.REGULAR | VmaStatus.ANON_PRIVATE, VmaStatus.REGULAR | VmaStatus.FILE_PRIVATE


def dump(
    images: Path, *contents: int, memory: Memory = TASK, status: VmaStatus = ANONYMOUS, flags: int = MAP_ANONYMOUS
) -> Path:
    """A full images dir with one page per content, each page full of that one byte, all in one private mapping."""
    images.mkdir(exist_ok=True)
    numbers = np.arange(16, 16 + len(contents), dtype=np.int64)
    pages_id = 2 if memory.shared else 1
    write_pagemap(images / memory.pagemap_name, collapse(pages_id, numbers, np.full(len(numbers), PRESENT, np.uint8)))
    (images / f"pages-{pages_id}.img").write_bytes(b"".join(bytes([content]) * PAGE for content in contents))
    vma = vma_pb2.vma_entry(
        start=0, end=1 << 40, pgoff=0, shmid=0, prot=3, flags=MAP_PRIVATE | flags, fd=-1,
        status=int(status),
    )  # fmt: skip
    zeros = dict.fromkeys((f"mm_{name}" for name in MM_FIELDS), 0)
    write_entries(images / "mm-2.img", MM, [mm_pb2.mm_entry(**zeros, exe_file_id=1, vmas=[vma])])
    return images


def content_of(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def test_only_what_differs_is_kept(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1, 2, 3, 4), dump(tmp_path / "next", 1, 9, 3, 0, 5)
    report = make_delta(images, [base], parent_link="../base")
    assert (images / "pages-1.img").read_bytes() == bytes([9]) * PAGE + bytes([5]) * PAGE
    assert [report.present, report.in_parent, report.zero] == [2 * PAGE, 2 * PAGE, PAGE]
    assert [report.compared, report.changed, report.gone] == [4 * PAGE, 2 * PAGE, PAGE]
    assert (images / "parent").readlink() == Path("../base")
    assert not is_clean(report)


@pytest.mark.parametrize("changed", [0, 1, 4, 5, 15, 16])
def test_what_stays_is_the_same_whether_it_is_little_or_much(tmp_path: Path, changed: int) -> None:
    """Little goes into a file of its own while it is compared, of much the gaps are closed in place."""
    base = dump(tmp_path / "base", *range(1, 17))
    images = dump(tmp_path / "next", *(page + 100 * (page % 16 < changed) for page in range(1, 17)))
    make_delta(images, [base], parent_link="../base")
    kept = b"".join(bytes([page + 100]) * PAGE for page in range(1, 17) if page % 16 < changed)
    assert (images / "pages-1.img").read_bytes() == kept
    assert {entry.name for entry in images.iterdir()} == {"mm-2.img", "pagemap-2.img", "pages-1.img", "parent"}


def test_a_page_of_zeros_costs_nothing_in_a_full_dump_either(tmp_path: Path) -> None:
    images = dump(tmp_path / "base", 0, 1, 0, 0, 2, 0)
    assert make_full(images).zero == 4 * PAGE
    assert (images / "pages-1.img").read_bytes() == bytes([1]) * PAGE + bytes([2]) * PAGE


def test_a_full_dump_without_zeros_is_left_as_it_is(tmp_path: Path) -> None:
    images = dump(tmp_path / "base", 1, 2, 3)
    before = content_of(images)
    make_full(images)
    assert content_of(images) == before


@pytest.mark.parametrize(
    ("status", "flags"),
    [
        (ANONYMOUS, MAP_ANONYMOUS | MAP_HUGETLB),
        (VmaStatus.REGULAR | VmaStatus.AIO_RING, 0),
        (ANONYMOUS | VmaStatus.SHADOW_STACK, MAP_ANONYMOUS),
        (ANONYMOUS | VmaStatus.PLUGIN, MAP_ANONYMOUS),
    ],
)
def test_what_criu_reads_from_the_newest_pages_file_stays_in_it(tmp_path: Path, status: VmaStatus, flags: int) -> None:
    base, images = (dump(tmp_path / name, 1, 0, 2, status=status, flags=flags) for name in ("base", "next"))
    before = content_of(images)
    report = make_delta(images, [base], parent_link="../base")
    assert (report.changed, report.in_parent) == (0, 0)
    assert {name: images.joinpath(name).read_bytes() for name in before} == before
    assert is_clean(report)


def test_a_zero_page_of_a_private_file_mapping_stays(tmp_path: Path) -> None:
    base, images = (dump(tmp_path / name, 0, 1, status=FILE, flags=0) for name in ("base", "next"))
    assert (make_full(base).zero, (base / "pages-1.img").stat().st_size) == (0, 2 * PAGE)
    assert make_delta(images, [base], parent_link="../base").in_parent == 2 * PAGE


def test_a_task_of_nothing_but_zeros_keeps_a_page(tmp_path: Path) -> None:
    images = dump(tmp_path / "base", 0, 0, 0)
    make_full(images)
    assert read_pagemap(images / "pagemap-2.img").count.tolist() == [1]


def test_a_task_of_nothing_but_zeros_has_them_from_a_parent_that_kept_one(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 0, 0), dump(tmp_path / "next", 0, 0)
    make_full(base)
    report = make_delta(images, [base], parent_link="../base")
    assert (report.in_parent, report.zero, report.changed) == (PAGE, PAGE, 0)
    assert (images / "pages-1.img").read_bytes() == b""
    assert len(read_chain([base, images], TASK).effective.pages) == 1


@pytest.mark.parametrize("damage", ["truncated pages", "missing pages", "damaged pagemap", "missing mm"])
def test_damage_costs_the_delta_but_never_the_dump(tmp_path: Path, damage: str) -> None:
    base, images = dump(tmp_path / "base", 1, 2, 3), dump(tmp_path / "next", 1, 2, 4)
    match damage:
        case "truncated pages":
            (base / "pages-1.img").write_bytes(bytes(PAGE + 5))
        case "missing pages":
            (base / "pages-1.img").unlink()
        case "damaged pagemap":
            (base / "pagemap-2.img").write_bytes(b"no pagemap")
        case "missing mm":
            (images / "mm-2.img").unlink()
    before = content_of(images)
    with pytest.raises(CorruptSnapshot):
        make_delta(images, [base], parent_link="../base")
    assert content_of(images) == before


def test_a_delta_is_not_made_into_a_delta_again(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1, 2), dump(tmp_path / "next", 1, 3)
    make_delta(images, [base], parent_link="../base")
    for again in (lambda: make_delta(images, [base], parent_link="../base"), lambda: make_full(images)):
        with pytest.raises(InvalidRequest):
            again()
    with pytest.raises(InvalidRequest):
        make_delta(base, [], parent_link="nothing")


def test_what_one_link_lacks_is_not_looked_for_behind_it(tmp_path: Path) -> None:
    base, between = dump(tmp_path / "base", 1), dump(tmp_path / "between", 1)
    images = dump(tmp_path / "next", 1)
    for directory in (base, images):
        dump(directory, 7, 8, memory=SHARED)
    make_delta(between, [base], parent_link="../base")
    make_delta(images, [base, between], parent_link="../between")
    assert read_pagemap(images / SHARED.pagemap_name).flags.tolist() == [PRESENT]


def test_memory_that_is_gone_is_a_change(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1), dump(tmp_path / "next", 1)
    dump(base, 7, 8, memory=SHARED)
    report = make_delta(images, [base], parent_link="../base")
    assert (report.changed, report.gone) == (0, 2 * PAGE)
    assert not is_clean(report)


def test_a_chain_with_a_link_taken_out_is_broken(tmp_path: Path) -> None:
    links = [dump(tmp_path / "base", 1, 2), dump(tmp_path / "one", 1, 2, 3), dump(tmp_path / "two", 1, 2, 3)]
    make_delta(links[1], links[:1], parent_link="../base")
    make_delta(links[2], links[:2], parent_link="../one")
    with pytest.raises(BrokenChain, match="two"):
        read_chain([links[0], links[2]], TASK)
    with pytest.raises(BrokenChain, match="one"):
        flatten(links[1:], dump(tmp_path / "out", 1))


def test_a_claim_of_endless_pages_in_the_parent_is_refused_before_it_costs_memory(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1), dump(tmp_path / "next")
    column = np.array([16], np.int64)
    write_pagemap(images / "pagemap-2.img", Pagemap(1, column, column << 38, np.array([IN_PARENT], np.uint8)))
    with pytest.raises(BrokenChain):
        read_chain([base, images], TASK)


def test_two_memories_that_claim_one_pages_file_are_corrupt(tmp_path: Path) -> None:
    images = dump(tmp_path / "base", 1, 2)
    shutil.copy(images / "pagemap-2.img", images / "pagemap-shmem-9.img")
    before = content_of(images)
    with pytest.raises(CorruptSnapshot, match="same pages file"):
        make_full(images)
    with pytest.raises(CorruptSnapshot, match="same pages file"):
        make_delta(images, [dump(tmp_path / "parent", 1, 3)], parent_link="../parent")
    assert content_of(images) == before


def test_segments_tell_where_every_page_is(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1, 2, 3, 4), dump(tmp_path / "next", 1, 9, 3, 4)
    make_delta(images, [base], parent_link="../base")
    merged = merged_pages([base, images])
    found = [(s.address // PAGE, s.length // PAGE, s.file, s.offset // PAGE) for s in merged.segments(TASK)]
    ours, theirs = images / "pages-1.img", base / "pages-1.img"
    assert found == [(16, 1, theirs, 0), (17, 1, ours, 0), (18, 2, theirs, 2)]
    with pytest.raises(NotFound):
        merged.chain(SHARED)


def memfd(inode_id: int, shmid: int, *, name: str = "x", size: int = PAGE) -> Memfd:
    return Memfd(name=name, uid=0, gid=0, size=size, shmid=shmid, seals=0, inode_id=inode_id)


def test_shared_memory_takes_over_the_parents_name(tmp_path: Path) -> None:
    base, images = dump(tmp_path / "base", 1), dump(tmp_path / "next", 1)
    for directory, number in ((base, 9), (images, 31)):
        dump(directory, 7, 8, memory=Memory(True, number))
        write_entries(directory / "memfd.img", MEMFDS, [memfd(1, number)])
    report = make_delta(images, [base], parent_link="../base")
    assert report.present == 0
    assert {entry.name for entry in images.glob("pagemap-shmem-*")} == {"pagemap-shmem-9.img"}
    assert [entry.shmid for entry in read_memfds(images)] == [9]


def test_names_are_given_to_what_is_alike_and_never_twice() -> None:
    theirs = [memfd(1, 10), memfd(2, 11), memfd(3, 12, size=2 * PAGE), memfd(4, 13)]
    ours = [memfd(1, 11), memfd(2, 10), memfd(3, 13, name="new"), memfd(4, 14, name="new"), memfd(5, 12)]
    assert adopt_names(ours, theirs, reserved=[]) == {11: 10, 10: 11, 12: 13, 13: 1, 14: 14}
    assert adopt_names(ours, theirs, reserved=[10, 1]) == {11: 11, 10: 13, 12: 12, 13: 2, 14: 14}
