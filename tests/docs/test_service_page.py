"""The page about running the service names every metric that there is, and every command that does not ask it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import click
import yaml
from prometheus_client.metrics_core import Metric

from thawbox.api.metrics import Metrics
from thawbox.api.node_metrics import NAMES
from thawbox.cli.app import thawbox
from thawbox.cli.desk import reached

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/service.md").read_text()
RULES = ROOT / "deploy/observability/alerts.yaml"
GRAFANA = ROOT / "deploy/observability/grafana.json"


def names_there_are() -> set[str]:
    def shown(metric: Metric) -> str:
        return f"{metric.name}_total" if metric.type == "counter" else metric.name

    return {shown(metric) for metric in Metrics().registry.collect() if metric.name.startswith("thawbox_")} | set(NAMES)


def names_in(text: str) -> set[str]:
    """Metrics, less what Prometheus adds to a histogram's name."""
    found = set(re.findall(r"\bthawbox_[a-z_]+\b", text))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def test_the_table_names_every_metric_and_no_other() -> None:
    table = set(re.findall(r"^\| `(thawbox_[a-z_]+)` \|", PAGE, re.MULTILINE))
    assert table == names_there_are()


def test_the_alerting_rules_ask_for_metrics_that_there_are() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert all({"alert", "expr", "labels", "annotations"} <= set(rule) for rule in rules)
    asked = {name for rule in rules for name in names_in(rule["expr"])}
    assert len(asked) > 5
    assert asked <= names_there_are()


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in names_in(target["expr"])}
    assert len(asked) > 8
    assert asked <= names_there_are()


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by how it is called."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from leaves(below, f"{path} {name}".strip())


def called_by(act: Callable[..., Any] | None, found: set[object]) -> set[object]:
    """The functions and methods of the command line that it names, and those that these name."""
    function = inspect.unwrap(act) if act is not None else None
    if not isinstance(function, FunctionType) or function in found:
        return found
    found.add(function)
    for name in names_of(function.__code__):
        named = function.__globals__.get(name)
        if not str(getattr(named, "__module__", "")).startswith("thawbox.cli"):
            continue
        for one in vars(named).values() if isinstance(named, type) else [named]:
            called_by(one, found)
    return found


def names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_of(constant)


def test_the_page_names_every_command_that_does_not_ask_the_service_and_no_other() -> None:
    rows = PAGE.partition("| done by the command itself")[2].partition("\n\n")[0].splitlines()[2:]
    told = [one for row in rows for one in re.findall(r"`([^`]+)`", row.split("|")[1])]
    commands = dict(leaves(thawbox))
    asking = inspect.unwrap(reached)
    asks = {path for path, command in commands.items() if asking in called_by(command.callback, set())}
    assert {"ps", "checkpoint", "pool acquire"} <= asks
    assert {one for one in told if "--" not in one} == set(commands) - asks
    for path, option in (one.split(" --") for one in told if "--" in one):  # it depends on the option
        assert path in asks
        assert any(f"--{option}" in one.opts for one in commands[path].params)
