"""Every error has an HTTP status, and says over HTTP what it says elsewhere."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest
from fastapi import Request

from thawbox.api.problems import http_status_of, tell_error
from thawbox.cli.served import _error_of
from thawbox.errors import InvalidTransition, PoolExhausted, SandboxNotFound, ThawboxError


def below(kind: type[ThawboxError]) -> list[type[ThawboxError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in below(child))]


KINDS = [kind for kind in below(ThawboxError) if kind is not ThawboxError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_and_comes_back_as_what_it_was(kind: type[ThawboxError]) -> None:
    error = kind("it is so", remediation="do this", log="last words")
    status = http_status_of(error)
    assert 400 <= status < 600
    response = asyncio.run(tell_error(cast("Request", None), error))
    told = json.loads(bytes(response.body))
    assert response.status_code == told["status"] == status
    assert response.media_type == "application/problem+json"
    again = _error_of(told)
    assert (type(again), again.cause, again.remediation, again.log) == (kind, "it is so", "do this", "last words")


def test_the_nearest_class_decides() -> None:
    assert http_status_of(SandboxNotFound("x")) == 404
    assert http_status_of(InvalidTransition("x")) == 409
    assert http_status_of(PoolExhausted("x")) == 503
