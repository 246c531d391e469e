"""Whatever it is sent, the service says what is wrong with it, and goes on: no 5xx, no harm."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conformance import closed
from serving import SLEEP, Serving, made, token
from thawbox.api.app import create_app, routes_of
from thawbox.api.service import Service

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

APP = create_app(Service(None))  # type: ignore[arg-type]  # nothing is asked of the node
EVENTS, DOCTOR = "/v1/events", "/v1/doctor"
"""One never ends; the other may take seconds, and takes only a boolean."""
WHOLE = schemathesis.openapi.from_dict(closed(APP.openapi()))
SCHEMA = WHOLE.exclude(path=[EVENTS, DOCTOR])
TRUE_TO_THE_DOCUMENT: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]

HOSTILE = {
    "empty": "", "dots": "..", "up": "../../../etc/passwd", "slash": "a/b", "nul": "\0", "inner nul": "a\0b",
    "space": "a b", "dash": "-rf", "line": "a\nb", "reversed": "\u202egnp", "combining": "e\u0301" * 40,
    "astral": "\U0001f512" * 63, "quote": "'; DROP TABLE sandboxes; --", "percent": "%2e%2e%2f", "long": "x" * 64,
    "much": "x" * (10 << 20),
}  # fmt: skip


@pytest.fixture(scope="module")
def admin(root: httpx.Client) -> str:
    return token(root, "fuzz", "admin")


@SCHEMA.parametrize()
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_what_the_schema_admits_is_never_a_server_error(case: Any, serving: Serving, admin: str) -> None:
    headers = {"Authorization": f"Bearer {admin}"}
    answer = case.call(base_url=serving.url, headers=headers, timeout=60)
    assert answer.status_code < 500, answer.text
    case.validate_response(answer, checks=TRUE_TO_THE_DOCUMENT)


@WHOLE.include(path=DOCTOR).parametrize()
@settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_doctor_is_asked_as_the_schema_admits(case: Any, serving: Serving, admin: str) -> None:
    answer = case.call(base_url=serving.url, headers={"Authorization": f"Bearer {admin}"}, timeout=120)
    assert answer.status_code < 500, answer.text
    case.validate_response(answer, checks=TRUE_TO_THE_DOCUMENT)


@WHOLE.include(path=EVENTS).parametrize()
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_events_are_asked_for_as_the_schema_admits(case: Any, serving: Serving, admin: str) -> None:
    """What comes of it never ends: its beginning is looked at."""
    wish = case.as_transport_kwargs(base_url=serving.url, headers={"Authorization": f"Bearer {admin}"})
    with httpx.stream(
        wish["method"], wish["url"], params=wish.get("params"), headers=dict(wish["headers"]), timeout=60
    ) as answer:
        kinds = {200: "text/event-stream", 400: "application/problem+json", 405: "application/problem+json"}
        assert answer.headers["content-type"].split(";")[0] == kinds[answer.status_code]


def refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500])
    assert {"code", "cause", "remediation"} <= set(answer.json())
    assert len(answer.content) < 20_000, "it repeats what it was sent"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_name_is_refused_wherever_it_is_given(root: httpx.Client, kind: str) -> None:
    name = HOSTILE[kind]
    wishes: list[tuple[str, dict[str, object]]] = [
        ("/v1/tokens", {"name": name, "scope": "read"}),
        ("/v1/templates", {"name": name, "spec": SLEEP}),
        ("/v1/pools", {"name": name, "template": name}),
        ("/v1/claims", {"pool": name}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "user": name or "nobody-there"}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "workdir": f"nowhere{name}"}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "rootfs": f"/nowhere{name}"}}),
        ("/v1/sandboxes", {"spec": {"command": [f"/nowhere{name}"]}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "mounts": [{"source": f"/nowhere{name}", "target": "/mnt"}]}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "ready": f"nothing{name}"}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, "hooks": f"nothing{name}"}}),
        ("/v1/sandboxes", {"spec": {**SLEEP, name or "nothing": 1}}),
        ("/v1/snapshots/pull", {"snapshot": name, "url": f"nowhere:{name}"}),
        ("/v1/snapshots/push", {"snapshot": name, "url": f"nowhere:{name}"}),
    ]
    if name:  # an empty one asks for a name to be made up
        wishes.append(("/v1/sandboxes", {"spec": {**SLEEP, "name": name}}))
    if kind in {"nul", "inner nul", "much"}:
        wishes.append(("/v1/sandboxes", {"spec": {**SLEEP, "labels": {name: name}}}))
        wishes.append(("/v1/sandboxes", {"spec": {**SLEEP, "env": {name: name}}}))
    for path, wish in wishes:
        refused(root.post(path, json=wish))
    made(root.get("/healthz"), 200)


def ask(serving: Serving, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Ask with the path as it is: a client library would tidy it up first."""
    connection = http.client.HTTPConnection("node")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(str(serving.home / "serve.sock"))
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"content-length": str(len(body)), "content-type": "application/json", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(20_000)


