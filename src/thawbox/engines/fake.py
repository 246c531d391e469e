"""An engine without a kernel: its trees are values in memory, its images one JSON file.

It passes the same contract suite as the real one (`tests/contract/test_engines.py`), so what is built on engines can
be tested without root and quickly.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from thawbox.engines import ALONE, DumpReport, Freeze, Parents, Place, RestoreReport, nothing
from thawbox.errors import BrokenChain, CorruptSnapshot, DumpFailed, RestoreFailed

IMAGES = "tree.json"
PARENT_LINK = "parent"

Pages = dict[int, str]
"""What a tree holds: page numbers and their content."""


@dataclass(slots=True)
class FakeTree:
    """A process tree: `runs` is false while the engine holds it, `frozen` while its cgroup does."""

    pages: Pages
    runs: bool = True
    frozen: bool = False


class _Image(msgspec.Struct, frozen=True):
    """`pages` holds those that the parent has not, or has otherwise; `present` names all."""

    pages: Pages
    present: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FakeEngine:
    """Trees by the pid of their place's keeper."""

    trees: dict[int, FakeTree] = field(default_factory=dict[int, FakeTree])
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))

    @property
    def name(self) -> str:
        return "fake"

    def version(self) -> str:
        return "1"

    def begin(self, pages: Pages) -> Place:
        """A new place with a running tree in it."""
        place = self.prepare()
        self.trees[place.keeper] = FakeTree(dict(pages))
        return place

    def prepare(self) -> Place:
        """A new place with nothing in it."""
        return Place(next(self._pids))

    def dump(
        self,
        place: Place,
        images: Path,
        *,
        while_stopped: Callable[[], None],
        when_running: Callable[[], None] = nothing,
        established: bool = True,  # noqa: ARG002 - its trees have no connections
        tracked: str = "",  # noqa: ARG002 - nobody tracks their writes
        why_plain: str = "",
        parents: Parents = ALONE,
    ) -> DumpReport:
        tree = self.trees.get(place.keeper)
        if tree is None:
            raise DumpFailed(f"no tree is at {place.keeper}", remediation="dump a place in which a tree runs")
        tree.runs = False
        try:
            _write(images, _Image(dict(tree.pages), tuple(tree.pages)))
            while_stopped()
        finally:
            tree.runs = True
        when_running()
        if why_plain or tree.frozen:
            return DumpReport(0.0, 0.0, len(tree.pages), why_plain=why_plain or "the tree is frozen anyway")
        clean = self.shrink(images, parents=parents.images, parent_link=parents.link)
        return DumpReport(0.0, 0.0, len(tree.pages), freeze=Freeze.COW, shrunk=True, clean=clean)

    def restore(
        self,
        place: Place,
        images: Path,
        *,
        before_resume: Callable[[], None] | None = None,
        established: bool = True,  # noqa: ARG002 - its trees have no connections
        eager: bool = False,  # noqa: ARG002 - it holds nothing ready
    ) -> RestoreReport:
        if place.keeper in self.trees:
            raise RestoreFailed(f"a tree is at {place.keeper} already", remediation="restore into an empty place")
        try:
            pages = _effective(images)
        except (CorruptSnapshot, BrokenChain) as unreadable:
            raise RestoreFailed(f"the restore failed: {unreadable.cause}", remediation="read the log") from unreadable
        if before_resume is not None:
            before_resume()
        self.trees[place.keeper] = FakeTree(pages)
        return RestoreReport(0.0)

    def warm(self, chain: Sequence[Path]) -> bool:
        _effective(chain[-1])
        return False

    def is_warm(self, images: Path) -> bool:  # noqa: ARG002
        return False

    def cool(self, images: Path) -> None:
        pass

    def close(self) -> None:
        pass

    def shrink(self, images: Path, *, parents: Sequence[Path] = (), parent_link: str = "") -> bool:
        if not parents:
            return False
        image, before = _read(images), _effective(parents[-1])
        changed = {page: content for page, content in image.pages.items() if before.get(page) != content}
        (images / PARENT_LINK).symlink_to(parent_link)
        _write(images, _Image(changed, image.present))
        return not changed and set(image.present) == set(before)

    def find_pairs(
        self,
        chain: Sequence[Path],  # noqa: ARG002 - its trees have no memory
        task: int,  # noqa: ARG002
        pairs: Sequence[bytes],
    ) -> tuple[tuple[int, ...], ...]:
        return tuple(() for _ in pairs)

    def flatten(self, chain: Sequence[Path], out: Path) -> None:
        pages = _effective(chain[-1])
        _write(out, _Image(pages, tuple(pages)))

    def freeze(self, place: Place) -> Place:
        """The same place with its tree frozen, as a cgroup would."""
        self.trees[place.keeper].frozen = True
        return replace(place, freezer=Path(os.devnull))


def _write(images: Path, image: _Image) -> None:
    (images / IMAGES).write_bytes(msgspec.json.encode(image))


def _read(images: Path) -> _Image:
    try:
        return msgspec.json.decode((images / IMAGES).read_bytes(), type=_Image)
    except FileNotFoundError:
        raise BrokenChain(f"{images} holds no images") from None
    except msgspec.DecodeError as error:
        raise CorruptSnapshot(f"{images}/{IMAGES} cannot be read: {error}") from None


def _effective(images: Path) -> Pages:
    """What a restore of `images` brings back, its parents followed."""
    image = _read(images)
    missing = set(image.present) - set(image.pages)
    before = _effective(images / PARENT_LINK) if missing else {}
    try:
        return {page: image.pages[page] if page in image.pages else before[page] for page in image.present}
    except KeyError as page:
        raise BrokenChain(f"{images} expects page {page} of its parent, which has none") from None


__all__ = ["IMAGES", "PARENT_LINK", "FakeEngine", "FakeTree"]
