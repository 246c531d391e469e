"""The `gke` back end: what waits is a clone, and whatever is none is never handed out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import yaml

from gke_world import GKE_KINDS, POD, UUID, Gke, condition
from kube.server import Server
from thawbox.cluster.backends import Backend, flip_readiness
from thawbox.cluster.capture import HeldElsewhere, Holds, ensure_golden, is_ready, superseded
from thawbox.cluster.crds import READINESS_GATE, STATE_LABEL, crds
from thawbox.cluster.facts import Reason
from thawbox.cluster.gke import PS_NAME, GkeBackend, snapshot_name
from thawbox.cluster.index import Index
from thawbox.cluster.kube import DEFINITIONS, PODS, POOLS, SNAPSHOTS, TEMPLATES, Kube, connected
from thawbox.cluster.state import BROKEN, EMPTY, LEASED, PARKED
from thawbox.errors import DumpFailed, EngineError

Json = dict[str, Any]


class Bench(Protocol):
    """A back end with all that it needs, for one test."""

    kube: Kube
    backend: Backend
    template: Json
    pool: Json
    world: Gke


@asynccontextmanager
async def a_bench(server: Server, **gke: Any) -> AsyncIterator[Any]:
    @dataclass
    class Made:
        kube: Kube
        backend: Backend
        template: Json
        pool: Json
        world: Gke

    async with connected(namespace="default", server=server.url) as kube:
        for one in (*crds(), *yaml.safe_load_all(GKE_KINDS.read_text())):
            await kube.create(DEFINITIONS, one)
        spec = {"backend": "gke", "pod": POD, "policy": "golden-policy", "keep": 1}
        template = await kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": spec})
        pool = await kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden"}})
        world = Gke(kube, **gke)
        task = asyncio.create_task(world.run())
        try:
            yield Made(kube, GkeBackend(kube, seconds=30), template, pool, world)
        finally:
            task.cancel()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def run(server: Server, act: Callable[[Any], Awaitable[Any]], **gke: Any) -> Any:
    async def whole() -> Any:
        async with a_bench(server, **gke) as bench:
            return await act(bench)

    return asyncio.run(asyncio.wait_for(whole(), 90))


async def captured(bench: Any, holder: str = "one", *, holds: Holds | None = None) -> Json:
    return await ensure_golden(
        bench.kube, "golden", lambda _: bench.backend,
        holder=holder, holds=holds or Holds(time.monotonic), now=lambda: 1e9,
    )  # fmt: skip


async def placed(bench: Any) -> Json:
    """A pod of the pool, once it runs."""
    made = await bench.kube.create(
        PODS, bench.backend.placeholder(bench.pool, await bench.kube.get(TEMPLATES, "golden"))
    )
    index = Index(bench.kube, PODS, fields=f"metadata.name={made['metadata']['name']}")
    task = asyncio.create_task(index.run())
    name = made["metadata"]["name"]
    await index.wait(lambda: index.objects.get(name, {}).get("status", {}).get("phase") == "Running", timeout=30)
    task.cancel()
    return index.objects[name]


@pytest.mark.parametrize("reading", ["string", "object"])
def test_a_capture_gives_the_snapshot_however_its_name_is_told(server: Server, reading: str) -> None:
    template = run(server, captured, reading=reading)
    assert (template["status"]["snapshot"], template["status"]["phase"]) == (UUID, "Ready")
    assert is_ready(template)
    assert "capture" not in template["status"]


def test_of_many_that_would_capture_one_does_and_the_others_wait(server: Server) -> None:
    async def together(bench: Any) -> tuple[list[Any], int]:
        tries = [captured(bench, f"holder-{number}") for number in range(5)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        again = await captured(bench, "late")
        assert is_ready(again)
        return done, bench.world.triggered

    done, triggered = run(server, together)
    assert triggered == 1
    assert sum(isinstance(one, dict) for one in done) == 1
    assert sum(isinstance(one, HeldElsewhere) for one in done) == 4


def test_a_dead_capturers_hold_ends_and_its_late_result_is_dropped(server: Server) -> None:
    async def taken_over(bench: Any) -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        class Slow:
            async def capture(self, template: Json) -> Any:
                begun.set()
                await go.wait()
                return await bench.backend.capture(template)

        late = asyncio.create_task(
            ensure_golden(
                bench.kube,
                "golden",
                lambda _: Slow(),  # type: ignore[arg-type,return-value]
                holder="slow",
                holds=Holds(time.monotonic),
                now=lambda: 0.0,
            )
        )
        await begun.wait()
        clock = [1000.0]
        holds = Holds(lambda: clock[0])
        for passed in (0, 719):
            clock[0] += passed
            with pytest.raises(HeldElsewhere):  # though it has ended long ago by the wall clock of who asks
                await captured(bench, "next", holds=holds)
        clock[0] += 2
        assert is_ready(await captured(bench, "next", holds=holds))
        await bench.kube.delete(SNAPSHOTS, UUID)
        go.set()
        with pytest.raises(HeldElsewhere, match="dropped"):
            await late

    run(server, taken_over)


@pytest.mark.parametrize("reason", ["Failed", "Error"])
def test_a_capture_that_fails_says_so_and_leaves_no_snapshot_and_no_pod(server: Server, reason: str) -> None:
    async def failed(bench: Any) -> Json:
        with pytest.raises(DumpFailed, match="the runtime said no"):
            await captured(bench)
        found: Json = await bench.kube.get(TEMPLATES, "golden")
        left = [one for one in (await bench.kube.list(PODS))["items"] if "deletionTimestamp" not in one["metadata"]]
        assert left == []
        return found

    status = run(server, failed, fails=reason)["status"]
    assert (status["phase"], status.get("snapshot")) == ("Failed", None)
    assert "the runtime said no" in status["conditions"][0]["message"]


def test_a_snapshot_of_another_policy_than_the_templates_is_none_and_goes(server: Server) -> None:
    async def failed(bench: Any) -> Json:
        with pytest.raises(DumpFailed, match="other-policy"):
            await captured(bench)
        assert (await bench.kube.list(SNAPSHOTS))["items"] == []
        found: Json = await bench.kube.get(TEMPLATES, "golden")
        return found

    assert run(server, failed, policy="other-policy")["status"]["phase"] == "Failed"


def test_a_restored_pod_is_parked_and_is_handed_over_running_and_ready(server: Server) -> None:
    async def life(bench: Any) -> Json:
        await captured(bench)
        pod = await placed(bench)
        assert bench.backend.look(pod).state == PARKED
        leased = await bench.kube.patch(PODS, pod["metadata"]["name"], {"metadata": {"labels": {STATE_LABEL: LEASED}}})
        assert bench.backend.look(leased).state == LEASED
        first, again = await bench.backend.acquire(leased), await bench.backend.acquire(leased)
        assert first == again
        await flip_readiness(bench.kube, leased, ready=True, now=0.0)
        found: Json = await bench.kube.get(PODS, pod["metadata"]["name"])
        return found

    conditions = {one["type"]: one["status"] for one in run(server, life)["status"]["conditions"]}
    assert conditions[READINESS_GATE] == "True"
    assert conditions["PodRestored"] == "True"  # and nothing that was there has gone


def test_a_pod_that_started_cold_is_broken_with_its_reason_and_never_handed_over(server: Server) -> None:
    async def cold(bench: Any) -> None:
        await captured(bench)
        pod = await placed(bench)
        look = bench.backend.look(pod)
        assert (look.state, look.reason) == (BROKEN, Reason.COLD_START)
        assert "PodRestored" in look.why
        with pytest.raises(EngineError, match="cold"):
            await bench.backend.acquire(pod)

    run(server, cold, cold=True)


def test_a_pod_restored_from_another_snapshot_is_no_clone_of_this_one() -> None:
    restored = condition("PodRestored", "True", "Restored", "from other")
    status = {"phase": "Running", "conditions": [restored]}
    other = {"metadata": {"name": "p", "annotations": {PS_NAME: UUID}}, "spec": {}, "status": status}
    look = GkeBackend(None).look(other)  # type: ignore[arg-type]
    assert (look.state, look.reason) == (BROKEN, Reason.COLD_START)
    waiting = {"metadata": {"name": "p", "annotations": {PS_NAME: UUID}}, "spec": {}, "status": {"phase": "Pending"}}
    assert GkeBackend(None).look(waiting).state == EMPTY  # type: ignore[arg-type]


def test_a_trigger_that_names_no_snapshot_is_a_failure() -> None:
    for made in (None, "", {}, {"name": 7}):
        with pytest.raises(DumpFailed, match="names no snapshot"):
            snapshot_name({"metadata": {"name": "t"}, "status": {"snapshotCreated": made}})


def test_retention_lets_go_the_oldest_and_never_the_present_snapshot() -> None:
    history = [{"id": name, "node": name} for name in ("a", "b", "c")]
    template = {"spec": {"keep": 1}, "status": {"snapshot": "a", "history": history}}
    assert [one["id"] for one in superseded(template)] == ["b"]
    template["status"]["snapshot"] = "c"
    assert [one["id"] for one in superseded(template)] == ["a", "b"]


def test_a_capture_is_written_down_where_the_definitions_are_of_an_older_version(server: Server) -> None:
    async def act(bench: Any) -> None:
        def forget_seconds(storage: Any) -> None:
            schema = storage.resource("thawbox.dev", "v1alpha1", "templates").schema
            del schema["properties"]["status"]["properties"]["capture"]["properties"]["seconds"]

        await asyncio.to_thread(server.call, forget_seconds)
        assert is_ready(await captured(bench))

    run(server, act)
