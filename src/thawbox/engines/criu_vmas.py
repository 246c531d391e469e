"""What stock CRIU does with a page, told by the mapping it lies in.

Rule 1: an absent page of private anonymous memory restores as zero. One of a private file mapping restores as the
file's content, so a zero page there must stay.
Rule 2: huge-page mappings, AIO rings and the like are read straight from the newest pages file, whatever the entry
says (`restore_priv_vma_content` in `criu/mem.c`), so their pages cannot be in a parent.
Rule 3: a page may be brought in after the task runs only where userfaultfd watches (`vma_entry_can_be_lazy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from thawbox.engines.criu_images import MAP_ANONYMOUS, MAP_HUGETLB, MAP_LOCKED, MAP_PRIVATE, Vma, VmaStatus, read_vmas
from thawbox.engines.criu_pagemap import PAGE, Integers, Mask

_PRIVATE: Final = VmaStatus.ANON_PRIVATE | VmaStatus.FILE_PRIVATE
_READ_LOCALLY: Final = VmaStatus.AIO_RING | VmaStatus.SHADOW_STACK | VmaStatus.SOCKET | VmaStatus.PLUGIN
_KERNEL_OWNED: Final = VmaStatus.VDSO | VmaStatus.VVAR | VmaStatus.VSYSCALL


def may_be_in_parent(vma: Vma) -> bool:
    """Whether CRIU looks for the mapping's pages in the parent where the pagemap says so."""
    local = vma.status & _READ_LOCALLY or vma.flags & MAP_HUGETLB
    return bool(vma.status & VmaStatus.REGULAR and vma.status & _PRIVATE and not local)


def absent_is_zero(vma: Vma) -> bool:
    """Whether a page of the mapping that is in no pagemap restores as zeros."""
    anonymous = vma.status & (_PRIVATE | _KERNEL_OWNED) == VmaStatus.ANON_PRIVATE
    return anonymous and may_be_in_parent(vma)


def may_be_lazy(vma: Vma) -> bool:
    """Whether CRIU can bring the mapping's pages in after the task runs."""
    wanted, unwanted = MAP_ANONYMOUS | MAP_PRIVATE, MAP_LOCKED | MAP_HUGETLB
    return vma.flags & (wanted | unwanted) == wanted and not vma.status & _KERNEL_OWNED


@dataclass(frozen=True, slots=True)
class Mapped:
    """The mapping that each page of a task lies in: `vmas[index[i]]`, or none where `index[i]` is -1."""

    vmas: Sequence[Vma]
    index: Integers

    def where(self, holds: Callable[[Vma], bool]) -> Mask:
        """For each page whether it lies in a mapping of which `holds` is true."""
        answers: Mask = np.array([*map(holds, self.vmas), False], np.bool_)  # index -1 finds the last
        return answers[self.index]


def mapped(images: Path, pid: int, pages: Integers) -> Mapped:
    """In which mapping of task `pid` each of these pages lies, by the mm image."""
    vmas = [vma for vma in read_vmas(images, pid) if not vma.status & VmaStatus.GUARD]
    if not vmas:
        return Mapped((), np.full(len(pages), -1, np.int64))
    start = np.array([vma.start // PAGE for vma in vmas], np.int64)
    end = np.array([-(-vma.end // PAGE) for vma in vmas], np.int64)
    index = np.searchsorted(start, pages, side="right") - 1
    index[pages >= end[index]] = -1  # where index was -1 already, it stays
    return Mapped(vmas, index)
