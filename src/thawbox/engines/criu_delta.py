"""Turns a fresh full dump into a delta against its parent chain, and a chain back into a full dump.

For kernels without soft-dirty tracking: every dumped page is compared with the parent chain's effective page at the
same address, after the thaw. Stock `criu restore` and `crit` read the result.

Rule 1: look first, then change. `make_delta` reads and decides everything before it changes the first byte, so a
damaged parent costs the delta, never the dump.
        What stays is written to a file of its own meanwhile, if that is a small part of the dump or the memory is in
        copies of the tasks (`copies`), and so is read once.
Rule 2: what a page may become is for `criu_vmas` to say.
Rule 3: an `in_parent` entry is never lazy as well: stock `criu lazy-pages` loses such pages, and the task hangs.
Rule 4: a task's pagemap never becomes empty: CRIU 4.2 follows a null pointer at the first mapping then.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from thawbox.engines.criu_copies import Copy, CopyRows
from thawbox.engines.criu_images import PARENT_LINK
from thawbox.engines.criu_pagemap import (
    IN_PARENT,
    LAZY,
    PAGE,
    PRESENT,
    Flags,
    Integers,
    Mask,
    Pagemap,
    collapse,
    expand,
    read_pagemap,
    write_pagemap,
)
from thawbox.engines.criu_pages import Chain, Memory, check_pages_size, find, memories, read_chain
from thawbox.engines.criu_reader import (
    CHUNK,
    ChainReader,
    FileRows,
    MergedPages,
    Rows,
    merged_pages,
    page_rows,
    read_rows,
    write_rows,
)
from thawbox.engines.criu_rseq import changed_by_kernel
from thawbox.engines.criu_shared import adopt_names, read_memfds, rename_memfds
from thawbox.engines.criu_vmas import absent_is_zero, mapped, may_be_in_parent, may_be_lazy
from thawbox.errors import CorruptSnapshot, InvalidRequest
from thawbox.host.files import is_same_content

_NEW = ".new"
_CLOCKS = re.compile(r"(inventory|timens-[0-9]+)\.img")
"""Images that hold the time of the dump, and so differ between any two."""


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """What `make_delta` or `make_full` found and left. Sizes are bytes of memory.

    `present` is in this dump's own pages files, `in_parent` in an older link's, `zero` was dropped for being zero;
    `compared` had a page in the parent to compare with. `changed` differs from the parent's effective page or has
    none, `gone` is in the parent and absent here; both cover zero pages by their meaning, not by their form.
    `by_kernel` is the part of `changed` that differs only where the kernel notes on which processor a thread runs;
    0 where more changed than that can be.
    `other_changed` names image files other than memory whose bytes differ from the parent's.
    """

    present: int = 0
    in_parent: int = 0
    zero: int = 0
    compared: int = 0
    changed: int = 0
    by_kernel: int = 0
    gone: int = 0
    other_changed: tuple[str, ...] = ()


def is_clean(report: DeltaReport) -> bool:
    """Whether nothing that a restore brings back differs from the parent: no page, no mapping, no register, no file
    description. (Idle tasks that were only looked at are clean; a task that ran has at least changed its stack.)"""
    return report.changed == report.by_kernel and not (report.gone or report.other_changed)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is to become of one memory's pages: for each dumped page whether its bytes stay, the new pagemap, and the
    memory's name in the delta. The bytes that stay lie in the file `written` already, if it names one."""

    name: Memory
    keep: Mask
    pagemap: Pagemap
    written: Path | None
    report: DeltaReport = field(default_factory=DeltaReport)


class _Rows(Protocol):
    """Where the bytes of a dump's pages are."""

    def read(self, low: int, rows: Rows) -> None: ...


_Seen = Callable[[int, Rows, Mask, Mask], None]
"""Is shown each chunk of pages that was compared: its first number, the rows, which are zero, which are equal."""

NO_COPIES: Mapping[int, Copy] = {}


