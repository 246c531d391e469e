"""Engines dump process trees to images and bring them back. Only they know what the bytes mean.

`Engine` is the protocol; `criu` speaks to CRIU, `fake` keeps its trees in memory and passes the same contract suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

INIT_PID = 2
"""The root of every dumped tree, as numbered inside its pid namespace; pid 1 keeps the namespace and is not dumped."""


@dataclass(frozen=True, slots=True)
class Place:
    """Prepared namespaces and cgroups in which a tree runs, or into which one is restored.

    `keeper` is the host pid of pid 1 of the namespaces; `root` the pid, inside them, of the tree's root;
    `cgroup_procs` are the files that a restored tree's first process joins; `freezer` is the cgroup directory that
    freezes the tree, to be given when the tree is frozen at the time of the dump.
    """

    keeper: int
    root: int = INIT_PID
    cgroup_procs: tuple[Path, ...] = ()
    freezer: Path | None = None


@dataclass(frozen=True, slots=True)
class DumpReport:
    """What a dump cost: `frozen_ms` is the time the tree could not run, `pages_written` counts 4 KiB pages."""

    frozen_ms: float
    total_ms: float
    pages_written: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore cost, from the call until the tree ran."""

    total_ms: float


class Engine(Protocol):
    """What every engine promises; `tests/contract/test_engines.py` holds each to it."""

    @property
    def name(self) -> str:
        """The word that manifests and `inspect` show."""
        ...

    def dump(
        self, place: Place, images: Path, *, while_stopped: Callable[[], None], established: bool = True,
        tracked: str = "",
    ) -> DumpReport:  # fmt: skip
        """Write the tree's images into the empty directory `images` and let the tree run on.

        `while_stopped` is called once, when memory is dumped and no task of the tree can run yet. With
        `place.freezer` the tree was frozen before and is frozen afterwards. `tracked` is the path, relative to
        `images`, of the images of this same tree's last dump: where the kernel tracks writes, only what was written
        since needs to be dumped.
        Raises DumpFailed; the tree then runs on as it did, whatever `while_stopped` raises included.
        """
        ...

    def restore(
        self, place: Place, images: Path, *, before_resume: Callable[[], None] | None = None, established: bool = True,
        eager: bool = False,
    ) -> RestoreReport:  # fmt: skip
        """Bring the tree in `images` to life inside `place`; `before_resume` is called just before it runs.

        To leave it out saves the engine's asking.

        With `established` false, TCP connections are closed instead of restored; with `eager` what `warm` made is
        not used.
        Raises RestoreFailed; `place` may then hold remains of the tree, and its owner destroys it.
        """
        ...

    def warm(self, chain: Sequence[Path]) -> bool:
        """Make ready for many restores of the newest of `chain` (verified images directories, base first).

        They then share memory with one another where the engine can; False where it cannot. Nothing else changes.
        """
        ...

    def is_warm(self, images: Path) -> bool:
        """Whether what `warm` made for this images directory is there now."""
        ...

    def cool(self, images: Path) -> None:
        """Give up what `warm` made for this images directory; what was restored is not touched."""
        ...

    def close(self) -> None:
        """Give up everything that `warm` made."""
        ...

    def shrink(self, images: Path, *, parents: Sequence[Path] = (), parent_link: str = "") -> bool:
        """Rewrite a fresh dump in place so that it holds only what a restore does not find elsewhere.

        Without `parents` the images stay whole, less what costs nothing to make anew (zero pages). With them (images
        directories, base first) they become a delta, which finds its parent at `parent_link`, a path relative to
        `images`. True if a restore of the parent would bring back the same tree.
        Raises CorruptSnapshot or BrokenChain when a parent cannot be read.
        """
        ...

    def flatten(self, chain: Sequence[Path], out: Path) -> None:
        """Write into the empty directory `out` the full images equal to the newest of `chain` (base first)."""
        ...

    def find_pairs(self, chain: Sequence[Path], task: int, pairs: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
        """For each of `pairs` (16 bytes) the addresses, multiples of 8, at which it lies in the memory of `task`.

        `chain` is images directories, base first, `task` a pid inside. Raises NotFound where there is no such task.
        """
        ...

    def version(self) -> str:
        """The engine's version, as its images depend on it; raises Unsupported when it cannot run at all."""
        ...


__all__ = ["INIT_PID", "DumpReport", "Engine", "Place", "RestoreReport"]
