"""Which snapshots are copied to the replicas by themselves. Pure.

| rule | names |
|---|---|
| `all` | every snapshot |
| `name:GLOB` | snapshots that have such a name |
| `label:KEY=VALUE` | snapshots with this label |
| `template:GLOB` | golden snapshots of such a template |
| `sandbox:GLOB` | snapshots of a sandbox of such a name |
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from thawbox.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Described:
    """What the rules see of a snapshot."""

    names: tuple[str, ...]
    labels: Mapping[str, str]
    sandbox: str


Rule = Callable[[Described], bool]


def read_rules(text: str) -> tuple[Rule, ...]:
    """The rules in a comma-separated list; raises InvalidRequest naming the one that is none."""
    return tuple(_read(one.strip()) for one in text.split(",") if one.strip())


def is_mirrored(rules: Sequence[Rule], snapshot: Described) -> bool:
    """Whether any rule names the snapshot."""
    return any(rule(snapshot) for rule in rules)


def _read(text: str) -> Rule:
    kind, _, rest = text.partition(":")
    if text == "all":
        return lambda _: True
    if kind == "name" and rest:
        return lambda one: any(fnmatch.fnmatchcase(name, rest) for name in one.names)
    if kind == "template" and rest:
        return lambda one: fnmatch.fnmatchcase(one.labels.get("template", ""), rest)
    if kind == "sandbox" and rest:
        return lambda one: fnmatch.fnmatchcase(one.sandbox, rest)
    key, equals, value = rest.partition("=")
    if kind == "label" and key and equals:
        return lambda one: one.labels.get(key) == value
    raise InvalidRequest(
        f"{text!r} names no snapshots to mirror",
        remediation="use all, name:GLOB, label:KEY=VALUE, template:GLOB or sandbox:GLOB, separated by commas",
    )
