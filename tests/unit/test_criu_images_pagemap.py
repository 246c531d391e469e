"""Image files as CRIU writes them, as it used to write them, and damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thawbox.engines.criu_images import PSTREE, join_records, read_entries, read_tasks, split_records, write_entries
from thawbox.engines.criu_pagemap import IN_PARENT, LAZY, PAGE, PRESENT, collapse, expand, read_pagemap, write_pagemap
from thawbox.engines.proto import pagemap_pb2, pstree_pb2
from thawbox.errors import CorruptSnapshot

MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
HEAD = pagemap_pb2.pagemap_head(pages_id=3)
Entry = pagemap_pb2.pagemap_entry


def pagemap_file(path: Path, *entries: Entry) -> Path:
    path.write_bytes(join_records(MAGIC, [message.SerializeToString() for message in (HEAD, *entries)]))
    return path


def runs(path: Path) -> list[tuple[int, int, int]]:
    pagemap = read_pagemap(path)
    return list(zip(pagemap.start.tolist(), pagemap.count.tolist(), pagemap.flags.tolist(), strict=True))


def test_records_survive_writing_and_reading(tmp_path: Path) -> None:
    tasks = [pstree_pb2.pstree_entry(pid=2, ppid=0, pgid=2, sid=2, threads=[2, 9]),
             pstree_pb2.pstree_entry(pid=5, ppid=2, pgid=2, sid=2, threads=[5])]  # fmt: skip
    write_entries(tmp_path / "pstree.img", PSTREE, tasks)
    assert read_entries(tmp_path / "pstree.img", PSTREE) == tasks
    assert [(task.pid, task.ppid, task.threads) for task in read_tasks(tmp_path)] == [(2, 0, (2, 9)), (5, 2, (5,))]


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_record_cut_short_is_corrupt_and_the_file_is_named(cut: int) -> None:
    whole = join_records(MAGIC, [b"12345"])
    with pytest.raises(CorruptSnapshot, match=r"pstree\.img"):
        split_records(whole[:-cut], MAGIC, name="pstree.img")


def test_a_missing_or_foreign_file_is_corrupt_and_named(tmp_path: Path) -> None:
    (tmp_path / "pagemap-2.img").write_bytes(b"something else entirely")
    for name in ("pagemap-2.img", "pagemap-3.img"):
        with pytest.raises(CorruptSnapshot, match=name):
            read_pagemap(tmp_path / name)


def test_entries_of_older_dumps_are_understood(tmp_path: Path) -> None:
    path = pagemap_file(
        tmp_path / "pagemap-2.img",
        Entry(vaddr=PAGE, compat_nr_pages=2),  # neither flags nor a wide count: present
        Entry(vaddr=5 * PAGE, compat_nr_pages=1, in_parent=True),
        Entry(vaddr=6 * PAGE, compat_nr_pages=1, in_parent=False, flags=PRESENT | LAZY),
        Entry(vaddr=9 * PAGE, compat_nr_pages=0, flags=PRESENT, nr_pages=1 << 33),
    )
    assert runs(path) == [(1, 2, PRESENT), (5, 1, IN_PARENT), (6, 1, PRESENT | LAZY), (9, 1 << 33, PRESENT)]


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(vaddr=PAGE, compat_nr_pages=2), Entry(vaddr=2 * PAGE, compat_nr_pages=1)),
        (Entry(vaddr=3 * PAGE, compat_nr_pages=1), Entry(vaddr=PAGE, compat_nr_pages=1)),
        (Entry(vaddr=PAGE, compat_nr_pages=0),),
        (Entry(vaddr=PAGE + 1, compat_nr_pages=1),),
        (Entry(vaddr=1 << 60, compat_nr_pages=1),),
        (Entry(vaddr=PAGE, compat_nr_pages=0, nr_pages=1 << 50),),
        (Entry(vaddr=PAGE, compat_nr_pages=1, flags=0),),
        (Entry(vaddr=PAGE, compat_nr_pages=1, flags=LAZY),),
        (Entry(vaddr=PAGE, compat_nr_pages=1, flags=PRESENT | IN_PARENT),),
    ],
    ids=["overlap", "order", "empty", "unaligned", "address", "count", "no flags", "on a page server", "both"],
)
def test_an_impossible_pagemap_is_corrupt(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    with pytest.raises(CorruptSnapshot, match=r"pagemap-2\.img"):
        read_pagemap(pagemap_file(tmp_path / "pagemap-2.img", *entries))


def test_a_pagemap_with_no_pages_is_read_and_written(tmp_path: Path) -> None:
    nothing = np.empty(0, np.int64)
    write_pagemap(tmp_path / "pagemap-2.img", collapse(3, nothing, nothing.astype(np.uint8)))
    assert runs(tmp_path / "pagemap-2.img") == []
    assert (tmp_path / "pagemap-2.img").read_bytes() == pagemap_file(tmp_path / "expected").read_bytes()


pages = st.dictionaries(st.integers(0, 1 << 44), st.sampled_from([PRESENT, PRESENT | LAZY, IN_PARENT]), max_size=40)


@settings(deadline=None, max_examples=40)
@given(pages)
def test_what_is_written_reads_back_and_is_what_protobuf_reads(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[int, int]
) -> None:
    path = tmp_path_factory.mktemp("pagemap") / "pagemap-2.img"
    numbers, flags = np.array(sorted(pages), np.int64), np.array([pages[n] for n in sorted(pages)], np.uint8)
    write_pagemap(path, collapse(3, numbers, flags))
    read, read_flags = expand(read_pagemap(path))
    assert (read.tolist(), read_flags.tolist()) == (numbers.tolist(), flags.tolist())
    assert runs(path) == by_protobuf(path.read_bytes())


@settings(deadline=None, max_examples=40)
@given(pages, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_pagemap_is_corrupt_or_reads_as_protobuf_reads_it(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[int, int], flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("pagemap") / "pagemap-2.img"
    numbers, flags = np.array(sorted(pages), np.int64), np.array([pages[n] for n in sorted(pages)], np.uint8)
    write_pagemap(path, collapse(3, numbers, flags))
    content = bytearray(path.read_bytes())
    for where, octet in flips:
        content[where % len(content)] = octet
    path.write_bytes(content)
    try:
        found = runs(path)
    except CorruptSnapshot as error:
        assert str(path) in error.cause
    else:
        assert found == by_protobuf(bytes(content))


def by_protobuf(content: bytes) -> list[tuple[int, int, int]]:
    """A pagemap as protobuf's own parser and CRIU's init_compat_pagemap_entry read it."""
    found = list[tuple[int, int, int]]()
    for record in split_records(content, MAGIC, name="pagemap")[1:]:
        entry = Entry.FromString(record)
        flags = entry.flags & 0xFF | (IN_PARENT if entry.in_parent else 0)
        flags = flags if entry.HasField("flags") or entry.in_parent else PRESENT
        count = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        found.append((entry.vaddr // PAGE, count, flags))
    return found
