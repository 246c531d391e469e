"""What an operator sees of a served node: metrics, traces, logs, the audit log; and what nobody may see there."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli_process import Cli
from otlp_receiver import Receiver
from thawbox.api.node_metrics import NAMES
from thawbox.cli.served import _open_socket as open_socket
from thawbox.node import Node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Service:
    """A `thawbox serve` that sends traces, and is asked over its socket."""

    def __init__(self, home: Path, endpoint: str, log: Path, stack: ExitStack) -> None:
        self.home = home
        self.log = log
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "THAWBOX_LOG_FORMAT": "json", "THAWBOX_LOG_LEVEL": "debug"}
        self.cli = Cli(home, tuple(settings.items()))
        self.process = self.cli.start(
            "serve",
            "--json",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(log.open("wb")),
        )
        stack.callback(self.end)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["socket"]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("node")
        connection.sock = open_socket(self.home)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **named})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()

    def samples(self) -> dict[tuple[str, str], float]:
        """Every sample of a scrape, by name and labels."""
        text = self.ask("GET", "/metrics").content.decode()
        return {(name, labels): float(value) for name, labels, value in SAMPLE.findall(text)}

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / "audit.log").read_text().splitlines()]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def service(node: Node, home: Path, receiver: Receiver, tmp_path: Path) -> Iterator[Service]:
    """`node` cleans up after it."""
    assert node.settings.home == home
    with ExitStack() as stack:
        yield Service(home, receiver.endpoint, tmp_path / "serve.log", stack)


def run(service: Service, name: str, *command: str) -> Any:
    made = service.ask("POST", "/v1/sandboxes", {"spec": {"name": name, "command": command or ["sleep", "1000"]}})
    assert made.status == 201, made
    return made.json()


def test_a_scrape_tells_what_the_node_has_and_what_it_did(service: Service) -> None:
    run(service, "one")
    assert service.ask("POST", "/v1/sandboxes/one/checkpoint", {"name": "warm"}).status == 201
    assert service.ask("POST", "/v1/snapshots/warm/clone", {"count": 2}).status == 201
    assert service.ask("POST", "/v1/sandboxes/nothing/checkpoint", {}).status == 404
    found = service.samples()
    assert {name.removesuffix("_created") for name, _ in found} >= set(NAMES) - {
        "thawbox_pool_clones", "thawbox_pool_mark", "thawbox_pool_waiting", "thawbox_pool_events_total",
    }  # fmt: skip
    assert found["thawbox_sandboxes", 'state="running"'] == 3
    assert found["thawbox_snapshots", 'kind="full"'] == 1
    assert found["thawbox_dump_frozen_seconds_count", ""] == 1
    assert found["thawbox_checkpoint_seconds_count", ""] == 1
    assert found["thawbox_restore_seconds_count", 'kind="clone"'] == 2
    assert found["thawbox_snapshot_written_bytes_total", 'kind="full"'] == found["thawbox_store_bytes", ""] > 0
    assert found["thawbox_sandbox_memory_bytes", 'kind="private",pool=""'] > 0
    route = 'method="POST",route="/v1/sandboxes/{ref}/checkpoint",status="201"'
    assert found["thawbox_http_request_seconds_count", route] == 1
    assert found["thawbox_step_seconds_count", 'step="criu.on-post-dump"'] == 1
    assert not {labels for _, labels in found if "sb-" in labels}, "an id is a label"


def test_pools_are_gauges_and_an_acquire_is_in_its_histogram(service: Service) -> None:
    spec = {"name": "t", "spec": {"command": ["sleep", "1000"]}}
    assert service.ask("POST", "/v1/templates", spec).status == 201
    assert service.ask("POST", "/v1/pools", {"name": "p", "template": "t", "low": 1, "high": 1}).status == 201
    assert service.ask("POST", "/v1/pools/p/leases", {"timeout": 120}).status == 201
    found = service.samples()
    assert set(NAMES) <= {name for name, _ in found}
    assert found["thawbox_pool_clones", 'pool="p",state="leased"'] == 1
    assert found["thawbox_pool_mark", 'mark="limit",pool="p"'] == 16
    assert found["thawbox_pool_events_total", 'event="acquired",pool="p"'] == 1
    assert found["thawbox_acquire_seconds_count", 'pool="p"'] == 1
    assert service.ask("DELETE", "/v1/pools/p?force=true").status == 204
    assert service.ask("DELETE", "/v1/templates/t").status == 204


def test_a_trace_leads_from_the_callers_request_to_criu(service: Service, receiver: Receiver) -> None:
    run(service, "one")
    answer = service.ask("POST", "/v1/sandboxes/one/checkpoint", {}, traceparent=f"00-{TRACE}-{PARENT}-01")
    assert answer.status == 201
    spans = {span.name: span for span in receiver.spans_of(TRACE, until="http.request")}
    above = {name: span.parent_span_id.hex() for name, span in spans.items()}
    assert above["http.request"] == PARENT
    assert above["checkpoint"] == spans["http.request"].span_id.hex()
    assert above["engine.dump"] == spans["checkpoint"].span_id.hex()
    assert above["criu.until-post-dump"] == spans["engine.dump"].span_id.hex()
    told = {pair.key: pair.value for pair in spans["http.request"].attributes}
    assert told["http.route"].string_value == "/v1/sandboxes/{ref}/checkpoint"
    assert told["http.response.status_code"].int_value == 201


def test_each_fact_is_one_json_line_of_the_log(service: Service) -> None:
    made = run(service, "one")
    assert service.ask("POST", "/v1/sandboxes/one/freeze").status == 200
    assert service.ask("POST", "/v1/sandboxes/one/restore").status == 404
    service.end()
    events = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [one["sandbox"] for one in events if one["event"] == "run.complete"] == [made["id"]]
    assert [one["sandbox"] for one in events if one["event"] == "freeze.complete"] == [made["id"]]
    assert all({"event", "level", "at"} <= set(one) for one in events)
    assert [one["level"] for one in events if one["event"] == "freeze.complete"] == ["info"]


def test_every_change_and_every_refusal_is_audited_with_who_what_and_outcome(service: Service) -> None:
    token = service.ask("POST", "/v1/tokens", {"name": "looker", "scope": "read"}).json()
    run(service, "one")
    as_reader = {"Authorization": f"Bearer {token['token']}"}
    assert service.ask("GET", "/v1/sandboxes", **as_reader).status == 200
    assert service.ask("POST", "/v1/sandboxes/one/freeze", **as_reader).status == 403
    assert service.ask("GET", "/v1/sandboxes", Authorization="Bearer tbx_000000000000_wrong").status == 401
    assert service.ask("POST", "/v1/sandboxes/no%20name/freeze").status == 404
    assert service.ask("DELETE", "/v1/sandboxes/one").status == 409
    wish = {"name": "poor", "scope": "use", "limits": {"sandboxes": 0}}
    as_poor = {"Authorization": f"Bearer {service.ask('POST', '/v1/tokens', wish).json()['token']}"}
    spec = {"command": ["sleep", "1000"]}
    assert service.ask("POST", "/v1/sandboxes", {"spec": spec}, **as_poor).status == 429
    told = [(one["who"], one["what"], one["subject"], one["outcome"], one["status"]) for one in service.audited()]
    assert told == [
        ("local", "POST /v1/tokens", {}, "ok", 201),
        ("local", "POST /v1/sandboxes", {}, "ok", 201),
        ("looker", "POST /v1/sandboxes/{ref}/freeze", {"ref": "one"}, "forbidden", 403),
        ("", "GET /v1/sandboxes", {}, "unauthenticated", 401),
        ("local", "POST /v1/sandboxes/{ref}/freeze", {"ref": "(no name)"}, "not_found.sandbox", 404),
        ("local", "DELETE /v1/sandboxes/{ref}", {"ref": "one"}, "invalid.transition", 409),
        ("local", "POST /v1/tokens", {}, "ok", 201),
        ("poor", "POST /v1/sandboxes", {}, "unavailable.limit", 429),
    ]
    assert [one["token"] for one in service.audited()][2] == token["id"]


SECRET = "hunter2-" + os.urandom(8).hex()
"""Stands for what nobody may find anywhere but where it was sent."""


def holders_of(home: Path, secret: str) -> list[str]:
    """Files below the home that hold the secret in plain, base64 or hex; not what is in sandboxes and snapshots."""
    forms = [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), secret.encode().hex().encode()]
    found: list[str] = []
    for path in home.rglob("*"):
        inside = path.relative_to(home).parts[0] in ("sandboxes", "store", "rootfs")
        if not inside and path.is_file() and any(form in path.read_bytes() for form in forms):
            found.append(str(path.relative_to(home)))
    return found


def test_no_secret_is_in_any_log_trace_metric_or_database(service: Service, receiver: Receiver, home: Path) -> None:
    as_base64 = base64.b64encode(SECRET.encode()).decode()
    run(service, "one", "sleep", "1000")
    assert service.ask("POST", "/v1/sandboxes/one/checkpoint", {"name": "warm"}).status == 201
    given = {"secrets": {"key": as_base64}, "environment": {"KEY": SECRET}}
    for key in ("", "once"):  # the answer to an idempotency key is kept
        also = {"Idempotency_Key": key} if key else {}
        service.ask("POST", "/v1/snapshots/warm/clone", given, **also)
        service.ask("POST", "/v1/sandboxes/one/give", given, **also)
        service.ask("POST", "/v1/sandboxes/one/exec", {"argv": ["true", SECRET], "env": {"KEY": SECRET}}, **also)
        service.ask("POST", "/v1/sandboxes/one/code", {"code": f"{SECRET!r}"}, **also)
        service.ask("POST", "/v1/sandboxes", {"spec": {"command": ["x"], "env": {"K": SECRET + "\ud800"}}}, **also)
        service.ask("POST", "/v1/sandboxes", {"spec": {"command": [], "env": {"KEY": SECRET}}}, **also)
        service.ask("POST", f"/v1/sandboxes/{SECRET}/freeze", **also)
        service.ask("POST", f"/v1/{SECRET}?key={SECRET}", SECRET, **also)
    service.ask("PUT", f"/v1/sandboxes/one/files?path=/tmp/{SECRET}", SECRET)
    service.ask("GET", f"/v1/sandboxes/one/files?path=/tmp/{SECRET}")
    service.ask("GET", "/v1/sandboxes", Authorization=f"Bearer {SECRET}")
    service.cli("clone", "warm", "--secret", f"key={_file_of(home, SECRET)}", "-e", f"KEY={SECRET}")
    token = service.ask("POST", "/v1/tokens", {"name": "ci", "scope": "use"}, Idempotency_Key="t").json()["token"]
    service.ask("GET", "/v1/sandboxes", Authorization=f"Bearer {token}")
    metrics = service.ask("GET", "/metrics").content
    service.end()
    log = service.log.read_bytes()
    traces = b"".join(receiver.everything())
    assert b"clone" in log
    assert b"http.request" in traces
    for secret in (SECRET, as_base64, token, token.rpartition("_")[2]):
        assert holders_of(home, secret) == []
        for told in (log, metrics, traces):
            assert secret.encode() not in told


def _file_of(home: Path, secret: str) -> Path:
    path = home.parent / "secret"
    path.write_text(secret)
    return path
