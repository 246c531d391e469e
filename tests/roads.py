"""The two roads of a restore: from the files, and by a template server. What is tested on both is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thawbox.config import load_settings
from thawbox.engines.criu import CriuEngine
from thawbox.engines.criu_images import PARENT_LINK
from thawbox.node import locate_programs
from thawbox.sandbox import Sandbox, Snapshot


def _is_foreign() -> bool:
    """Whether the criu of this run is not the one that set-up built: by THAWBOX_CRIU, or by a link to the machine's."""
    settings = load_settings()
    return bool(settings.criu) or locate_programs(settings).criu.is_symlink()


needs_templates = pytest.mark.skipif(_is_foreign(), reason="a criu that is not of our build may lack template servers")
"""For tests that hold memory ready. With our own build they fail where it does not: a patch that no longer applies."""
FILES, TEMPLATE = "files", "template"
on_both_roads = pytest.mark.parametrize(
    "road", [FILES, pytest.param(TEMPLATE, marks=needs_templates)], indirect=True
)  # fmt: skip
"""For tests, or `pytestmark`: each is run on each road, as far as its sandboxes belong to the test's own nodes."""

_MOST_WARM = 4


class OneRoad:
    """The real engine, every restore of which takes one road."""

    def __init__(self, engine: CriuEngine, road: str) -> None:
        self._engine = engine
        self._road = road
        self._warmed: dict[Path, None] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def restore(self, place: Any, images: Path, **options: Any) -> Any:
        if self._road == FILES:
            return self._engine.restore(place, images, **{**options, "eager": True})
        assert self._engine.warm(_chain(images)), "no template server"
        self._warmed.pop(images, None)
        self._warmed[images] = None
        for old in list(self._warmed)[:-_MOST_WARM]:  # far from any restore that is under way
            self._warmed.pop(old, None)
            self._engine.cool(old)
        return self._engine.restore(place, images, **options)


def clones_by(road: str, snapshot: Snapshot, count: int = 1) -> list[Sandbox]:
    """Clones that take one road, where the node is not the test's own, or both roads are taken in one test."""
    if road == FILES:
        return snapshot.clones(count, eager=True)
    if _is_foreign() and not snapshot.warm(shells=0):
        pytest.skip("this criu, which is not of our build, has no template servers")
    assert snapshot.warm(shells=0), "no template server"
    try:
        return snapshot.clones(count)
    finally:
        snapshot.cool()


def _chain(images: Path) -> list[Path]:
    chain = [images]
    while (link := chain[0] / PARENT_LINK).is_symlink():
        chain.insert(0, link.resolve())
    return chain
