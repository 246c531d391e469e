"""The pages about the service say what the code does."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import cast

import click
import pytest
from fastapi.routing import APIRoute

from thawbox.api.access import is_open, scope_of
from thawbox.api.app import create_app, routes_of
from thawbox.api.problems import HTTP_STATUSES
from thawbox.api.service import Service
from thawbox.cli.app import thawbox
from thawbox.cli.spec_text import read_span
from thawbox.node import Node

DOCS = Path(__file__).resolve().parents[2] / "docs"
APP = create_app(Service(cast("Node", None)))
ROUTES = routes_of(APP)


def test_every_route_is_on_the_page_with_the_scope_that_it_demands() -> None:
    rows = re.findall(r"^\| `([A-Z]+) ([^`]*)` \| (\w+) \|", (DOCS / "routes.md").read_text(), re.MULTILINE)
    there = {
        (method, route.path, scope_of(route))
        for route in ROUTES
        for method in (route.methods if isinstance(route, APIRoute) else {"WS"})
    }
    assert set(rows) == there


def test_the_schema_has_every_route() -> None:
    schema = APP.openapi()
    assert schema["openapi"].startswith("3.1")
    there = {route.path for route in ROUTES if isinstance(route, APIRoute) and route.include_in_schema}
    assert set(schema["paths"]) == there


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.path} {route.name}")
def test_a_route_demands_a_scope_or_is_open_to_all_on_purpose(route: APIRoute) -> None:
    assert (scope_of(route) == "open") == is_open(route.path)
    assert (route.endpoint.__doc__ or "").strip(), "it does not say what it does"


@pytest.mark.parametrize("status", sorted(set(HTTP_STATUSES.values())))
def test_every_status_is_explained(status: int) -> None:
    table = (DOCS / "api.md").read_text()
    assert re.search(rf"^\| [0-9, ]*\b{status}\b", table, re.MULTILINE)


def test_the_systemd_unit_starts_what_there_is_and_lets_sandboxes_outlive_it() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    unit.read(DOCS.parent / "deploy/systemd/thawbox.service")
    service = unit["Service"]
    program, command, *options = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("thawbox", "serve")
    serve = thawbox.get_command(click.Context(thawbox), "serve")
    assert serve is not None
    given = serve.make_context("serve", options).params
    assert (service["Type"], service["KillMode"]) == ("notify", "process")
    assert float(service["TimeoutStopSec"]) >= read_span(given["drain_timeout"]) + 10
