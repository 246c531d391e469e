"""Every resource lives its life over HTTP, and says what the command line says."""

from __future__ import annotations

import base64
import os
import uuid
from pathlib import Path

import httpx
import pytest

from cli_process import Cli
from service import wait_for
from serving import SLEEP, TINY, Listener, Serving, made, problem, sse
from thawbox.config import load_settings
from thawbox.model import Phase
from thawbox.node import Node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

PRINTING = {"command": ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"], "ready": "log:out"}


def unique(beginning: str) -> str:
    return f"{beginning}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def template(root: httpx.Client) -> str:
    made(root.post("/v1/templates", json={"name": "tiny", "spec": TINY}))
    return "tiny"


def test_a_sandbox_lives_its_life(root: httpx.Client, serving: Serving) -> None:
    name = unique("life")
    spec = {**PRINTING, "name": name, "labels": {"purpose": "test"}, "memory": 256 << 20}
    begun = made(root.post("/v1/sandboxes", json={"spec": spec}))
    assert set(begun) == {"id", "name", "state", "create_ms"}
    assert (begun["name"], begun["state"]) == (name, "running")
    listed = made(root.get("/v1/sandboxes", params={"label": "purpose=test"}), 200)["sandboxes"]
    assert [one["id"] for one in listed] == [begun["id"]]
    assert listed[0]["memory"] > 0
    assert (listed[0]["owner"], listed[0]["pool"]) == (None, None)
    shown = made(root.get(f"/v1/sandboxes/{begun['id'][:9]}"), 200)
    told = Cli(serving.home)("inspect", name, "--json").json()
    assert told == {key: shown[key] for key in told}
    assert shown["spec"]["labels"] == {"purpose": "test"}
    assert made(root.get(f"/v1/sandboxes/{name}/stats"), 200)["memory_limit"] == 256 << 20
    assert made(root.get(f"/v1/sandboxes/{name}/preflight"), 200) == {"ok": True, "findings": []}
    records = made(root.get(f"/v1/sandboxes/{name}/logs"), 200)["records"]
    assert {(one["stream"], one["text"]) for one in records} == {("stdout", "out\n"), ("stderr", "err\n")}
    later = made(root.get(f"/v1/sandboxes/{name}/logs", params={"after": records[0]["after"]}), 200)["records"]
    assert later == records[1:]
    assert made(root.post(f"/v1/sandboxes/{name}/freeze"), 200)["state"] == "frozen"
    assert made(root.post(f"/v1/sandboxes/{name}/thaw"), 200)["state"] == "running"
    problem(root.delete(f"/v1/sandboxes/{name}"), 409, "invalid.transition")
    assert made(root.post(f"/v1/sandboxes/{name}/stop", json={"timeout": 0}), 200)["state"] == "exited"
    assert name not in [one["name"] for one in made(root.get("/v1/sandboxes"), 200)["sandboxes"]]
    assert name in [one["name"] for one in made(root.get("/v1/sandboxes?all=true"), 200)["sandboxes"]]
    made(root.delete(f"/v1/sandboxes/{name}"), 204)
    problem(root.get(f"/v1/sandboxes/{name}"), 404, "not_found.sandbox")


def test_the_log_is_followed_to_the_end_of_the_sandbox(root: httpx.Client) -> None:
    name = unique("log")
    spec = {"command": ["sh", "-c", "echo one; read line; echo two"], "name": name, "ready": "log:one"}
    made(root.post("/v1/sandboxes", json={"spec": spec}))
    with root.stream("GET", f"/v1/sandboxes/{name}/logs", params={"follow": "true"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = list(sse(answer.iter_lines()))  # its stdin is empty: it ends by itself
    assert "".join(one.content["text"] for one in told if one.event == "log") == "one\ntwo\n"
    assert (told[-1].event, told[-1].content) == ("end", {"state": "exited"})
    made(root.delete(f"/v1/sandboxes/{name}"), 204)


def test_snapshots_are_made_named_cloned_restored_and_removed(root: httpx.Client, serving: Serving) -> None:
    name = unique("snap")
    sandbox = made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))
    wish = {"name": f"{name}-warm", "labels": {"kept": "yes"}, "ttl": 3600}
    first = made(root.post(f"/v1/sandboxes/{name}/checkpoint", json=wish))
    assert first["kind"] == "full"
    second = made(root.post(f"/v1/sandboxes/{name}/checkpoint"))
    assert (second["kind"], second["parent"]) == ("delta", first["id"])
    listed = made(root.get("/v1/snapshots", params={"sandbox": name}), 200)["snapshots"]
    assert [(one["id"], one["chain_length"], one["sandbox_name"]) for one in listed] == [
        (first["id"], 1, name), (second["id"], 2, name),
    ]  # fmt: skip
    assert [one["id"] for one in made(root.get("/v1/snapshots?label=kept=yes"), 200)["snapshots"]] == [first["id"]]
    shown = made(root.get(f"/v1/snapshots/{name}-warm"), 200)
    told = Cli(serving.home)("snapshots", "show", f"{name}-warm", "--json").json()
    assert told == {key: shown[key] for key in told}
    chain = made(root.get(f"/v1/snapshots/{second['id']}/chain"), 200)["chain"]
    assert [one["id"] for one in chain] == [first["id"], second["id"]]
    change = {"add_names": [f"{name}-hot"], "remove_names": [f"{name}-warm"], "labels": {"kept": None, "new": "1"},
              "pinned": True, "ttl": None}  # fmt: skip
    changed = made(root.patch(f"/v1/snapshots/{first['id']}", json=change), 200)
    assert (changed["names"], changed["labels"], changed["pinned"], changed["expires_at"]) == (
        [f"{name}-hot"], {"new": "1"}, True, None,
    )  # fmt: skip
    assert made(root.post(f"/v1/snapshots/{second['id']}/verify", json={"deep": True}), 200) == {
        "ok": True, "problems": [],
    }  # fmt: skip
    flat = made(root.post(f"/v1/snapshots/{second['id']}/flatten", json={"name": f"{name}-flat"}), 200)
    assert (flat["kind"], flat["parent"]) == ("full", None)
    clones = made(root.post(f"/v1/snapshots/{second['id']}/clone", json={"count": 2, "name": f"{name}-c"}))["sandboxes"]
    assert [one["name"] for one in clones] == [f"{name}-c-1", f"{name}-c-2"]
    forked = made(root.post(f"/v1/sandboxes/{name}/fork", json={"count": 1}))
    assert set(forked["sandboxes"][0]) == {"id", "name", "restore_ms", "ready_ms"}
    problem(root.post(f"/v1/snapshots/{second['id']}/restore"), 409, "invalid.transition")
    made(root.post(f"/v1/sandboxes/{name}/checkpoint", json={"stop": True, "name": f"{name}-last"}))
    back = made(root.post(f"/v1/snapshots/{name}-last/restore", json={}))
    assert back["id"] == sandbox["id"]
    for one in (*clones, *forked["sandboxes"], back):
        made(root.delete(f"/v1/sandboxes/{one['id']}", params={"force": "true"}), 204)
    problem(root.delete(f"/v1/snapshots/{first['id']}"), 400, "invalid")
    made(root.patch(f"/v1/snapshots/{first['id']}", json={"pinned": False}), 200)
    removed = made(root.delete(f"/v1/snapshots/{first['id']}", params={"cascade": "true"}), 200)["removed"]
    assert {first["id"], second["id"]} <= set(removed)
    collected = made(root.post("/v1/snapshots/gc", json={"dry_run": True}), 200)
    assert collected["dry_run"] is True


def test_a_snapshot_travels_to_a_remote_store_and_back(root: httpx.Client, tmp_path: Path) -> None:
    name = unique("travel")
    made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))
    snapshot = made(root.post(f"/v1/sandboxes/{name}/checkpoint", json={"stop": True}))["id"]
    made(root.delete(f"/v1/sandboxes/{name}"), 204)
    url = f"file://{tmp_path}"
    pushed = made(root.post("/v1/snapshots/push", json={"snapshot": snapshot, "url": url}), 200)
    assert pushed["snapshots"] == [snapshot]
    made(root.delete(f"/v1/snapshots/{snapshot}"), 200)
    pulled = made(root.post("/v1/snapshots/pull", json={"snapshot": snapshot, "url": url, "name": name}), 200)
    assert pulled["snapshots"] == [snapshot]
    assert made(root.get(f"/v1/snapshots/{name}"), 200)["id"] == snapshot


