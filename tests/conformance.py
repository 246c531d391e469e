"""What a service answers, held against what `/openapi.json` says that it answers; no field more, none less."""

from __future__ import annotations

import copy
import functools
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from starlette.routing import Match

from thawbox.api.app import create_app, routes_of
from thawbox.api.service import Service
from thawbox.api.shown import OPEN

APP = create_app(Service(None))  # type: ignore[arg-type]  # nothing is asked of the node


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document, in which every shape has no fields but those that it names."""
    found = copy.deepcopy(document)
    may_have_more = {shape.__name__ for shape in OPEN}
    for name, schema in cast("dict[str, Any]", found["components"]["schemas"]).items():
        if "properties" in schema and name not in may_have_more:
            schema.setdefault("additionalProperties", False)
    return found


@functools.cache
def _schema() -> Any:
    return schemathesis.openapi.from_dict(closed(APP.openapi()))


@functools.cache
def _routes() -> list[APIRoute]:
    return [one for one in routes_of(APP) if isinstance(one, APIRoute) and one.include_in_schema]


def check_answer(answer: httpx.Response) -> str | None:
    """Fail unless this answer is what the document says; its route, None where there is none of that path."""
    request = answer.request
    scope = {"type": "http", "path": request.url.path, "method": request.method}
    path = next((one.path for one in _routes() if one.matches(scope)[0] is Match.FULL), None)
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if path is None:
        return None
    operation = _schema()[path][request.method]
    told = APP.openapi()["paths"][path][request.method.lower()]["responses"]
    status = str(answer.status_code) if answer.status_code < 400 else f"{answer.status_code // 100}XX"
    assert status in told, (request.method, path, answer.status_code)
    assert media_type in told[status].get("content", {"": None}), (request.method, path, status, media_type)
    if media_type.endswith("json"):
        operation.validate_response(_plain(answer))
    return path


def _plain(answer: httpx.Response) -> httpx.Response:
    """The same answer, to a request without a body: one that was streamed cannot be looked at again."""
    request = httpx.Request(answer.request.method, answer.request.url)
    found = httpx.Response(answer.status_code, headers=answer.headers, content=answer.read(), request=request)
    found.elapsed = timedelta()
    return found


@contextmanager
def every_answer_checked(patch: pytest.MonkeyPatch) -> Generator[set[str]]:
    """For the block whatever httpx is answered is checked; the routes that were."""
    send, asend = httpx.Client.send, httpx.AsyncClient.send
    seen: set[str] = set()

    def sent(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = send(client, request, **options)
        seen.add(check_answer(answer) or "")
        return answer

    async def asent(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = await asend(client, request, **options)
        if answer.headers.get("content-type", "").endswith("json"):
            await answer.aread()
        seen.add(check_answer(answer) or "")
        return answer

    with patch.context() as now:
        now.setattr(httpx.Client, "send", sent)
        now.setattr(httpx.AsyncClient, "send", asent)
        yield seen
