"""Events: each once, in order, whoever made it happen and however often a listener was away."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import httpx
import pytest

from cli_process import Cli
from full_disk import full_disk
from service import wait_for
from serving import PATIENCE, SLEEP, Listener, Serving, Told, made, sse
from thawbox.api.book import Book
from thawbox.api.events import Events
from thawbox.api.watch import Watch
from thawbox.client import Client
from thawbox.host.proc import start_time
from thawbox.model import Phase, SandboxId, Spec
from thawbox.node import Node
from thawbox.sandbox import Record

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


def unique() -> str:
    return f"ev-{uuid.uuid4().hex[:8]}"


def kept(client: httpx.Client, after: int) -> list[Told]:
    """What is kept after this number, up to what there is when it is asked."""
    last = made(client.get("/v1/node"), 200)["event"]
    found: list[Told] = []
    while after < last:
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": str(after)}) as answer:
            for told in sse(answer.iter_lines()):
                found.append(told)
                assert told.id is not None
                after = told.id
                if after >= last:
                    break
    return found


def test_a_sandboxs_life_is_told_in_order_and_once(root: httpx.Client, serving: Serving) -> None:
    name = unique()
    begin = made(root.get("/v1/node"), 200)["event"]
    sandbox = made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))["id"]
    for verb in ("freeze", "thaw"):
        made(root.post(f"/v1/sandboxes/{name}/{verb}"), 200)
    made(root.post(f"/v1/sandboxes/{name}/checkpoint", json={"stop": True, "name": name}))
    made(root.post(f"/v1/snapshots/{name}/restore"))
    made(root.post(f"/v1/sandboxes/{name}/stop", json={"timeout": 0}), 200)
    made(root.delete(f"/v1/sandboxes/{name}"), 204)
    found = kept(root, begin)
    assert [one.id for one in found] == list(range(begin + 1, begin + 1 + len(found)))
    told = [one.event for one in found if one.content["subject"]["id"] == sandbox]
    assert told == [
        "sandbox.created", "sandbox.running", "sandbox.frozen", "sandbox.thawed", "sandbox.suspended",
        "sandbox.running", "sandbox.exited", "sandbox.removed",
    ]  # fmt: skip
    for one in found:
        assert {"id", "at", "kind", "subject"} <= set(one.content)
        assert (one.content["id"], one.content["kind"]) == (one.id, one.event)


def test_what_other_commands_do_and_what_happens_by_itself_is_told_too(root: httpx.Client, serving: Serving) -> None:
    name = unique()
    listener = Listener(serving.client())
    cli = Cli(serving.home)
    sandbox = cli.run("--name", name)["id"]
    listener.wait_for("sandbox.running", sandbox)
    snapshot = cli("checkpoint", name, "--json").json()["id"]
    assert listener.wait_for("snapshot.created", snapshot).content["sandbox"]["id"] == sandbox
    assert cli("snapshots", "rm", snapshot).status == 0
    listener.wait_for("snapshot.removed", snapshot)
    os.kill(made(root.get(f"/v1/sandboxes/{name}"), 200)["pid"], 9)
    listener.wait_for("sandbox.lost", sandbox)
    assert cli("rm", name).status == 0
    listener.wait_for("sandbox.removed", sandbox)


@pytest.fixture
def watched(node: Node) -> Iterator[tuple[Watch, Events]]:
    with contextlib.closing(Book(node.settings.home)) as book:
        events = Events(book)
        with Watch(node.context, events) as watch:
            yield watch, events


def a_record(**more: Any) -> Record:
    return Record(
        id=SandboxId("sb-0123456789ab"), name="one", spec=Spec(("true",)), phase=Phase.RUNNING, created_at=1.0,
        hostname="one", machine_id="0" * 32, **more,
    )  # fmt: skip


def test_a_lease_that_was_given_back_is_not_told_anew_while_its_sandbox_is_destroyed(
    node: Node, watched: tuple[Watch, Events]
) -> None:
    watch, events = watched
    record = a_record(owner="pool:p", lease="lease-1")
    node.context.journal.add(record)
    watch.look()
    watch.released("p", "lease-1")
    watch.look()
    watch.look_at(record.id)
    node.context.journal.remove(record.id)
    watch.look()
    assert [event.kind for event in events.after(0)] == ["pool.acquired", "pool.released"]


def test_a_sandbox_that_was_dead_when_it_was_first_seen_is_lost(node: Node, watched: tuple[Watch, Events]) -> None:
    watch, events = watched
    with subprocess.Popen(["true"]) as ended:
        started = start_time(ended.pid) or 1
    record = a_record(keeper_pid=ended.pid, keeper_started=started, boot_id=node.context.boot_id)
    node.context.journal.add(record)
    watch.look()
    deadline = time.monotonic() + 60
    while "sandbox.lost" not in [event.kind for event in events.after(0)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    node.context.journal.remove(record.id)


def test_a_death_on_a_full_disk_is_told_when_there_is_room(node: Node, watched: tuple[Watch, Events]) -> None:
    watch, events = watched
    with node.run(Spec(("sleep", "1000"))) as sandbox:
        watch.look()
        with full_disk(node) as refusals:
            os.kill(sandbox.record.keeper_pid, 9)
            wait_for(lambda: refusals.count > 1, "the watch tries again")
        wait_for(lambda: "sandbox.lost" in [event.kind for event in events.after(0)], "it is told")
        watch.check()


def test_a_listener_that_comes_and_goes_hears_each_event_once(root: httpx.Client, serving: Serving) -> None:
    begin = made(root.get("/v1/node"), 200)["event"]
    wanted = 40
    heard: list[int] = []
    place = begin
    name = unique()
    made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}))
    for number in range(wanted // 2):
        made(root.post(f"/v1/sandboxes/{name}/freeze"), 200)
        made(root.post(f"/v1/sandboxes/{name}/thaw"), 200)
        with serving.client().stream("GET", "/v1/events", headers={"Last-Event-ID": str(place)}) as answer:
            for told in sse(answer.iter_lines()):
                assert told.id is not None
                heard.append(told.id)
                place = told.id
                if len(heard) % (number % 3 + 1) == 0:  # leaves at ever other places
                    break
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)
    heard += [one.id for one in kept(root, place) if one.id is not None]
    assert heard == list(range(begin + 1, begin + 1 + len(heard)))
    assert len(heard) >= wanted


def test_only_the_kinds_that_are_wanted_come(root: httpx.Client, serving: Serving) -> None:
    name = unique()
    listener = Listener(serving.client(), kinds="sandbox.frozen,operation.")
    made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": name}}, headers={"Prefer": "respond-async"}), 202)
    listener.wait_for("operation.succeeded", "sandbox.run")
    made(root.post(f"/v1/sandboxes/{name}/freeze"), 200)
    listener.wait_for("sandbox.frozen", name)
    assert {one.event for one in listener.heard} == {"operation.succeeded", "sandbox.frozen"}
    made(root.delete(f"/v1/sandboxes/{name}", params={"force": "true"}), 204)


SLOW_TO_TAKE = "cmd:sh -c 'if grep -q SLOW; then touch /tmp/asked; until [ -e /tmp/go ]; do sleep 0.05; done; fi'"


def test_an_acquisition_is_told_once_and_with_how_long_it_took_whoever_looks_meanwhile(
    root: httpx.Client, serving: Serving
) -> None:
    name = unique()
    made(root.post("/v1/templates", json={"name": name, "spec": {**SLEEP, "hooks": SLOW_TO_TAKE}}))
    pool = {"template": name, "low": 0, "high": 1, "limit": 1}
    made(root.post("/v1/pools", json={"name": name, **pool}))
    begin = made(root.get("/v1/node"), 200)["event"]

    def acquired() -> list[Told]:
        return [one for one in kept(root, begin) if one.event == "pool.acquired"]

    def asked() -> str:
        for claim in made(root.get("/v1/claims"), 200)["claims"]:
            path = f"/v1/sandboxes/{claim['sandbox']['id']}/files/stat"
            if claim["pool"] == name and root.get(path, params={"path": "/tmp/asked"}).status_code == 200:
                return str(claim["sandbox"]["id"])
        return ""

    with ThreadPoolExecutor() as threads:
        wish = {"pool": name, "environment": {"SLOW": "1"}}
        claiming = threads.submit(serving.client().post, "/v1/claims", json=wish)
        wait_for(lambda: bool(asked()), "it was asked to take what it is given")
        sandbox = asked()
        made(root.post("/v1/pools", json={"name": f"{name}-other", **pool}))  # after which the service looks
        made(root.delete(f"/v1/pools/{name}-other"), 204)
        assert acquired() == []
        made(root.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": ["touch", "/tmp/go"]}), 200)
        claim = made(claiming.result())
    [told] = acquired()
    assert (told.content["sandbox"]["id"], told.content["lease"]) == (sandbox, claim["id"])
    assert 0 < told.content["acquire_ms"] <= claim["acquire_ms"]
    made(root.delete(f"/v1/pools/{name}", params={"force": "true"}), 204)


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_the_numbers_go_on_after_the_service_ended(home: Path, end: str) -> None:
    serving = Serving(home).start()
    try:
        root = serving.client()
        made(root.post("/v1/sandboxes", json={"spec": {**SLEEP, "name": "one"}}))
        before = kept(root, 0)
        assert serving.process is not None
        getattr(serving.process, end)()
        serving.process.wait(60)
        serving.start()
        after = kept(serving.client(), 0)
        assert after[: len(before)] == before
        assert [one.id for one in after] == list(range(1, len(after) + 1))
        assert after[-1].event == "node.started"
        assert ("node.stopping" in [one.event for one in after]) == (end == "terminate")
    finally:
        serving.close()


def test_a_client_whose_connection_breaks_before_the_first_event_hears_all_that_follows(home: Path) -> None:
    """A proxy stands between: what happens while it lets nobody through is told when it does again."""
    serving = Serving(home).start()
    heard: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        with Client(f"unix:{between.path}") as client:
            heard.put(next(client.events(kinds=["sandbox.created"])).subject["name"])

    try:
        with Between(home / "between.sock", serving.home / "serve.sock") as between:
            thread = threading.Thread(target=listen)
            thread.start()
            between.wait_for(b"id: ")
            between.stop()
            made(serving.client().post("/v1/sandboxes", json={"spec": {**SLEEP, "name": "meanwhile"}}))
            between.start()
            assert heard.get(timeout=PATIENCE) == "meanwhile"
            thread.join()
    finally:
        serving.close()


class Between:
    """A Unix socket that leads to another, or, while it is stopped, nowhere."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self._told = bytearray()
        self._changed = threading.Condition()
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Let everybody through."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Cut every connection, and take no other."""
        self.path.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def wait_for(self, words: bytes) -> None:
        """Return once the service has said this through us."""
        with self._changed:
            assert self._changed.wait_for(lambda: words in self._told, PATIENCE), bytes(self._told)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                to.sendall(piece)
                with self._changed:
                    self._told += piece
                    self._changed.notify_all()


@pytest.mark.parametrize("place", ["0", "999999999", "-1", "x", str(1 << 60), ""])
def test_any_place_can_be_asked_for(root: httpx.Client, place: str) -> None:
    with root.stream("GET", "/v1/events", headers={"Last-Event-ID": place}) as answer:
        assert answer.status_code == 200
        assert next(answer.iter_lines()).startswith("id: ")
