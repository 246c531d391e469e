"""The page about pools names every route that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from thawbox.api.app import create_app
from thawbox.api.service import Service
from thawbox.node import Node

PAGE = (Path(__file__).resolve().parents[2] / "docs/pools.md").read_text()


def test_every_route_is_on_the_page() -> None:
    schema = create_app(Service(cast("Node", None))).openapi()
    routes = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert routes == set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", PAGE, re.MULTILINE))