def make_delta(
    images: Path, parents: Sequence[Path], *, parent_link: str, copies: Mapping[int, Copy] = NO_COPIES
) -> DeltaReport:
    """Rewrite the full dump in `images` in place as a delta against `parents` (images dirs, base first).

    Memory of the tasks in `copies` is taken from there. `parent_link` is the newest parent as seen from inside
    `images`, such as `../../ab12/images`; CRIU follows it at restore. Raises CorruptSnapshot or BrokenChain, with
    `images` as it was, where a parent or the dump is damaged.
    """
    if not parents:
        raise InvalidRequest("a delta needs a parent")
    report = _rewrite(images, parents, copies)
    (images / PARENT_LINK).symlink_to(parent_link)
    return replace(report, by_kernel=changed_by_kernel(images, parents, changed=report.changed))


def make_full(images: Path, *, copies: Mapping[int, Copy] = NO_COPIES) -> DeltaReport:
    """Drop the all-zero pages of the full dump in `images`, in place, so that they cost nothing.

    Memory of the tasks in `copies` is taken from there.
    """
    return _rewrite(images, (), copies)


def _rewrite(images: Path, parents: Sequence[Path], copies: Mapping[int, Copy]) -> DeltaReport:
    if (images / PARENT_LINK).is_symlink():
        raise InvalidRequest(f"{images} is a delta already")
    try:
        return _rewrite_all(images, parents, copies)
    finally:
        for left in images.glob(f"*{_NEW}"):
            left.unlink()


def _rewrite_all(images: Path, parents: Sequence[Path], copies: Mapping[int, Copy]) -> DeltaReport:
    found = memories(images)
    given = _adopted(images, parents, found)
    private = {memory: copies.get(memory.number) for memory in found if not memory.shared}
    verdicts = [
        _judge(images, parents, memory, given.get(memory, memory), copy=private.get(memory)) for memory in found
    ]
    names = {verdict.name for verdict in verdicts}
    if len({verdict.pagemap.pages_id for verdict in verdicts}) < len(verdicts):
        raise CorruptSnapshot(f"two memories of {images} claim the same pages file")
    lost = _pages_of(parents, exclude=names) if parents else 0
    other = _other_changed(images, parents[-1]) if parents else ()
    for verdict in verdicts:
        _apply(images, verdict)
    for memory in set(found) - names:
        (images / memory.pagemap_name).unlink()
    rename_memfds(images, {old.number: new.number for old, new in given.items()})
    return _sum([verdict.report for verdict in verdicts], gone=lost, other_changed=other)


def _adopted(images: Path, parents: Sequence[Path], found: Sequence[Memory]) -> dict[Memory, Memory]:
    """The names that the dump's memfds take over from the parent."""
    if not parents:
        return {}
    ours = read_memfds(images)
    reserved = {memory.number for memory in found if memory.shared} - {memfd.shmid for memfd in ours}
    given = adopt_names(ours, read_memfds(parents[-1]), reserved=reserved)
    return {Memory(True, old): Memory(True, new) for old, new in given.items()}


def _judge(images: Path, parents: Sequence[Path], memory: Memory, name: Memory, *, copy: Copy | None) -> _Verdict:
    path = images / memory.pagemap_name
    dumped = read_pagemap(path)
    if dumped.total(IN_PARENT):
        raise InvalidRequest(f"{path} names pages in a parent: it is a delta already")
    pages, flags = expand(dumped)
    chain = read_chain(parents, name)
    index, has_parent = find(pages, chain.effective.pages)
    may_drop, may_link = _allowed(images, memory, pages)
    file = images / dumped.pages_name
    source: AbstractContextManager[_Rows]
    if copy is None:
        check_pages_size(images, dumped)
        source, room = FileRows(file), int(has_parent.sum()) // 4
    else:
        source, room = CopyRows(memory.number, copy, pages, file), len(pages)
    new = images / f"{memory.pagemap_name}{_NEW}"
    with _Kept(new, may_drop, may_link, room=room) as kept:
        zero, equal = _compare(source, chain, index, has_parent, seen=kept.take)
    dropped = zero & may_drop
    is_empty = not memory.shared and len(pages) > 0 and bool(dropped.all())
    if is_empty:
        dropped[0] = False
    linked = equal & may_link & ~dropped
    keep = ~dropped & ~linked
    if is_empty:
        new.write_bytes(bytes(PAGE * int(keep.sum())))
    # A page dropped here and absent from the parent is no change; one the parent still names is, so it is `gone`.
    survivors = has_parent & ~dropped
    report = DeltaReport(
        present=int(keep.sum()) * PAGE,
        in_parent=int(linked.sum()) * PAGE,
        zero=int(dropped.sum()) * PAGE,
        compared=int(has_parent.sum()) * PAGE,
        changed=int((~dropped & ~equal).sum()) * PAGE,
        gone=(len(chain.effective.pages) - int(survivors.sum())) * PAGE,
    )
    pagemap = _shrunk(dumped.pages_id, pages, flags, dropped, linked)
    return _Verdict(name, keep, pagemap, new if kept.is_all else None, report)


