"""Who may ask, and what: root over the node's own socket, tokens by their scope and within their limits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import ssl
import time
import uuid
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect
from websockets.typing import Origin

from certificates import Authority
from cli_process import Cli
from serving import NOT_AT_ALL, SLEEP, TINY, Listener, Serving, as_nobody, made, problem, token
from thawbox.api.access import is_open, scope_of
from thawbox.api.app import create_app, routes_of
from thawbox.api.service import Service

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

ROUTES = sorted(
    (method, route.path, scope_of(route))
    for route in routes_of(create_app(Service(None)))  # type: ignore[arg-type]  # nothing is asked of the node
    for method in getattr(route, "methods", ())
)
"""Every HTTP route with the scope that it demands."""


@pytest.fixture(scope="module")
def tokens(root: httpx.Client) -> dict[str, str]:
    return {scope: token(root, scope, scope) for scope in ("read", "use", "admin")}


@pytest.fixture(scope="module")
def callers(serving: Serving, tokens: dict[str, str]) -> dict[str, httpx.Client]:
    """A client over TCP for each scope, and one without a token."""
    found = {scope: serving.client(url=serving.url, token=text) for scope, text in tokens.items()}
    return {**found, "": serving.client(url=serving.url)}


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=str)
def test_a_route_answers_the_scope_that_it_demands_and_no_narrower(
    callers: dict[str, httpx.Client], method: str, path: str, scope: str
) -> None:
    url = re.sub(r"\{\w+\}", "main.js" if path.startswith("/dashboard/") else "nothing", path)
    if scope == "open":
        assert callers[""].request(method, url).status_code == 200
        return
    problem(callers[""].request(method, url), 401, "unauthenticated")
    for narrower in {"read": [], "use": ["read"], "admin": ["read", "use"]}[scope]:
        problem(callers[narrower].request(method, url), 403, "forbidden")


def test_open_paths_are_few(callers: dict[str, httpx.Client]) -> None:
    assert {path for _, path, scope in ROUTES if scope == "open" and not path.startswith("/dashboard")} <= {
        "/", "/healthz", "/readyz", "/favicon.ico",
    }  # fmt: skip
    assert not is_open("/v1/sandboxes")
    problem(callers[""].get("/openapi.json"), 401, "unauthenticated")
    problem(callers[""].get("/v1/nothing"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer tbx_", "Basic cm9vdDo=", f"Bearer tbx_{'0' * 12}_{'A' * 43}", "Bearer " + "x" * 5000],
)
def test_what_is_no_token_of_ours_opens_nothing(serving: Serving, header: str) -> None:
    client = serving.client(url=serving.url)
    answer = client.get("/v1/sandboxes", headers={"Authorization": header})
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_right_id_with_another_secret_opens_nothing(serving: Serving, tokens: dict[str, str]) -> None:
    other = tokens["read"][:-2] + ("AA" if tokens["read"][-2:] != "AA" else "BB")
    problem(serving.client(url=serving.url, token=other).get("/v1/node"), 401, "unauthenticated")


def test_a_removed_or_expired_token_opens_nothing_from_then_on(root: httpx.Client, serving: Serving) -> None:
    cli = Cli(serving.home)
    name = f"gone-{uuid.uuid4().hex[:8]}"
    created = cli("token", "create", "--name", name, "--scope", "read", "--json").json()
    client = serving.client(url=serving.url, token=created["token"])
    made(client.get("/v1/node"), 200)
    assert cli("token", "rm", name, "--json").json() == {"id": created["id"], "name": name}
    problem(client.get("/v1/node"), 401, "unauthenticated")
    short = made(root.post("/v1/tokens", json={"name": f"{name}-short", "scope": "read", "ttl": 0.001}))
    deadline = time.time() + 60
    while time.time() < deadline:  # it is over in a millisecond, by the wall clock
        if serving.client(url=serving.url, token=short["token"]).get("/v1/node").status_code == 401:
            break
    problem(serving.client(url=serving.url, token=short["token"]).get("/v1/node"), 401, "unauthenticated")


def test_no_secret_is_kept_anywhere(root: httpx.Client, serving: Serving) -> None:
    text = token(root, f"kept-{uuid.uuid4().hex[:8]}", "read")
    secret = text.rpartition("_")[2] if text.count("_") == 2 else text.split("_", 2)[2]
    for file in serving.home.glob("service.db*"):
        assert secret.encode() not in file.read_bytes()
    listed = made(root.get("/v1/tokens"), 200)["tokens"]
    assert all("token" not in one and "digest" not in one for one in listed)
    mode = (serving.home / "service.db").stat().st_mode & 0o777
    assert mode == 0o600


def test_a_token_over_the_unix_socket_narrows_root(serving: Serving, tokens: dict[str, str]) -> None:
    problem(serving.client(token=tokens["read"]).post("/v1/sandboxes", json={"spec": SLEEP}), 403, "forbidden")


def test_only_root_may_ask_over_the_unix_socket_whatever_its_mode(serving: Serving) -> None:
    socket = serving.home / "serve.sock"
    assert socket.stat().st_mode & 0o777 == 0o600

    def ask() -> int:
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket.name)) as client:
            return 0 if client.get("http://node/v1/node").status_code == 401 else 1

    assert as_nobody(ask, directory=serving.home) == NOT_AT_ALL
    serving.home.chmod(0o711)
    try:
        assert as_nobody(ask, directory=serving.home) == NOT_AT_ALL  # it cannot connect
        socket.chmod(0o666)
        assert as_nobody(ask, directory=serving.home) == 0
    finally:
        socket.chmod(0o600)
        serving.home.chmod(0o700)


@pytest.mark.parametrize(
    "wish",
    [
        {"mounts": [{"source": "/etc", "target": "/mnt"}]},
        {"rootfs": "/"},
        {"net": "nat", "publish": [{"host_port": 0, "port": 80}]},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_a_spec_that_reaches_into_the_host_is_an_admins(callers: dict[str, httpx.Client], wish: object) -> None:
    assert isinstance(wish, dict)
    problem(callers["use"].post("/v1/sandboxes", json={"spec": {**SLEEP, **wish}}), 403, "forbidden")
    problem(callers["use"].post("/v1/templates", json={"name": "t", "spec": {**SLEEP, **wish}}), 403, "forbidden")


def test_what_one_token_made_another_cannot_remove(root: httpx.Client, serving: Serving) -> None:
    mine = serving.client(url=serving.url, token=token(root, f"mine-{uuid.uuid4().hex[:6]}", "use"))
    other = serving.client(url=serving.url, token=token(root, f"other-{uuid.uuid4().hex[:6]}", "use"))
    sandbox = made(mine.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    snapshot = made(mine.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    problem(other.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 403, "forbidden")
    problem(other.delete(f"/v1/snapshots/{snapshot}"), 403, "forbidden")
    problem(other.patch(f"/v1/snapshots/{snapshot}", json={"pinned": True}), 403, "forbidden")
    problem(mine.delete(f"/v1/snapshots/{snapshot}", params={"cascade": "true"}), 403, "forbidden")
    made(mine.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 204)
    made(mine.delete(f"/v1/snapshots/{snapshot}"), 200)


def test_no_token_takes_a_name_or_a_snapshot_that_is_anothers(root: httpx.Client, serving: Serving) -> None:
    name = f"name-{uuid.uuid4().hex[:6]}"
    mine = serving.client(url=serving.url, token=token(root, f"{name}-mine", "use"))
    other = serving.client(url=serving.url, token=token(root, f"{name}-other", "use"))
    sandbox = made(mine.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    base = made(mine.post(f"/v1/sandboxes/{sandbox}/checkpoint", json={"name": name}))["id"]
    delta = made(mine.post(f"/v1/sandboxes/{sandbox}/checkpoint", json={"mode": "delta"}))["id"]
    problem(other.post(f"/v1/sandboxes/{sandbox}/checkpoint", json={"name": name}), 403, "forbidden")
    theirs = made(other.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    problem(other.patch(f"/v1/snapshots/{theirs}", json={"add_names": [name]}), 403, "forbidden")
    problem(other.post(f"/v1/snapshots/{delta}/flatten", json={"name": name}), 403, "forbidden")
    assert made(other.get(f"/v1/snapshots/{name}"), 200)["id"] == base
    whole = made(mine.post(f"/v1/snapshots/{delta}/flatten"), 200)["id"]
    assert made(other.post(f"/v1/snapshots/{delta}/flatten"), 200)["id"] == whole  # it was there
    problem(other.delete(f"/v1/snapshots/{whole}"), 403, "forbidden")
    made(mine.patch(f"/v1/snapshots/{delta}", json={"add_names": [name]}), 200)  # from one of mine to another
    made(root.delete(f"/v1/snapshots/{base}", params={"cascade": "true"}), 200)
    made(root.delete(f"/v1/snapshots/{whole}"), 200)
    made(root.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 204)


def test_of_what_is_gone_no_owner_is_remembered(root: httpx.Client, serving: Serving) -> None:
    name = f"gone-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/templates", json={"name": name, "spec": TINY}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 0, "high": 1, "limit": 2}))
    mine = serving.client(url=serving.url, token=token(root, f"{name}-mine", "use"))
    claim = made(mine.post("/v1/claims", json={"pool": name}))
    sandbox = made(mine.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    snapshot = made(mine.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    ids = {claim["sandbox"]["id"], sandbox, snapshot}
    assert owned(serving.home) >= ids
    made(mine.delete(f"/v1/claims/{claim['id']}"), 204)
    made(root.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/snapshots/{snapshot}"), 200)
    assert not owned(serving.home) & ids
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)


def owned(home: Path) -> set[str]:
    """Everything of which the service remembers who made it."""
    with contextlib.closing(sqlite3.connect(home / "service.db")) as book:
        return {str(one) for (one,) in book.execute("SELECT id FROM owners")}


def test_a_lease_is_renewed_and_released_by_whom_it_was_given_to(root: httpx.Client, serving: Serving) -> None:
    name = f"own-{uuid.uuid4().hex[:6]}"
    made(root.post("/v1/templates", json={"name": name, "spec": TINY}))
    made(root.post("/v1/pools", json={"name": name, "template": name, "low": 0, "high": 1, "limit": 2}))
    mine = serving.client(url=serving.url, token=token(root, f"{name}-mine", "use", sandboxes=1))
    other = serving.client(url=serving.url, token=token(root, f"{name}-other", "use"))
    claim = made(mine.post("/v1/claims", json={"pool": name}))["id"]
    problem(other.delete(f"/v1/claims/{claim}"), 403, "forbidden")
    problem(other.patch(f"/v1/pools/{name}/leases/{claim}", json={"ttl": 9}), 403, "forbidden")
    problem(mine.post("/v1/claims", json={"pool": name}), 429, "unavailable.limit")
    made(mine.delete(f"/v1/claims/{claim}"), 204)
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)
    made(root.delete(f"/v1/templates/{name}"), 204)


def test_the_snapshots_that_supervision_takes_count_for_whoever_made_the_sandbox(
    root: httpx.Client, serving: Serving
) -> None:
    name = f"watched-{uuid.uuid4().hex[:6]}"
    limited = token(root, name, "use", snapshot_bytes=1)
    client = serving.client(url=serving.url, token=limited)
    listener = Listener(serving.client(), kinds="snapshot.")
    ticking = ["sh", "-c", "while :; do date +%s%N >/tmp/now; sleep 0.05; done"]
    made(client.post("/v1/sandboxes", json={"spec": {"command": ticking, "name": name}}))
    wish = {"checkpoint_every": 0.2, "keep": 1000}
    made(client.put(f"/v1/sandboxes/{name}/supervision", json=wish), 200)
    told = listener.wait_for("snapshot.refused", name)
    assert "bytes of snapshots" in told.content["why"]
    taken = made(root.get("/v1/snapshots", params={"sandbox": name}), 200)["snapshots"]
    owners = {one["name"]: one["id"] for one in made(root.get("/v1/tokens"), 200)["tokens"]}
    assert [one["owner"] for one in taken] == [owners[name]]
    problem(client.post(f"/v1/sandboxes/{name}/checkpoint"), 429, "unavailable.limit")
    made(client.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)
    made(client.delete(f"/v1/snapshots/{taken[0]['id']}"), 200)


def test_no_token_has_more_than_its_limits(root: httpx.Client, serving: Serving) -> None:
    limited = token(root, f"limited-{uuid.uuid4().hex[:6]}", "use", sandboxes=3, memory=256 << 20, snapshot_bytes=1)
    client = serving.client(url=serving.url, token=limited)
    problem(client.post("/v1/sandboxes", json={"spec": SLEEP}), 400, "invalid.spec")  # its memory must be limited
    spec = {**SLEEP, "memory": 96 << 20}
    one = made(client.post("/v1/sandboxes", json={"spec": spec}))["id"]
    two = made(client.post("/v1/sandboxes", json={"spec": spec}))["id"]
    problem(client.post("/v1/sandboxes", json={"spec": spec}), 429, "unavailable.limit")  # of memory
    snapshot = made(client.post(f"/v1/sandboxes/{one}/checkpoint"))["id"]
    problem(client.post(f"/v1/sandboxes/{one}/checkpoint"), 429, "unavailable.limit")
    problem(client.post(f"/v1/snapshots/{snapshot}/clone", json={"count": 2}), 429, "unavailable.limit")
    made(client.delete(f"/v1/sandboxes/{two}", params={"force": "true"}), 204)
    small = {**SLEEP, "memory": 16 << 20}
    more = [made(client.post("/v1/sandboxes", json={"spec": small}))["id"] for _ in range(2)]
    problem(client.post("/v1/sandboxes", json={"spec": small}), 429, "unavailable.limit")  # of sandboxes
    for sandbox in more:
        made(client.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 204)
    made(client.delete(f"/v1/sandboxes/{one}", params={"force": "true"}), 204)
    back = made(client.post(f"/v1/snapshots/{snapshot}/restore"))["id"]  # counts as the caller's, though it was removed
    assert back == one
    more = [made(client.post("/v1/sandboxes", json={"spec": small}))["id"] for _ in range(2)]
    problem(client.post("/v1/sandboxes", json={"spec": small}), 429, "unavailable.limit")
    made(client.delete(f"/v1/snapshots/{snapshot}"), 200)
    for sandbox in (one, *more):
        made(client.delete(f"/v1/sandboxes/{sandbox}", params={"force": "true"}), 204)


def test_over_tls_it_answers_who_trusts_its_certificate(home: Path, tmp_path: Path) -> None:
    authority = Authority()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, text in zip((cert, key), authority.issue(), strict=True):
        path.write_text(text)
    options = ("--host", "localhost", "--port", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    serving = Serving(home, options).start()
    try:
        text = token(serving.client(), "outside", "read")
        assert serving.url is not None
        assert serving.url.startswith("https://")
        port = serving.url.rpartition(":")[2]
        url = f"https://localhost:{port}"
        trusting = serving.client(url=url, token=text, verify=ssl.create_default_context(cadata=authority.certificate))
        assert made(trusting.get("/v1/node"), 200)["home"] == str(home)
        with pytest.raises(httpx.ConnectError):
            serving.client(url=url, token=text).get("/v1/node")
    finally:
        serving.close()


def test_a_token_given_in_a_file_opens_everything_until_a_start_with_another_and_is_kept_nowhere(
    home: Path, tmp_path: Path
) -> None:
    given = tmp_path / "token"
    serving = Serving(home, ("--port", "0", "--token-file", str(given)))
    first, second = "a" * 64, "b" * 64
    try:
        for text, other in ((first, second), (second, first)):
            given.write_text(text + "\n")
            serving.start()
            client = serving.client(url=serving.url, token=text)
            assert made(client.get("/v1/tokens"), 200)["tokens"] == []  # an admin's to see, and it is none of them
            made(client.post("/v1/tokens", json={"name": text[:8], "scope": "read"}))
            assert made(client.delete(f"/v1/tokens/{text[:8]}"), 204) is None
            problem(serving.client(url=serving.url, token=other).get("/v1/node"), 401, "unauthenticated")
            serving.end()
            assert not any(text.encode() in file.read_bytes() for file in home.glob("service.db*"))
    finally:
        serving.close()


@pytest.mark.parametrize(
    "content", [None, "", "short", "a" * 32 + " " + "b" * 32], ids=["none", "empty", "short", "two"]
)
def test_a_token_file_without_one_good_token_is_refused(home: Path, tmp_path: Path, content: str | None) -> None:
    given = tmp_path / "token"
    if content is not None:
        given.write_text(content)
    assert Cli(home)("serve", "--port", "0", "--token-file", str(given), "--json").error()["code"] == "invalid"


def test_what_cannot_be_listened_on_is_said_so(home: Path, tmp_path: Path) -> None:
    cli = Cli(home)
    cert = tmp_path / "cert.pem"
    cert.write_text(Authority().certificate)
    assert cli("serve", "--tls-cert", str(cert), "--json").error()["code"] == "invalid"
    assert cli("serve", "--port", "0", "--host", "192.0.2.1", "--json").error()["code"] == "invalid"
    assert not sqlite3.connect(home / "journal.db").execute("SELECT * FROM sandboxes").fetchall()


# A browser's requests


TERMINAL = "ws://node/v1/sandboxes/nothing/terminal"
ELSEWHERE = ["https://evil.example", "http://127.0.0.1:1", "null", "file://", "http://node.evil.example", "http://["]


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_a_page_of_elsewhere_changes_nothing_and_reaches_no_terminal(
    root: httpx.Client, callers: dict[str, httpx.Client], serving: Serving, origin: str
) -> None:
    name = f"foreign-{uuid.uuid4().hex[:8]}"
    wish = {"spec": {**SLEEP, "name": name}}
    for client in (root, callers["admin"]):
        problem(client.post("/v1/sandboxes", json=wish, headers={"Origin": origin}), 403, "forbidden")
        problem(client.delete("/v1/sandboxes/nothing", headers={"Origin": origin}), 403, "forbidden")
    problem(root.get(f"/v1/sandboxes/{name}"), 404, "not_found.sandbox")
    with pytest.raises(InvalidStatus) as refusal:
        unix_connect(
            str(serving.home / "serve.sock"), uri="ws://node/v1/sandboxes/nothing/terminal", origin=Origin(origin)
        )
    assert refusal.value.response.status_code == 403
    audited = [json.loads(line) for line in (serving.home / "audit.log").read_text().splitlines()[-5:]]
    assert {(one["what"], one["outcome"]) for one in audited} >= {
        ("POST /v1/sandboxes", "forbidden"), ("DELETE /v1/sandboxes/{ref}", "forbidden"),
        ("WS /v1/sandboxes/{ref}/terminal", "forbidden"),
    }  # fmt: skip


def test_a_page_of_the_node_may_ask(root: httpx.Client, callers: dict[str, httpx.Client], serving: Serving) -> None:
    assert serving.url is not None
    own = serving.url.rstrip("/")
    for client, origin in ((root, "http://node"), (root, "HTTPS://NODE"), (callers["admin"], own)):
        problem(client.delete("/v1/sandboxes/nothing", headers={"Origin": origin}), 404, "not_found.sandbox")
    for place in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080", "thawbox.localhost", "NODE"):
        headers = {"Host": place, "Origin": f"http://{place}"}
        problem(root.delete("/v1/sandboxes/nothing", headers=headers), 404, "not_found.sandbox")
    with unix_connect(str(serving.home / "serve.sock"), uri=TERMINAL, origin=Origin("http://node")) as terminal:
        terminal.send(json.dumps({"argv": ["true"]}))
        assert json.loads(terminal.recv(60))["error"]["code"] == "not_found.sandbox"


@pytest.mark.parametrize("host", ["rebound.evil.example", "rebound.evil.example:8080", "1.evil", "[::1", ".", ""])
def test_a_name_that_a_foreign_page_could_have_needs_a_token(
    root: httpx.Client, callers: dict[str, httpx.Client], host: str
) -> None:
    if not host:
        assert root.get("/v1/node", headers={"Host": host}).status_code == 200  # no browser asks so
        return
    problem(root.get("/v1/node", headers={"Host": host}), 403, "forbidden")
    assert root.get("/healthz", headers={"Host": host}).status_code == 200
    if "[" not in host:
        made(callers["read"].get("/v1/node", headers={"Host": host}), 200)
