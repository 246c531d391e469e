"""`/openapi.json` says what every route answers. That this is true the tests of the service show: `conformance`."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from conformance import APP, check_answer
from thawbox.api.app import routes_of
from thawbox.model import Phase

DOCUMENT: dict[str, Any] = APP.openapi()
SHAPES: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (method, route.path)
    for route in routes_of(APP)
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in route.methods or ()
]


def resolved(reference: str) -> Any:
    return SHAPES[reference.removeprefix("#/components/schemas/")]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_route_says_what_it_answers_and_that_it_answers_problems(method: str, path: str) -> None:
    told = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert {"4XX", "5XX"} < set(told)
    assert "422" not in told  # FastAPI's own word for what is answered 400 here
    for status, response in told.items():
        assert status == "204" or response["content"]
        for media_type, content in response.get("content", {}).items():
            wanted = "application/problem+json" if status[1:] == "XX" else media_type
            assert media_type == wanted
            if media_type.endswith("json"):
                parts = content["schema"].get("anyOf", [content["schema"]])
                assert all(resolved(one["$ref"])["properties"] for one in parts)


def test_every_reference_leads_somewhere_and_every_shape_is_referred_to() -> None:
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT))) == set(SHAPES)


def test_what_an_answer_always_has_is_required_and_what_it_inherits_is_what_it_was() -> None:
    assert set(SHAPES["Spec-Output"]["required"]) == set(SHAPES["Spec"]["properties"])
    assert SHAPES["Spec"]["required"] == ["command"]
    assert set(SHAPES["Problem"]["properties"]) - set(SHAPES["Problem"]["required"]) == {"log"}
    assert SHAPES["Sandbox"]["properties"]["state"]["enum"] == [phase.value for phase in Phase]
    assert {"template", "lease_ttl", "open", "parked"} <= set(SHAPES["Pool"]["required"])
    assert {"stale", "totals"} <= set(SHAPES["Pool"]["properties"]) - set(SHAPES["Pool"]["required"])


@pytest.mark.parametrize(
    ("status", "told"), [(200, {"status": "ok", "more": 1}), (200, {}), (200, {"status": 1}), (201, {"status": "ok"})]
)
def test_an_answer_that_is_not_as_it_says_is_found(status: int, told: object) -> None:
    request = httpx.Request("GET", "http://node/healthz")
    assert check_answer(httpx.Response(200, json={"status": "ok"}, request=request)) == "/healthz"
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        check_answer(httpx.Response(status, json=told, request=request))