class _Kept:
    """Writes what stays of a memory to a file of its own, chunk by chunk as it is compared: up to `room` pages.

    A second file costs fresh memory for its cache, so of what is in a file already, only a small part is worth one.
    """

    def __init__(self, path: Path, may_drop: Mask, may_link: Mask, *, room: int) -> None:
        self._path, self._may_drop, self._may_link, self._room = path, may_drop, may_link, room
        self._fd = -1
        self._written = 0
        self.is_all = True

    def __enter__(self) -> _Kept:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def take(self, low: int, rows: Rows, zero: Mask, equal: Mask) -> None:
        high = low + len(rows)
        keep = ~(zero & self._may_drop[low:high]) & ~(equal & self._may_link[low:high])
        count = int(keep.sum())
        self.is_all = self.is_all and self._written + count <= self._room
        if self.is_all and count:
            write_rows(self._fd, self._written, rows if count == len(rows) else rows[keep])
            self._written += count


def _shrunk(pages_id: int, pages: Integers, flags: Flags, dropped: Mask, linked: Mask) -> Pagemap:
    flags = np.where(linked, np.uint8(IN_PARENT), flags)
    return collapse(pages_id, pages[~dropped], flags[~dropped])


def _compare(
    source: AbstractContextManager[_Rows], chain: Chain, index: Integers, has_parent: Mask, *, seen: _Seen | None = None
) -> tuple[Mask, Mask]:
    """For each page of `source`: whether it is all zero, and whether it equals effective page `index` of `chain`
    (never where it has none)."""
    zero, equal = np.zeros(len(index), np.bool_), np.zeros(len(index), np.bool_)
    mine, theirs = page_rows(CHUNK), page_rows(CHUNK)
    same = np.empty(mine.shape, np.bool_)
    with ExitStack() as reading:
        dumped = reading.enter_context(source)
        parent = reading.enter_context(ChainReader(chain))
        for low in range(0, len(index), CHUNK):
            high = min(low + CHUNK, len(index))
            rows = mine[: high - low]
            dumped.read(low, rows)
            zero[low:high] = _zero_rows(rows)
            wanted = np.flatnonzero(has_parent[low:high])
            if len(wanted):
                parent.gather(index[low:high][wanted], theirs, into=wanted)
                np.equal(rows, theirs[: high - low], out=same[: high - low])
                equal[low:high] = same[: high - low].all(axis=1) & has_parent[low:high]
            if seen is not None:
                seen(low, rows, zero[low:high], equal[low:high])
    return zero, equal


def _zero_rows(rows: Rows) -> Mask:
    zero: Mask = rows[:, 0] == 0  # cheap, and settles most pages
    for column in (255, 511):
        if zero.any():
            zero &= rows[:, column] == 0
    likely = np.flatnonzero(zero)
    if len(likely):
        zero[likely] = ~rows[likely].any(axis=1)
    return zero


def _allowed(images: Path, memory: Memory, pages: Integers) -> tuple[Mask, Mask]:
    """For each page whether it may be dropped when zero, and whether it may be `in_parent`."""
    if memory.shared:
        return np.ones(len(pages), np.bool_), np.ones(len(pages), np.bool_)
    where = mapped(images, memory.number, pages).where
    return where(absent_is_zero), where(may_be_in_parent)