def test_templates_pools_leases_and_claims(root: httpx.Client, template: str, serving: Serving) -> None:
    assert made(root.get(f"/v1/templates/{template}"), 200)["spec"]["ready"] == "tcp:8000"
    assert [one["name"] for one in made(root.get("/v1/templates"), 200)["templates"]] == [template]
    pool = unique("pool")
    listener = Listener(serving.client(), kinds="pool.")
    created = made(root.post("/v1/pools", json={"name": pool, "template": template, "low": 1, "high": 2, "limit": 4}))
    assert created["open"] is True
    listener.wait_for("pool.created", pool)
    claim = made(root.post("/v1/claims", json={"pool": pool, "ttl": 600}))
    assert set(claim) == {"id", "state", "pool", "sandbox", "acquire_ms", "until"}
    told = listener.wait_for("pool.acquired", pool)
    assert told.content["sandbox"] == claim["sandbox"]
    assert [one["id"] for one in made(root.get("/v1/claims"), 200)["claims"]] == [claim["id"]]
    sandbox, new = claim["sandbox"]["id"], {"name": unique("golden")}
    for of_it in ({"sandbox": sandbox}, {"spec": TINY, "sandbox": sandbox}, {"spec": TINY, "claim": claim["id"]}):
        problem(root.post("/v1/templates", json={**new, **of_it}), 400, "invalid")
    longer = made(root.patch(f"/v1/claims/{claim['id']}", json={"ttl": 1200}), 200)
    assert longer["until"] > claim["until"]
    made(root.delete(f"/v1/claims/{claim['id']}"), 204)
    assert listener.wait_for("pool.released", pool).content["lease"] == claim["id"]
    problem(root.get(f"/v1/claims/{claim['id']}"), 404, "not_found")
    lease = made(root.post(f"/v1/pools/{pool}/leases", json={"timeout": 60}))
    made(root.patch(f"/v1/pools/{pool}/leases/{lease['lease']}", json={"ttl": 60}), 200)
    made(root.delete(f"/v1/pools/{pool}/leases/{lease['lease']}", params={"reset": "true"}), 204)
    made(root.post(f"/v1/templates/{template}/rebuild"), 200)
    made(root.post(f"/v1/pools/{pool}/roll", json={"timeout": 60}), 200)
    problem(root.delete(f"/v1/templates/{template}"), 400, "invalid")
    made(root.post(f"/v1/pools/{pool}/drain", json={"timeout": 0}), 200)
    listener.wait_for("pool.drained", pool)
    problem(root.post("/v1/claims", json={"pool": pool, "timeout": 0}), 404, "not_found")
    made(root.delete(f"/v1/pools/{pool}"), 204)
    listener.wait_for("pool.removed", pool)


