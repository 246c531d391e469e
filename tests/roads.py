"""The two roads of a restore: from the files, and by a template server. What is tested on both is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thawbox.engines.criu import CriuEngine
from thawbox.engines.criu_images import PARENT_LINK

FILES, TEMPLATE = "files", "template"
on_both_roads = pytest.mark.parametrize("road", [FILES, TEMPLATE], indirect=True)
"""For `pytestmark`: every test of the module is run on each road, as far as its sandboxes belong to its own nodes."""


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


def _chain(images: Path) -> list[Path]:
    chain = [images]
    while (link := chain[0] / PARENT_LINK).is_symlink():
        chain.insert(0, link.resolve())
    return chain