def _apply(images: Path, verdict: _Verdict) -> None:
    """Leave in the pages file what stays, and write the pagemap.

    What does not lie in a file of its own closes the gaps in place, towards the beginning: only this dump's own bytes
    are moved.
    """
    path = images / verdict.pagemap.pages_name
    if verdict.written is not None:
        verdict.written.rename(path)
    elif not verdict.keep.all():
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _compact(fd, verdict.keep, name=str(path))
        finally:
            os.close(fd)
    write_pagemap(images / verdict.name.pagemap_name, verdict.pagemap)


def _compact(fd: int, keep: Mask, *, name: str) -> None:
    kept = np.flatnonzero(keep)
    in_place = int(keep.argmin())
    rows, at, written = page_rows(4 * CHUNK), in_place, in_place
    while at < len(kept):
        first = int(kept[at])
        end = int(np.searchsorted(kept, first + len(rows)))
        span = rows[: int(kept[end - 1]) - first + 1]
        read_rows(fd, first, span, name=name)
        write_rows(fd, written, span if end - at == len(span) else span[kept[at:end] - first])
        written, at = written + end - at, end
    os.ftruncate(fd, written * PAGE)


def _pages_of(parents: Sequence[Path], *, exclude: Set[Memory]) -> int:
    """Bytes of the parent's memories that this dump does not have at all."""
    gone = (memory for memory in memories(parents[-1]) if memory not in exclude)
    return PAGE * sum(len(read_chain(parents, memory).effective.pages) for memory in gone)


def _other_changed(images: Path, parent: Path) -> tuple[str, ...]:
    ours, theirs = _other_images(images), _other_images(parent)
    differing = {name for name in ours & theirs if not is_same_content(images / name, parent / name)}
    return tuple(sorted((ours ^ theirs) | differing))


def _other_images(images: Path) -> set[str]:
    names = {entry.name for entry in images.iterdir() if entry.name.endswith(".img")}
    return {name for name in names if not name.startswith(("pages-", "pagemap-")) and not _CLOCKS.fullmatch(name)}


def _sum(reports: Sequence[DeltaReport], *, gone: int, other_changed: tuple[str, ...]) -> DeltaReport:
    return DeltaReport(
        present=sum(report.present for report in reports),
        in_parent=sum(report.in_parent for report in reports),
        zero=sum(report.zero for report in reports),
        compared=sum(report.compared for report in reports),
        changed=sum(report.changed for report in reports),
        gone=gone + sum(report.gone for report in reports),
        other_changed=other_changed,
    )


def flatten(links: Sequence[Path], out: Path) -> None:
    """Write into the empty directory `out` one full images dir that restores as the newest of `links` (base first).

    Raises CorruptSnapshot or BrokenChain where a link is damaged; what stands in `out` then is of no use. Not durable:
    images are fsynced by the store that takes them.
    """
    newest = links[-1]
    for entry in newest.iterdir():
        if entry.is_file() and not entry.is_symlink() and not entry.name.startswith(("pages-", "pagemap-")):
            shutil.copyfile(entry, out / entry.name)
    merged = merged_pages(links)
    for memory in merged.memories:
        _flatten_memory(merged, memory, newest, out)


def _flatten_memory(merged: MergedPages, memory: Memory, newest: Path, out: Path) -> None:
    chain = merged.chain(memory)
    where = chain.effective
    lazy = where.lazy
    if not memory.shared:
        lazy = lazy & mapped(newest, memory.number, where.pages).where(may_be_lazy)
    flags = np.where(lazy, np.uint8(PRESENT | LAZY), np.uint8(PRESENT))
    pagemap = collapse(read_pagemap(newest / memory.pagemap_name).pages_id, where.pages, flags)
    fd = os.open(out / pagemap.pages_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        written = 0
        for pages, rows in merged.read(chain):
            write_rows(fd, written, rows)
            written += len(pages)
    finally:
        os.close(fd)
    write_pagemap(out / memory.pagemap_name, pagemap)
