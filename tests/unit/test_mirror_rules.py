"""Which snapshots are copied to replicas by themselves."""

from __future__ import annotations

import pytest

from thawbox.errors import InvalidRequest
from thawbox.store.mirror_rules import Described, is_mirrored, read_rules

GOLDEN = Described(("web-2026",), {"template": "web", "tier": "gold"}, "web-golden-1a2b3c")


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("all", True),
        ("", False),
        ("name:web-*", True),
        ("name:api-*", False),
        ("label:tier=gold", True),
        ("label:tier=silver", False),
        ("template:w?b", True),
        ("template:*", True),
        ("sandbox:web-golden-*", True),
        ("sandbox:api, name:web-2026", True),
    ],
)
def test_any_rule_may_name_a_snapshot(rules: str, named: bool) -> None:
    assert is_mirrored(read_rules(rules), GOLDEN) is named


def test_a_template_rule_names_golden_snapshots_alone() -> None:
    assert not is_mirrored(read_rules("template:?*"), Described((), {}, "web"))


@pytest.mark.parametrize("rules", ["every", "name:", "label:tier", "all,template", "label:=x"])
def test_what_is_no_rule_is_refused_by_name(rules: str) -> None:
    with pytest.raises(InvalidRequest, match=rules.rpartition(",")[2]):
        read_rules(rules)
