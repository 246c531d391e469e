"""Long work: waited for, asked after, streamed, cancelled; done once however often it is asked for."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving import PATIENCE, SLEEP, Listener, Serving, made, problem, sse, token

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def sandbox(root: httpx.Client) -> str:
    return str(made(root.post("/v1/sandboxes", json={"spec": SLEEP}))["id"])


def names(root: httpx.Client) -> set[str]:
    return {one["name"] for one in made(root.get("/v1/sandboxes?all=true&limit=1000"), 200)["sandboxes"]}


def remove_all(root: httpx.Client) -> None:
    for name in names(root):
        made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


def test_who_would_rather_not_wait_is_given_an_operation(root: httpx.Client, serving: Serving) -> None:
    name = f"later-{uuid.uuid4().hex[:8]}"
    listener = Listener(serving.client(), kinds="operation.")
    answer = root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}, headers=ASYNC)
    begun = made(answer, 202)
    assert answer.headers["location"] == f"/v1/operations/{begun['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert begun["state"] in {"pending", "running"}
    done = made(root.get(answer.headers["location"], params={"wait": 60}), 200)
    assert (done["kind"], done["state"], done["error"]) == ("sandbox.run", "succeeded", None)
    assert done["result"]["name"] == name
    assert done["finished_at"] >= done["created_at"]
    listener.wait_for("operation.succeeded", begun["id"])
    assert begun["id"] in [one["id"] for one in made(root.get("/v1/operations"), 200)["operations"]]
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


def test_an_operation_that_failed_says_why_as_the_answer_would_have(root: httpx.Client) -> None:
    begun = made(root.post("/v1/sandboxes", json={"spec": {"command": ["/nothing"]}}, headers=ASYNC), 202)
    done = made(root.get(f"/v1/operations/{begun['id']}", params={"wait": 60}), 200)
    assert done["state"] == "failed"
    assert (done["error"]["code"], done["error"]["status"]) == ("engine.start", 422)


def test_what_an_operation_does_is_streamed_to_its_end(root: httpx.Client, sandbox: str) -> None:
    snapshot = made(root.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    begun = made(root.post(f"/v1/snapshots/{snapshot}/clone", json={"count": 4}, headers=ASYNC), 202)
    with root.stream("GET", f"/v1/operations/{begun['id']}/events") as answer:
        told = [one.content for one in sse(answer.iter_lines())]
    assert told[-1]["state"] == "succeeded"
    assert told[-1]["progress"] == {"done": 4, "total": 4, "what": "clones"}
    assert len(told[-1]["result"]["sandboxes"]) == 4
    remove_all(root)


def test_a_cancelled_clone_leaves_no_clone(root: httpx.Client, sandbox: str) -> None:
    snapshot = made(root.post(f"/v1/sandboxes/{sandbox}/checkpoint"))["id"]
    before = names(root)
    wish = {"count": 200, "eager": True}
    begun = made(root.post(f"/v1/snapshots/{snapshot}/clone", json=wish, headers=ASYNC), 202)
    with root.stream("GET", f"/v1/operations/{begun['id']}/events") as answer:
        for one in sse(answer.iter_lines()):
            if one.content["progress"] is not None:  # some are made: now nobody wants them any more
                made(root.delete(f"/v1/operations/{begun['id']}"), 200)
                break
    done = made(root.get(f"/v1/operations/{begun['id']}", params={"wait": PATIENCE}), 200)
    assert (done["state"], done["result"], done["error"]["code"]) == ("cancelled", None, "unavailable.cancelled")
    assert names(root) == before
    again = made(root.delete(f"/v1/operations/{begun['id']}"), 200)
    assert again == done
    remove_all(root)


def test_what_has_not_begun_is_cancelled_at_once(root: httpx.Client) -> None:
    blocked = {"command": ["sh", "-c", "sleep 1000"], "ready": "log:never", "ready_timeout": 6}
    first = [made(root.post("/v1/sandboxes", json={"spec": blocked}, headers=ASYNC), 202)["id"] for _ in range(8)]
    waiting = made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": "never-run"}}, headers=ASYNC), 202)["id"]
    cancelled = made(root.delete(f"/v1/operations/{waiting}"), 200)
    assert cancelled["state"] == "cancelled"
    for one in first:
        made(root.delete(f"/v1/operations/{one}"), 200)
    for one in first:
        assert made(root.get(f"/v1/operations/{one}", params={"wait": 60}), 200)["state"] in {"cancelled", "failed"}
    assert not names(root)


def test_another_token_cannot_cancel_it(root: httpx.Client, serving: Serving) -> None:
    mine = serving.client(token=token(root, f"a-{uuid.uuid4().hex[:6]}", "use"))
    other = serving.client(token=token(root, f"b-{uuid.uuid4().hex[:6]}", "use"))
    begun = made(mine.post("/v1/sandboxes", json={"spec": SLEEP}, headers=ASYNC), 202)["id"]
    problem(other.delete(f"/v1/operations/{begun}"), 403, "forbidden")
    made(mine.get(f"/v1/operations/{begun}", params={"wait": 60}), 200)
    remove_all(root)


def test_an_unknown_operation_is_not_found(root: httpx.Client) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        problem(root.request(method, f"/v1/operations/op-none{path}"), 404, "not_found")


# Idempotency keys


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def test_a_request_that_is_sent_again_is_done_once_and_answered_the_same(root: httpx.Client) -> None:
    headers = key()
    first = root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers)
    again = root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(names(root)) == 1
    remove_all(root)


def test_the_same_key_for_something_else_is_refused(root: httpx.Client) -> None:
    headers = key()
    made(root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))
    other = {"spec": {**SLEEP, "name": "other"}}
    problem(root.post("/v1/sandboxes", json=other, headers=headers), 409, "invalid.idempotency")
    remove_all(root)


def test_one_callers_key_is_not_anothers(root: httpx.Client, serving: Serving) -> None:
    headers = key()
    mine = serving.client(token=token(root, f"k-{uuid.uuid4().hex[:6]}", "use"))
    one = made(root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))
    two = made(mine.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))
    assert one["id"] != two["id"]
    remove_all(root)


def test_twenty_at_once_with_one_key_make_one_sandbox(root: httpx.Client, serving: Serving) -> None:
    headers = key()
    gate = threading.Barrier(20)

    def ask(_: int) -> str:
        client = serving.client()
        gate.wait(PATIENCE)
        return str(made(client.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))["id"])

    with ThreadPoolExecutor(20) as threads:
        assert len(set(threads.map(ask, range(20)))) == 1
    assert len(names(root)) == 1
    remove_all(root)


def test_a_refusal_for_now_is_not_kept(root: httpx.Client, serving: Serving) -> None:
    client = serving.client(token=token(root, f"limited-{uuid.uuid4().hex[:6]}", "use", sandboxes=1))
    headers = key()
    first = made(client.post("/v1/sandboxes", json={"spec": SLEEP}))["id"]
    problem(client.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers), 429, "unavailable.limit")
    made(client.delete(f"/v1/sandboxes/{first}", params={"force": "true"}), 204)
    made(client.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))
    remove_all(root)


def test_the_text_of_a_token_is_not_kept_for_a_second_answer(root: httpx.Client, serving: Serving) -> None:
    headers = key()
    wish = {"name": f"once-{uuid.uuid4().hex[:6]}", "scope": "read"}
    text = made(root.post("/v1/tokens", json=wish, headers=headers))["token"]
    problem(root.post("/v1/tokens", json=wish, headers=headers), 409, "invalid.idempotency")
    for file in serving.home.glob("service.db*"):
        assert text.encode() not in file.read_bytes()


@pytest.mark.parametrize("bad", ["x" * 256, "\x7f"])
def test_what_cannot_be_a_key_is_refused(root: httpx.Client, bad: str) -> None:
    problem(root.post("/v1/sandboxes", json={"spec": SLEEP}, headers={"Idempotency-Key": bad}), 400, "invalid")


def test_answers_and_operations_outlive_the_service(home: Path) -> None:
    serving = Serving(home).start()
    try:
        root, headers = serving.client(), key()
        first = made(root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers))
        done = made(root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=ASYNC), 202)["id"]
        made(root.get(f"/v1/operations/{done}", params={"wait": 60}), 200)
        blocked = {"command": ["sleep", "1000"], "ready": "log:never", "ready_timeout": 600}
        under_way = made(root.post("/v1/sandboxes", json={"spec": blocked}, headers=ASYNC), 202)["id"]
        assert serving.process is not None
        serving.process.kill()
        serving.process.wait(PATIENCE)
        serving.start()
        root = serving.client()
        again = root.post("/v1/sandboxes", json={"spec": SLEEP}, headers=headers)
        assert again.headers["idempotency-replayed"] == "true"
        assert made(again) == first
        assert made(root.get(f"/v1/operations/{done}"), 200)["state"] == "succeeded"
        ended = made(root.get(f"/v1/operations/{under_way}"), 200)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "unavailable")
    finally:
        serving.close()


def test_a_sandbox_whose_maker_cannot_be_written_down_is_not_left(root: httpx.Client, serving: Serving) -> None:
    """It would be nobody's, for every token to use, and who asked for it never hears its id."""
    caller = serving.client(token=token(root, f"maker-{uuid.uuid4().hex[:8]}", "use"))
    remove_all(root)
    with contextlib.closing(sqlite3.connect(serving.home / "service.db", timeout=60, isolation_level=None)) as book:
        book.execute("ALTER TABLE owners RENAME TO elsewhere")
        try:
            refused = caller.post("/v1/sandboxes", json={"spec": SLEEP})
        finally:
            book.execute("ALTER TABLE elsewhere RENAME TO owners")
    assert refused.status_code == 503
    assert names(root) == set()
    made(caller.post("/v1/sandboxes", json={"spec": SLEEP}))
    remove_all(root)
