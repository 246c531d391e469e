"""The Python client, both kinds, against a real service: a pool's sandbox, a snapshot's clones, what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import thawbox
from cli_process import Cli
from service import Served, start, wait_for
from thawbox.client import AsyncClient, Client
from thawbox.client.sync.sandbox import Sandbox
from thawbox.errors import (
    Forbidden,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    PoolExhausted,
    SandboxNotFound,
    SnapshotNotFound,
    ThawboxError,
    Unauthenticated,
    Unavailable,
)
from thawbox.node import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
WORKLOADS = Path(__file__).parents[2] / "workloads"


@pytest.fixture(scope="module")
def pool(client: Client) -> Iterator[str]:
    """A pool called `python` with one parked clone, and room for two."""
    mounts = [{"source": str(WORKLOADS), "target": "/workloads", "read_only": True}]
    spec = {"command": ["python3", "-B", "/workloads/tiny.py"], "ready": "tcp:8000", "mounts": mounts}
    client.templates.create("tiny", spec)
    client.pools.create("python", "tiny", low=1, high=1, limit=2)
    yield "python"
    client.pools.remove("python", force=True)
    client.templates.remove("tiny")


def test_a_block_has_a_sandbox_of_the_pool_and_gives_it_back(client: Client, pool: str) -> None:
    assert [one["name"] for one in client.pools.list()] == [pool]
    with client.acquire(pool, ttl=600) as sandbox:
        assert sandbox.run_code("1 + 1").text == "2"
        assert sandbox.commands.run("echo here").stdout == "here\n"
        sandbox.files.write("/tmp/x", "y")
        assert sandbox.files.read("/tmp/x") == b"y"
        assert [one["id"] for one in client.claims.list()] == [sandbox.lease]
        sandbox.renew(ttl=900)
        assert client.claims.sandbox(sandbox.lease).run_code("2").text == "2"
        with client.acquire(pool, timeout=60), pytest.raises(PoolExhausted):
            client.acquire(pool, timeout=0)

    def is_gone() -> bool:
        try:
            sandbox.info()
        except NotFound:
            return True
        return False

    wait_for(is_gone, "what was given back is removed")
    assert client.claims.list() == []


def test_the_same_with_await(served: Served, pool: str) -> None:
    async def live() -> None:
        async with AsyncClient(served.url) as client:
            async with client.acquire(pool, timeout=60) as sandbox:
                assert (await sandbox.run_code("x = 20\nx + 1")).text == "21"
                heard: list[str] = []
                done = await sandbox.commands.run("echo a; echo b >&2", on_stdout=heard.append)
                assert (heard, done.stderr, done.exit_code) == (["a\n"], "b\n", 0)
                await sandbox.files.write("/srv/f", b"content")
                assert await sandbox.files.exists("/srv/f")
                snapshot = await sandbox.checkpoint(name="awaited")
                async with sandbox.terminal("read line; echo got $line", tty=False) as terminal:
                    await terminal.write("it\n")
                    printed = [one.content async for one in terminal.output()]
                    assert (b"".join(printed), terminal.exit_code) == (b"got it\n", 0)
            async with snapshot.clone() as clone:
                assert (await clone.run_code("x")).text == "20"
            many = await asyncio.gather(*(client.node() for _ in range(20)))
            assert len({one["home"] for one in many}) == 1
            one = await client.snapshot("awaited")
            await one.remove()
            with pytest.raises(SnapshotNotFound):
                await client.snapshot("awaited")

    asyncio.run(live())


def test_a_sandbox_lives_its_life(client: Client, box: Sandbox) -> None:
    assert box.state() == "running"
    assert "box" in [one.name for one in client.sandboxes()]
    box.freeze()
    assert client.sandbox("box").state() == "frozen"
    box.thaw()
    box.run_code("n = 5")
    first = box.checkpoint(name="first", labels={"a": "b"})
    assert (first.info()["names"], [one.id for one in client.snapshots(labels={"a": "b"})]) == (["first"], [first.id])
    assert first.verify()["ok"] is True
    forks = box.fork(2)
    assert [one.run_code("n").text for one in forks] == ["5", "5"]
    first.change(add_names=["again"], pinned=True)
    assert client.snapshot("again").info()["pinned"] is True
    box.stop(timeout=0)
    assert box.state() == "exited"
    box.kill()
    with first.restore() as restored:
        assert (restored.id, restored.run_code("n").text) == (box.id, "5")
        assert restored.stats()["memory"]
        assert list(restored.logs()) == []
        assert restored.preflight() is not None
    first.change(pinned=False)
    assert client.gc(dry_run=True) is not None


def test_a_log_is_followed_to_its_end_whatever_was_printed(client: Client) -> None:
    with client.run(command=("sh", "-c", "printf 'a\\342\\200\\250b\\302\\205c\\n'; read line")) as sandbox:
        assert "".join(record["text"] for record in sandbox.logs(follow=True)) == "a\u2028b\x85c\n"


def test_long_work_can_be_begun_and_waited_for_elsewhere(client: Client, box: Sandbox) -> None:
    begun = client.operations.begin("POST", f"/v1/sandboxes/{box.id}/checkpoint", {"name": "later"})
    assert client.operations.wait(begun["id"])["id"] == client.snapshot("later").id
    failing = client.operations.begin("POST", f"/v1/sandboxes/{box.id}/checkpoint", {"mode": "delta"})
    try:
        client.operations.wait(failing["id"])
    except ThawboxError as error:
        assert error.cause
    assert begun["id"] in [one["id"] for one in client.operations.list()]


def test_events_are_heard_and_go_on_where_they_were(client: Client, served: Served, box: Sandbox) -> None:
    seen: list[str] = []
    told = threading.Event()

    def listen() -> None:
        with Client(served.url) as other:
            for event in other.events(after=0):
                seen.append(event.kind)
                if event.kind == "sandbox.frozen" and event.subject["id"] == box.id:
                    told.set()
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    box.freeze()
    assert told.wait(60), seen
    thread.join()
    assert "sandbox.created" in seen


def test_errors_are_those_of_the_node(client: Client) -> None:
    with pytest.raises(SandboxNotFound) as missing:
        client.sandbox("no-such")
    assert (missing.value.code, bool(missing.value.remediation)) == ("not_found.sandbox", True)
    with pytest.raises((InvalidSpec, InvalidRequest)):
        client.run(("true",), memory=-1)
    with pytest.raises(InvalidRequest):
        client.run(("true",), no_such_field=1)
    with pytest.raises(NotFound):
        client.acquire("no-such-pool")
    with pytest.raises(InvalidRequest):
        Client("ftp://x")


def test_a_token_that_may_only_look_runs_and_reads_nothing(client: Client, served: Served, box: Sandbox) -> None:
    token = client.tokens.create("onlooker", scope="read")
    with Client(served.url, token["token"]) as onlooker:
        seen = onlooker.sandbox("box")
        for attempt in (
            lambda: seen.commands.run("true"),
            lambda: seen.files.read("/etc/passwd"),
            lambda: seen.files.list("/"),
            lambda: seen.run_code("1"),
            lambda: seen.terminal().__enter__(),
        ):
            with pytest.raises(Forbidden):
                attempt()
    with Client(served.url, "tbx_no_token") as stranger, pytest.raises(Unauthenticated):
        stranger.sandbox("box").terminal()
    client.tokens.revoke(token["id"])


def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/serve.sock", retries=1) as client:
        with pytest.raises(Unavailable, match=r"serve\.sock") as error:
            client.node()
        assert "thawbox serve" in error.value.remediation
        with pytest.raises(Unavailable), client.run(("true",)) as sandbox, sandbox.terminal():
            pass


def test_two_hundred_clients_at_once_are_all_answered(served: Served, box: Sandbox) -> None:
    async def one(number: int) -> str | None:
        async with AsyncClient(served.url) as client:
            sandbox = await client.sandbox(box.id)
            return (await sandbox.commands.run(["echo", str(number)])).stdout

    async def all_of_them() -> list[str | None]:
        return await asyncio.gather(*(one(number) for number in range(200)))

    assert asyncio.run(all_of_them()) == [f"{number}\n" for number in range(200)]


def test_a_client_goes_on_when_the_service_comes_back(node: Node, home: Path) -> None:
    assert node.settings.home == home
    first, service = start(Cli(home))
    with Client(service.url, retries=200) as client:
        client.run(("sleep", "1000"), name="box")
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        assert first.stdout is not None
        first.stdout.close()
        states: list[str] = []
        thread = threading.Thread(target=lambda: states.append(client.sandbox("box").state()))
        thread.start()
        second, _ = start(Cli(home))
        thread.join(120)
        assert states == ["running"]
        client.sandbox("box").kill()
    second.terminate()
    second.wait(60)
    assert second.stdout is not None
    second.stdout.close()


def test_the_package_offers_both(client: Client) -> None:
    assert (thawbox.Client, thawbox.AsyncClient) == (Client, AsyncClient)
    assert client.is_ready()
    wait_for(client.is_ready, "ready")