def test_what_cannot_be_given_is_no_claim(root: httpx.Client, template: str) -> None:
    pool = unique("giving")
    made(root.post("/v1/pools", json={"name": pool, "template": template, "low": 0, "high": 1, "limit": 1}))
    given = {"pool": pool, "secrets": {"key": base64.b64encode(b"x").decode()}}
    problem(root.post("/v1/claims", json=given), 400, "invalid")  # nobody in it takes secrets
    problem(root.post("/v1/claims", json={**given, "secrets": {"key": "%"}}), 400, "invalid")
    made(root.post("/v1/claims", json={"pool": pool}))  # the limit is 1: what failed was given back
    made(root.delete(f"/v1/pools/{pool}", params={"force": "true"}), 204)


def test_supervision_brings_a_sandbox_back_and_it_is_told(root: httpx.Client, serving: Serving) -> None:
    name = unique("watched")
    listener = Listener(serving.client(), kinds="recovery.,sandbox.")
    sandbox = made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))
    watched = made(root.put(f"/v1/sandboxes/{name}/supervision", json={"restart": "on-failure", "keep": 2}), 200)
    assert (watched["state"], watched["policy"]["keep"]) == ("watching", 2)
    os.kill(made(root.get(f"/v1/sandboxes/{name}"), 200)["pid"], 9)
    done = listener.wait_for("recovery.done", sandbox["id"])
    listener.wait_for("recovery.started", sandbox["id"])
    recoveries = made(root.get("/v1/recoveries"), 200)["recoveries"]
    assert recoveries[0]["sandbox"] == {"id": sandbox["id"], "name": name}
    assert recoveries[0]["snapshot"] == done.content["snapshot"]
    made(root.delete(f"/v1/sandboxes/{name}/supervision"), 204)
    problem(root.get(f"/v1/sandboxes/{name}/supervision"), 404, "not_found.sandbox")
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


