"""The two roads of a restore: from the files, and by a template server. What is tested on both is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thawbox.engines.criu import CriuEngine
from thawbox.engines.criu_images import PARENT_LINK
from thawbox.sandbox import Sandbox, Snapshot

FILES, TEMPLATE = "files", "template"
on_both_roads = pytest.mark.parametrize("road", [FILES, TEMPLATE], indirect=True)
"""For tests, or `pytestmark`: each is run on each road, as far as its sandboxes belong to the test's own nodes."""


class OneRoad:
    """The real engine, every restore of which takes one road."""

    def __init__(self, engine: CriuEngine, road: str) -> None:
        self._engine = engine
        self._road = road

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def restore(self, place: Any, images: Path, **options: Any) -> Any:
        if self._road == FILES:
            return self._engine.restore(place, images, **{**options, "eager": True})
        assert self._engine.warm(_chain(images)), "no template server"
        return self._engine.restore(place, images, **options)


def clones_by(road: str, snapshot: Snapshot, count: int = 1) -> list[Sandbox]:
    """Clones that take one road, where the node is not the test's own, or both roads are taken in one test."""
    if road == FILES:
        return snapshot.clones(count, eager=True)
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
