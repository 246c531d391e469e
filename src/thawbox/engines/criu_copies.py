"""Memory read from copies of a sandbox's tasks, while the tasks run on: the second half of a copy-on-write dump.

Needs our patch 0008 to CRIU (native/criu/README.md), which makes the copies in the frozen moment, holds them, and
ends them when it is told or ends itself. A copy holds still: what is read from it is what its task held.

Rule 1: a page that cannot be read fails the dump. Zeros, or another moment's bytes, never stand in for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from thawbox.engines.criu_pagemap import PAGE, Integers, Mask
from thawbox.engines.criu_pages import runs
from thawbox.engines.criu_reader import Rows, read_rows
from thawbox.errors import CopyLost
from thawbox.host.proc import children, pid_inside

COPIES = "copies"
"""The file in CRIU's work directory that tells of the copies (criu/cow-dump.c in the patch)."""

_RAISED_SCORE = "1000"
"""Of a copy's oom_score_adj: where memory is short it is the first to go, which costs the dump and nothing else."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Copy:
    """Where the memory of one task is: in the process `pid` (of the host), but for the page ranges `here` (first and
    last plus one), which lie in the pages file already, at their place in the order of the pagemap."""

    pid: int
    here: tuple[tuple[int, int], ...] = ()


def find_copies(work: Path, keeper: int) -> dict[int, Copy]:
    """The copies that CRIU holds, by task; empty when it made none. They are children of the keeper.

    Raises CopyLost when one is gone already.
    """
    try:
        lines = (work / COPIES).read_text().splitlines()
    except FileNotFoundError:
        return {}
    outside = {pid_inside(pid): pid for pid in children(keeper)}
    pids: dict[int, int] = {}
    here: dict[int, list[tuple[int, int]]] = {}
    for word, task, *rest in (line.split() for line in lines):
        if word == "here":
            here.setdefault(int(task), []).append((int(rest[0], 16) // PAGE, int(rest[1], 16) // PAGE))
            continue
        pid = outside.get(int(rest[0]))
        if pid is None:
            raise _gone(int(task))
        pids[int(task)] = pid
    return {task: Copy(pid, tuple(here.get(task, ()))) for task, pid in pids.items()}


def expose(copies: Mapping[int, Copy]) -> None:
    """Let the kernel end the copies first where the machine runs out of memory."""
    for copy in copies.values():
        with contextlib.suppress(OSError):
            Path(f"/proc/{copy.pid}/oom_score_adj").write_text(_RAISED_SCORE)


class CopyRows:
    """The pages of one task, in the order of its pagemap; a context manager.

    A copy that was read is ended: for as long as it lives, every page that its task writes is there twice.
    """

    def __init__(self, task: int, copy: Copy, pages: Integers, path: Path) -> None:
        self._task, self._copy, self._pages, self._path = task, copy, pages, path
        self._here = _within(pages, copy.here)
        self._file = self._memory = -1

    def __enter__(self) -> CopyRows:
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._memory = os.open(f"/proc/{self._copy.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            os.close(self._file)
            raise _gone(self._task) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._memory)
        os.close(self._file)
        if kind is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._copy.pid, signal.SIGKILL)  # held by criu, which has not reaped it: the pid is its own

    def read(self, low: int, rows: Rows) -> None:
        """Fill `rows` with the pages from number `low` on; raises CopyLost when the copy is gone."""
        here = self._here[low : low + len(rows)]
        in_file, in_copy = np.flatnonzero(here), np.flatnonzero(~here)
        for first, end in runs([in_file]):
            at, until = int(in_file[first]), int(in_file[end - 1]) + 1
            read_rows(self._file, low + at, rows[at:until], name=str(self._path))
        if len(in_copy):
            self._read_copy(self._pages[low : low + len(rows)][in_copy], rows, in_copy)

    def _read_copy(self, pages: Integers, rows: Rows, into: Integers) -> None:
        """By one system call as a rule; what the program itself must not read, as a debugger reads it."""
        pieces = list(runs([pages, into]))
        remote = np.array([(int(pages[a]) * PAGE, (b - a) * PAGE) for a, b in pieces], np.uint64)
        start = rows.ctypes.data
        local = np.array([(start + int(into[a]) * PAGE, (b - a) * PAGE) for a, b in pieces], np.uint64)
        got = _libc.process_vm_readv(
            self._copy.pid, ctypes.c_void_p(local.ctypes.data), ctypes.c_ulong(len(pieces)),
            ctypes.c_void_p(remote.ctypes.data), ctypes.c_ulong(len(pieces)), ctypes.c_ulong(0),
        )  # fmt: skip
        if got == len(pages) * PAGE:
            return
        for first, end in pieces:
            at = int(into[first])
            self._read_as_debugger(int(pages[first]) * PAGE, rows[at : at + end - first])

    def _read_as_debugger(self, address: int, rows: Rows) -> None:
        view = rows.data.cast("B")
        while len(view):
            try:
                done = os.preadv(self._memory, [view], address)
            except OSError as error:
                raise _gone(self._task) from error
            if not done:
                raise _gone(self._task)
            view, address = view[done:], address + done


def _within(pages: Integers, ranges: tuple[tuple[int, int], ...]) -> Mask:
    """For each of the ascending `pages` whether it lies in one of the ranges."""
    inside = np.zeros(len(pages), np.bool_)
    for first, end in ranges:
        inside[np.searchsorted(pages, first) : np.searchsorted(pages, end)] = True
    return inside


def _gone(task: int) -> CopyLost:
    return CopyLost(
        f"the copy of task {task} ended before its memory was read; the sandbox runs on",
        remediation="let no program in the sandbox kill processes that it did not start; try again",
    )