def test_the_node_says_how_it_is(root: httpx.Client) -> None:
    assert made(root.get("/healthz"), 200) == {"status": "ok"}
    assert made(root.get("/readyz"), 200) == {"status": "ready"}
    node = made(root.get("/v1/node"), 200)
    assert {"version", "home", "started_at", "uptime_s", "cpus", "memory", "disk", "sandboxes", "snapshots",
            "pools"} <= set(node)  # fmt: skip
    found = made(root.get("/v1/doctor"), 200)
    assert found["ok"] is True
    assert made(root.get("/v1/doctor"), 200)["at"] == found["at"]


def test_lists_come_in_pages_that_lose_and_double_nothing(root: httpx.Client) -> None:
    names = [unique("page") for _ in range(5)]
    for name in names:
        made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name, "labels": {"paged": "yes"}}}))
    seen: list[str] = []
    cursor = ""
    while True:
        query = {"limit": 2, "cursor": cursor, "label": "paged=yes"}
        page = made(root.get("/v1/sandboxes", params=query), 200)
        seen += [one["name"] for one in page["sandboxes"]]
        assert len(page["sandboxes"]) <= 2
        if page["next"] is None:
            break
        cursor = page["next"]
        if len(seen) == 2:  # what goes meanwhile disturbs no page
            made(root.delete(f"/v1/sandboxes/{names[0]}", params={"force": "true"}), 204)
    assert seen == names
    problem(root.get("/v1/sandboxes", params={"cursor": "///"}), 400, "invalid")
    problem(root.get("/v1/sandboxes", params={"limit": 1001}), 400, "invalid")
    for name in names[1:]:
        made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


@pytest.mark.parametrize("given", ["%", "a", "YQ", "ä", "YQ==="])
def test_input_that_is_not_base64_is_refused(root: httpx.Client, given: str) -> None:
    wish = {"argv": ["cat"], "stdin_base64": given}
    problem(root.post("/v1/sandboxes/nothing/exec", json=wish), 400, "invalid")
    problem(root.post("/v1/sandboxes/nothing/exec", json={**wish, "detach": True}), 400, "invalid")


def test_a_service_that_was_stopped_finds_its_parked_clones_again(home: Path) -> None:
    serving = Serving(home).start()
    try:
        root = serving.client()
        made(root.post("/v1/templates", json={"name": "small", "spec": SLEEP}))
        made(root.post("/v1/pools", json={"name": "small", "template": "small", "low": 3, "high": 3, "limit": 4}))
        wait_for(lambda: made(root.get("/v1/pools/small"), 200)["parked"] == 3, "three are parked")

        def parked() -> set[str]:
            with Node(load_settings(home=home)) as node:
                return {record.id for record in node.context.journal.all() if record.phase is Phase.FROZEN}

        before = parked()
        assert serving.end() == 0
        assert parked() == before
        root = serving.start().client()
        wait_for(lambda: made(root.get("/v1/pools/small"), 200)["parked"] == 3, "they are parked again")
        assert parked() == before
    finally:
        serving.close()
