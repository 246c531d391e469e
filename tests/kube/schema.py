"""OpenAPI structural schemas as the API server applies them: prune, default, validate, then the CEL rules."""

from __future__ import annotations

import copy
import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,),
    "number": (int, float), "boolean": (bool,),
}  # fmt: skip


def admit(schema: dict[str, Any], new: dict[str, Any], old: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """The object as it would be stored, and what is wrong with it."""
    kept = _prune(schema, copy.deepcopy(new), top=True)
    problems: list[str] = []
    _check(schema, kept, "", problems)
    if not problems:
        _rules(schema, kept, old, "", problems)
    return kept, problems


def _prune(schema: dict[str, Any], value: Any, *, top: bool = False) -> Any:
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            always = {"apiVersion", "kind", "metadata"} if top else set()
            value = {name: one for name, one in value.items() if name in known or name in always}
        for name, below in known.items():
            if name not in value and "default" in below:
                value[name] = copy.deepcopy(below["default"])
            if name in value:
                value[name] = _prune(below, value[name])
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        value = {name: _prune(schema["additionalProperties"], one) for name, one in value.items()}
    elif isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields") and not top:
        value = {}
    elif isinstance(value, list) and "items" in schema:
        value = [_prune(schema["items"], one) for one in value]
    return value


def _check(schema: dict[str, Any], value: Any, where: str, problems: list[str]) -> None:
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        problems.append(f"{where or 'object'}: Invalid value: must be of type {kind}")
        return
    if "enum" in schema and value not in schema["enum"]:
        problems.append(f"{where}: Unsupported value: {value!r}: supported values: {schema['enum']}")
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (value < schema.get("minimum", value) or value > schema.get("maximum", value))
    ):
        problems.append(f"{where}: Invalid value: {value} is out of range")
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            problems.append(f"{where}: Invalid value: length")
        if schema.get("format") == "date-time" and not re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value
        ):
            problems.append(f"{where}: Invalid value: {value!r} is no date-time")
    if isinstance(value, dict):
        problems += [f"{where}.{name}: Required value" for name in schema.get("required", []) if name not in value]
        for name, one in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                _check(below, one, f"{where}.{name}".lstrip("."), problems)
    if isinstance(value, list):
        for number, one in enumerate(value):
            _check(schema.get("items", {}), one, f"{where}[{number}]", problems)
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys and len({tuple(one.get(key) for key in keys) for one in value}) != len(value):
            problems.append(f"{where}: Duplicate value")


class _Fields:
    """A CEL object: its fields as attributes."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        return _wrapped(self._value[name])


def _wrapped(value: Any) -> Any:
    return _Fields(value) if isinstance(value, dict) else value


def _rules(schema: dict[str, Any], value: Any, old: Any, where: str, problems: list[str]) -> None:
    for rule in schema.get("x-kubernetes-validations", []):
        text = rule["rule"].replace("&&", " and ").replace("||", " or ")
        if "oldSelf" in text and old is None:
            continue
        if not eval(text, {"__builtins__": {}}, {"self": _wrapped(value), "oldSelf": _wrapped(old)}):
            problems.append(f"{where}: Invalid value: {rule['message']}")
    if isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                _rules(below, value[name], before, f"{where}.{name}".lstrip("."), problems)
