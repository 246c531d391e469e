"""The service's problems as the errors they were there, by their code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from thawbox.errors import ThawboxError


def error_of(problem: Mapping[str, Any], *, status: int) -> ThawboxError:
    """The error that a problem tells of: of its own class, or of the nearest family that is known here."""
    code = str(problem.get("code") or ("unavailable" if status in (429, 502, 503, 504) else "thawbox"))
    cause = str(problem.get("cause") or problem.get("detail") or f"the service answered {status}")
    kind = _kind_of(code)
    return kind(cause, remediation=str(problem.get("remediation", "")), log=str(problem.get("log", "")))


def problem_of(content: bytes) -> dict[str, Any]:
    """The problem in an answer's body; empty if it is none: something between us and the service answered."""
    try:
        found: object = json.loads(content)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


@cache
def _kind_of(code: str) -> type[ThawboxError]:
    known = {kind.code: kind for kind in _below(ThawboxError)}
    family = code
    while family not in known and "." in family:
        family = family.rpartition(".")[0]
    kind = known.get(family, ThawboxError)
    return kind if kind.code == code else type(kind.__name__, (kind,), {"code": code})


def _below(kind: type[ThawboxError]) -> Iterator[type[ThawboxError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)