def test_a_hostile_reference_leads_nowhere(root: httpx.Client, serving: Serving) -> None:
    routes = [route for route in routes_of(APP) if "{" in route.path]
    paths = sorted({(method, route.path) for route in routes for method in getattr(route, "methods", ())})
    for kind, name in HOSTILE.items():
        if kind == "much":
            continue
        shown = quote(name, safe="").replace(".", "%2E") or "%20"
        for method, path in paths:
            status, told = ask(serving, method, re.sub(r"\{\w+\}", shown, path), b"{}" if method != "GET" else b"")
            assert 400 <= status < 500, (method, path, kind, status, told)
    made(root.get("/healthz"), 200)


def test_a_path_of_ten_megabytes_is_refused(root: httpx.Client, serving: Serving) -> None:
    with contextlib.suppress(ConnectionError):  # it may hang up before all of it was said
        status, _ = ask(serving, "GET", f"/v1/sandboxes/{'x' * (10 << 20)}")
        assert 400 <= status < 500
    made(root.get("/healthz"), 200)


@pytest.mark.parametrize(
    "said",
    [
        b"GET /v1/snapshots/" + b"x" * (64 << 10), b"GET / HTTP/1.1\r\nHost: node\r\nX-Much: " + b"x" * (64 << 10),
        b"\x16\x03\x01 this is no request\r\n\r\n", b"GET / HTTP/1.1\r\nHost node\r\n\r\n", b"GET /\0 HTTP/1.1\r\n\r\n",
    ],
    ids=["address", "headers", "noise", "no header", "nul"],
)  # fmt: skip
def test_what_is_no_request_is_a_problem_too(root: httpx.Client, serving: Serving, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(serving.home / "serve.sock"))
        connection.sendall(said)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("content-type")) == (400, "application/problem+json")
        told = json.loads(answer.read())
        assert (told["status"], told["code"]) == (400, "invalid")
        assert "64 KiB" in told["remediation"]
        assert connection.recv(1) == b"", "the connection is left open"
    made(root.get("/healthz"), 200)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"spec": {"command": ["\\ud800"]}}', b"[" * 100_000,
        b'{"spec": {"command": ["x"], "memory": 1e999}}', b'{"spec": {"command": ["x"], "cpus": NaN}}',
        b'{"spec": {"command": ["x"], "memory": 99999999999999999999999}}', b'{"spec": null}',
        b'{"spec": {"command": "x"}}', b'{"spec": {"command": ["x"], "health": {"probe": "x", "more": 1}}}',
        b'{"spec": {"command": ["x"]}, "more": 1}', b'{"a": ' * 5000,
    ],
    ids=range(16),
)  # fmt: skip
def test_a_body_that_is_none_is_refused(root: httpx.Client, content: bytes) -> None:
    refused(root.post("/v1/sandboxes", content=content, headers={"Content-Type": "application/json"}))


def test_a_body_that_never_ends_is_refused(root: httpx.Client, serving: Serving) -> None:
    too_long = 33 << 20
    status, told = ask(serving, "POST", "/v1/sandboxes", b"{}", **{"content-length": str(1 << 40)})
    assert status == 413, told
    chunks = (b" " * (1 << 20) for _ in range(too_long >> 20))
    answer = serving.client().post("/v1/sandboxes", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["code"] == "invalid.too_large"
    answer = serving.client().put("/v1/sandboxes/files/supervision", content=b" " * too_long)  # no upload, by its name
    assert answer.status_code == 413, answer.text
    made(root.get("/healthz"), 200)
