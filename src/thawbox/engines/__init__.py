"""Engines dump process trees to images and bring them back. Only they know what the bytes mean.

`Engine` is the protocol; `criu` speaks to CRIU, `fake` keeps its trees in memory and passes the same contract suite.
"""

from __future__ import annotations

import enum
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


class Freeze(enum.Enum):
    """How long a dump held its tree: COW while each task was copied, copy on write, and the copies are read while the
    tree runs; PLAIN while all of its memory was read."""

    COW = "cow"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Parents:
    """What a dump may leave out: images directories, base first, of which the newest is found at `link`, a path
    relative to the new images. Without any, everything is written."""

    images: tuple[Path, ...] = ()
    link: str = ""


ALONE = Parents()


@dataclass(frozen=True, slots=True)
class DumpReport:
    """What a dump cost: `frozen_ms` is the time the tree could not run, `pages_written` counts those of
    4 KiB that were dumped.

    `why_plain` is the reason for a plain dump, where a short freeze could have been. With `shrunk` the images are
    what `shrink` would have made of them, and `clean` what it would have answered.
    """

    frozen_ms: float
    total_ms: float
    pages_written: int
    freeze: Freeze = Freeze.PLAIN
    why_plain: str = ""
    shrunk: bool = False
    clean: bool = False


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore cost, from the call until the tree ran."""

    total_ms: float


def nothing() -> None:
    """What is done when there is nothing to do."""


class Engine(Protocol):
    """What every engine promises; `tests/contract/test_engines.py` holds each to it."""

    @property
    def name(self) -> str:
        """The word that manifests and `inspect` show."""
        ...

    def dump(
        self, place: Place, images: Path, *, while_stopped: Callable[[], None],
        when_running: Callable[[], None] = nothing, established: bool = True, tracked: str = "", why_plain: str = "",
        parents: Parents = ALONE,
    ) -> DumpReport:  # fmt: skip
        """Write the tree's images into the empty directory `images` and let the tree run on.

        `while_stopped` is called once, when what is dumped is settled and no task of the tree can run yet;
        `when_running` once, as soon as the tree runs again. With `place.freezer` the tree was frozen before and is
        frozen afterwards. `tracked` is the path, relative to `images`, of the images of this same tree's last dump:
        where the kernel tracks writes, only what was written since needs to be dumped.

        The freeze is as short as the engine can make it, unless `why_plain` tells why it must not: then all memory is
        read while the tree is stopped. What is read later may be compared with `parents` at once (see `shrink`).
        Raises DumpFailed, CopyLost where a plain dump may succeed; what `while_stopped` or `when_running` raise;
        CorruptSnapshot or BrokenChain where a parent cannot be read. The tree then runs on as it did.
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


__all__ = [
    "ALONE", "INIT_PID", "DumpReport", "Engine", "Freeze", "Parents", "Place", "RestoreReport", "nothing",
]  # fmt: skip
