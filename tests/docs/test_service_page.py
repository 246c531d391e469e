"""The page about running the service names every metric that there is and no other; so do rules and dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus_client.metrics_core import Metric

from thawbox.api.metrics import Metrics
from thawbox.api.node_metrics import NAMES

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
