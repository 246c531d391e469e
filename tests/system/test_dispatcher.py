"""A real dispatcher in this process; the API server is simulated, and a stand-in for GKE restores the pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from gke_world import GKE_KINDS, POD, UUID, Gke
from kube.server import Server
from thawbox.cluster.binding import Binding, phase_of
from thawbox.cluster.claims_app import create_app
from thawbox.cluster.crds import CLAIM, MACHINE, NODE_LABEL, REGION, SNAPSHOT, STATE_LABEL, URL, WANTED, WHY, crds
from thawbox.cluster.dispatcher import Dispatcher, Options, dispatching
from thawbox.cluster.gke import PS_NAME, GkeBackend
from thawbox.cluster.holding import Hold
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, PODS, POOLS, SNAPSHOTS, TEMPLATES, Kube, connected
from thawbox.cluster.nodes import Nodes
from thawbox.cluster.recovery import Recovery
from thawbox.cluster.state import PARKED, State, is_there, leased_by, notes_of, state_of
from thawbox.errors import NotFound
from thawbox.store.compat import Compat

Json = dict[str, Any]
PATIENCE = 60.0


@dataclass
class World:
    """A cluster with GKE's back end; `dispatch` starts one more dispatcher."""

    server: Server
    kube: Kube
    stack: AsyncExitStack
    gke: Gke

    async def dispatch(self, identity: str = "one") -> Dispatcher:
        kube = await self.stack.enter_async_context(connected(namespace="default", server=self.server.url))
        nodes = await self.stack.enter_async_context(Nodes())
        return await self.stack.enter_async_context(dispatching(kube, nodes, Options(identity, look_every=0.05)))

    async def make_pool(self, **marks: int) -> None:
        """A template that is captured, and a pool of it."""
        spec = {"backend": "gke", "pod": POD, "policy": "golden-policy"}
        await self.kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": spec})
        status = {"phase": "Ready", "snapshot": UUID, "observedGeneration": 1}
        await self.kube.patch(TEMPLATES, "golden", {"status": status}, sub="status")
        await self.kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden", **marks}})

    async def claim(self, name: str, **spec: Any) -> Json:
        wish = {"pool": "web", "timeout": 300, **spec}
        return await self.kube.create(CLAIMS, {"metadata": {"name": name}, "spec": wish})

    async def hold(self, *plurals: str) -> None:
        await asyncio.to_thread(self.server.hold, *plurals)

    async def let_go(self) -> None:
        await asyncio.to_thread(self.server.let_go)


def run(server: Server, act: Callable[[World], Awaitable[None]], *, on_gke: bool = True) -> None:
    async def whole() -> None:
        async with a_world(server, on_gke=on_gke) as world:
            await act(world)

    asyncio.run(asyncio.wait_for(whole(), 120))


@asynccontextmanager
async def a_world(server: Server, *, on_gke: bool) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(connected(namespace="default", server=server.url))
        for one in (*crds(), *yaml.safe_load_all(GKE_KINDS.read_text())):
            await kube.create(DEFINITIONS, one)
        gke = Gke(kube)
        if on_gke:
            stack.callback(asyncio.create_task(gke.run()).cancel)
        yield World(server, kube, stack, gke)


async def decided(dispatcher: Dispatcher, name: str) -> str:
    """The phase of a claim once it is no longer open."""
    claims = dispatcher.state.claims
    assert await claims.wait(
        lambda: name in claims.objects and phase_of(claims.objects[name]) in ("Bound", "Failed"), timeout=PATIENCE
    )
    return phase_of(claims.objects[name])


async def until(dispatcher: Dispatcher, name: str, come: Callable[[Json], bool]) -> Json:
    """The status of a claim once `come` is true of it."""
    claims = dispatcher.state.claims
    assert await claims.wait(
        lambda: name in claims.objects and come(claims.objects[name].get("status", {})), timeout=PATIENCE
    )
    found: Json = claims.objects[name]["status"]
    return found


async def parked(dispatcher: Dispatcher, count: int) -> None:
    assert await dispatcher.state.pods.wait(lambda: dispatcher.state.fleet.parked("web") >= count, timeout=PATIENCE)


def test_a_claim_that_came_while_no_dispatcher_ran_waits_for_lists_that_are_answered_later(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool()
        await world.claim("early")
        await world.hold("pools", "templates", "pods")
        dispatcher = await world.dispatch()
        await dispatcher.state.claims.listed.wait()
        await world.claim("later")
        claims = dispatcher.state.claims
        assert await claims.wait(lambda: "later" in claims.objects, timeout=PATIENCE)
        await world.let_go()
        assert [await decided(dispatcher, name) for name in ("early", "later")] == ["Bound", "Bound"]

    run(server, act)


@pytest.mark.parametrize("last", ["pools", "templates", "pods", "claims"])
def test_a_new_dispatcher_finds_what_is_parked_whichever_list_is_answered_last(server: Server, last: str) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=2, high=2, limit=2)  # there are these clones, and no other will come
        async with AsyncExitStack() as of_the_first:
            await parked(await World(server, world.kube, of_the_first, world.gke).dispatch("one"), 2)
        await world.claim("meanwhile")
        await world.hold(last)
        dispatcher = await world.dispatch("two")
        for index in dispatcher.state.indexes:
            if index.kind.plural != last:
                await index.listed.wait()
        await world.let_go()
        assert await decided(dispatcher, "meanwhile") == "Bound"

    run(server, act)


def test_clones_count_once_the_snapshot_that_they_are_of_is_heard_of(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=1, high=1, limit=1)
        dispatcher = await world.dispatch()
        await parked(dispatcher, 1)
        await world.hold("templates")
        await world.kube.patch(TEMPLATES, "golden", {"status": {"snapshot": "next"}}, sub="status")
        pod = next(iter(dispatcher.state.pods.objects))
        await world.kube.patch(PODS, pod, {"metadata": {"annotations": {SNAPSHOT: "next"}}})
        assert await dispatcher.state.pods.wait(lambda: not dispatcher.state.fleet.parked("web"), timeout=PATIENCE)
        await world.claim("waits")
        line = dispatcher.binding.line("web")
        assert await dispatcher.state.claims.wait(lambda: "waits" in line.waiting, timeout=PATIENCE)
        await world.let_go()
        assert await decided(dispatcher, "waits") == "Bound"

    run(server, act)


def test_a_claim_that_is_heard_of_before_its_pool_is_not_refused(server: Server) -> None:
    async def act(world: World) -> None:
        dispatcher = await world.dispatch()
        await dispatcher.ready.wait()
        await world.hold("pools", "templates")
        await world.make_pool()
        await world.claim("quick")
        assert await decided(dispatcher, "quick") == "Bound"
        await world.let_go()
        await world.kube.create(CLAIMS, {"metadata": {"name": "wrong"}, "spec": {"pool": "none"}})
        assert await decided(dispatcher, "wrong") == "Failed"
        assert dispatcher.state.claims.objects["wrong"]["status"]["reason"] == "NoSuchPool"

    run(server, act)


def test_two_dispatchers_never_hand_out_the_same_clone(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=8, high=12, limit=40)
        one, two = await world.dispatch("one"), await world.dispatch("two")
        await parked(one, 8)
        await parked(two, 8)
        names = [f"c{number}" for number in range(8)]
        await asyncio.gather(*(world.claim(name) for name in names))
        for dispatcher in (one, two):
            assert [await decided(dispatcher, name) for name in names] == ["Bound"] * 8
        claims = {claim["metadata"]["uid"]: claim for claim in (await world.kube.list(CLAIMS))["items"]}
        assert len({claim["status"]["pod"] for claim in claims.values()}) == 8

        def settled() -> bool:  # where both took one for a claim, the other one's is gone in the end
            pods = [pod for pod in one.state.pods.objects.values() if is_there(pod) and leased_by(pod)]
            return sorted(pod["metadata"]["name"] for pod in pods) == sorted(
                claim["status"]["pod"] for claim in claims.values()
            )

        assert await one.state.pods.wait(settled, timeout=PATIENCE)
        for pod in (await world.kube.list(PODS))["items"]:
            if is_there(pod) and leased_by(pod):
                assert claims[leased_by(pod)]["status"]["pod"] == pod["metadata"]["name"]

    run(server, act)


def test_who_is_turned_away_is_told_why_and_when_to_come_again(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=1, high=1, limit=1)
        dispatcher = await world.dispatch()
        await parked(dispatcher, 1)
        app = create_app(dispatcher, token="")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://dispatcher", timeout=PATIENCE
        ) as client:
            first = await client.post("/v1/claims", json={"pool": "web"})
            assert (first.status_code, first.json()["state"]) == (201, "bound")
            full = await client.post("/v1/claims", json={"pool": "web"})
            assert (full.status_code, full.json()["code"]) == (429, "unavailable.pool_exhausted")
            assert int(full.headers["retry-after"]) >= 1
            await world.kube.patch(POOLS, "web", {"spec": {"limit": 2, "mostWaiting": 0}})
            pools = dispatcher.state.pools
            assert await pools.wait(lambda: pools.objects["web"]["spec"]["limit"] == 2, timeout=PATIENCE)
            await parked(dispatcher, 1)
            second = await client.post("/v1/claims", json={"pool": "web"})
            assert second.status_code == 201
            await world.kube.patch(POOLS, "web", {"spec": {"limit": 3, "low": 0, "high": 0}})
            assert await pools.wait(lambda: pools.objects["web"]["spec"]["limit"] == 3, timeout=PATIENCE)
            crowded = await client.post("/v1/claims", json={"pool": "web"})
            assert (crowded.status_code, crowded.json()["code"]) == (429, "unavailable.too_many_waiting")
            assert int(crowded.headers["retry-after"]) >= 1
            missing = await client.post("/v1/claims", json={"pool": "none"})
            assert (missing.status_code, "retry-after" in missing.headers) == (404, False)
            left, claims = {first.json()["id"], second.json()["id"]}, dispatcher.state.claims
            assert await claims.wait(lambda: claims.objects.keys() == left, timeout=PATIENCE)  # no record of the others

    run(server, act)


@pytest.mark.parametrize("status", [401, 403])
def test_a_node_that_takes_no_token_of_ours_costs_no_clone_and_its_refusal_is_told(server: Server, status: int) -> None:
    async def act(world: World) -> None:
        refused = await world.stack.enter_async_context(a_service(status, {"cause": "the token opens nothing here"}))
        dispatcher = await a_pool_on(world, refused, refused, refused)
        before = {name: one["metadata"]["uid"] for name, one in dispatcher.state.pods.objects.items()}
        await world.claim("one")
        assert await decided(dispatcher, "one") == "Failed"
        told = (await world.kube.get(CLAIMS, "one"))["status"]
        assert told["reason"] == "NodeRefused"
        assert "does not take our token: the token opens nothing here" in told["message"]
        pods = (await world.kube.list(PODS))["items"]
        assert {one["metadata"]["name"]: one["metadata"]["uid"] for one in pods} == before
        assert {(state_of(one), CLAIM in notes_of(one)) for one in pods} == {(PARKED, False)}

    run(server, act, on_gke=False)


def test_a_claim_that_one_node_refuses_is_bound_on_another(server: Server) -> None:
    async def act(world: World) -> None:
        refuses = await world.stack.enter_async_context(a_service(401, {}))
        takes = await world.stack.enter_async_context(a_service(200, {"id": "0" * 32, "name": "clone"}))
        dispatcher = await a_pool_on(world, refuses, takes)
        await world.claim("one", region="r0")  # where the first node is
        assert await decided(dispatcher, "one") == "Bound"
        assert (await world.kube.get(CLAIMS, "one"))["status"]["node"] == "n1"
        left = [one for one in (await world.kube.list(PODS))["items"] if one["spec"].get("nodeName") == "n0"]
        assert [state_of(one) for one in left] == [PARKED]

    run(server, act, on_gke=False)


@asynccontextmanager
async def a_service(status: int, told: Json) -> AsyncGenerator[str]:
    """The URL of what stands in for a node's service: whatever is asked, it answers this."""
    body = msgspec.json.encode(told)
    head = f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + body)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def a_pool_on(world: World, *urls: str) -> Dispatcher:
    """A dispatcher, and a pool of the `node` back end with a clone parked on each of these nodes: n0 in r0, and on."""
    machine = msgspec.json.encode(Compat("x86_64", "6.8.0", "criu 4.2.1")).decode()
    for number, url in enumerate(urls):
        lease = Hold(world.kube, f"node-n{number}", f"n{number}", seconds=600, clock=lambda: 0.0, now=lambda: 0.0)
        labels = {NODE_LABEL: "true", REGION: f"r{number}"}
        assert await lease.take(labels=labels, annotations={MACHINE: machine, URL: url})
    await world.kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": {"sandbox": {"command": ["true"]}}})
    status = {"phase": "Ready", "snapshot": UUID, "observedGeneration": 1}
    await world.kube.patch(TEMPLATES, "golden", {"status": status}, sub="status")
    marks = {"low": len(urls), "high": len(urls), "limit": len(urls)}
    await world.kube.create(POOLS, {"metadata": {"name": "web"}, "spec": {"template": "golden", **marks}})
    dispatcher = await world.dispatch()
    pods = dispatcher.state.pods
    assert await pods.wait(lambda: len(pods.objects) == len(urls), timeout=PATIENCE)
    for number, name in enumerate(sorted(pods.objects)):
        meta = {"labels": {STATE_LABEL: PARKED}, "annotations": {SNAPSHOT: UUID}}
        await world.kube.patch(PODS, name, {"metadata": meta, "spec": {"nodeName": f"n{number}"}})
    await parked(dispatcher, len(urls))
    return dispatcher


def test_a_dispatcher_that_heard_nothing_calls_no_node_lost_that_renewed_its_lease(server: Server) -> None:
    machine = msgspec.json.encode(Compat("x86_64", "6.8.0", "criu 4.2.1")).decode()

    async def act(world: World) -> None:
        time = [1000.0]
        lease = Hold(world.kube, "node-n1", "n1", seconds=15, clock=lambda: time[0], now=lambda: time[0])

        async def renew() -> None:
            assert await lease.take(labels={NODE_LABEL: "true"}, annotations={MACHINE: machine})

        await renew()
        async with running_state(world.kube, lambda: time[0]) as (state, look_by):
            await world.hold("leases")  # our watch is silent
            time[0] += 100
            await renew()
            await look_by(world.kube).lose_silent()
            assert (state.lost, "n1" in state.fleet) == (set(), True)
            time[0] += 100
            async with connected(namespace="default", server="http://127.0.0.1:1") as nobody:
                await look_by(nobody).lose_silent()  # nobody answers: the silence is ours
            assert (state.lost, state.silent()) == (set(), {})
            time[0] += 100
            await look_by(world.kube).lose_silent()  # the node's own
            assert (state.lost, "n1" in state.fleet) == ({"n1"}, False)
            await renew()
            await world.let_go()
            assert await state.leases.wait(lambda: "n1" in state.fleet, timeout=PATIENCE)

    run(server, act)


def test_a_quota_keeps_a_pool_small_and_ends_nothing(server: Server) -> None:
    def allow(count: int) -> None:
        server.call(lambda storage: setattr(storage, "most_pods", count))

    def scaled(dispatcher: Dispatcher) -> Json:
        conditions = dispatcher.state.pools.objects["web"].get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == "Scaled"), {})

    async def act(world: World) -> None:
        await asyncio.to_thread(allow, 1)
        await world.make_pool(low=3, high=3, limit=3)
        dispatcher = await world.dispatch()
        pools = dispatcher.state.pools
        assert await pools.wait(lambda: "web" in pools.objects and bool(scaled(dispatcher)), timeout=PATIENCE)
        assert (scaled(dispatcher)["status"], scaled(dispatcher)["reason"]) == ("False", "Refused")
        assert "exceeded quota" in scaled(dispatcher)["message"]
        await world.claim("served")
        assert await decided(dispatcher, "served") == "Bound"
        await asyncio.to_thread(allow, 100)
        await parked(dispatcher, 2)
        assert await pools.wait(lambda: scaled(dispatcher)["status"] == "True", timeout=PATIENCE)

    run(server, act)


@asynccontextmanager
async def running_state(
    kube: Kube, clock: Callable[[], float]
) -> AsyncGenerator[tuple[State, Callable[[Kube], Recovery]]]:
    """What a dispatcher knows, by this clock, once it has listed; and its recovery, which asks any API server."""
    try:
        async with asyncio.TaskGroup() as tasks:
            state = State(kube, clock=clock)
            backend = GkeBackend(kube)
            binding = Binding(kube, state, lambda _: backend, tasks)
            await state.run(tasks)
            yield state, lambda asked: Recovery(asked, state, binding, lambda _: backend, tasks, now=clock)
            raise _Ended  # noqa: TRY301 - the way to cancel a group's tasks
    except* _Ended:
        pass


class _Ended(Exception):
    """The block is over."""


def test_a_lost_pod_of_gkes_comes_back_from_the_newest_snapshot_that_was_kept_of_it(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        claim = await world.claim("kept", checkpointEvery=0.3)
        first = (await until(dispatcher, "kept", lambda status: "snapshot" in status))["snapshot"]["id"]
        status = await until(dispatcher, "kept", lambda status: status["snapshot"]["id"] != first)
        own = await world.kube.get(SNAPSHOTS, status["snapshot"]["id"])
        assert own["metadata"]["ownerReferences"][0]["uid"] == claim["metadata"]["uid"]
        world.gke.cold = True  # the first pods in which it is to come back start anew
        await world.kube.delete(PODS, status["pod"], grace=0)
        lost = await until(dispatcher, "kept", lambda status: status["phase"] == "Recovering")
        pods = dispatcher.state.pods
        assert await pods.wait(
            lambda: any("started cold" in notes_of(pod).get(WHY, "") and WANTED in notes_of(pod)
                        for pod in pods.objects.values()), timeout=PATIENCE
        )  # fmt: skip
        world.gke.cold = False
        back = await until(dispatcher, "kept", lambda status: status["phase"] == "Bound")
        pod = await world.kube.get(PODS, back["pod"])
        assert notes_of(pod)[PS_NAME] == lost["snapshot"]["id"]
        assert leased_by(pod) == claim["metadata"]["uid"]
        assert (back["recoveries"], back["sandbox"]["name"]) == (1, back["pod"])
        assert back["pod"] != lost["pod"]
        with pytest.raises(NotFound):
            await world.kube.get(SNAPSHOTS, first)
        later = await until(dispatcher, "kept", lambda status: status["snapshot"]["id"] != lost["snapshot"]["id"])
        assert later["pod"] == back["pod"]

    run(server, act)


def test_a_lost_pod_of_gkes_of_which_no_snapshot_was_kept_is_said_to_be_lost(server: Server) -> None:
    async def act(world: World) -> None:
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        await world.claim("unkept")
        status = await until(dispatcher, "unkept", lambda status: status.get("phase") == "Bound")
        await world.kube.patch(PODS, status["pod"], {"status": {"phase": "Failed"}}, sub="status")
        assert (await until(dispatcher, "unkept", lambda status: status["phase"] == "Lost"))["reason"] == "NoSnapshot"

    run(server, act)


def test_a_quota_keeps_a_claim_from_coming_back_until_it_allows_and_ends_nothing(server: Server) -> None:
    def allow(count: int) -> None:
        server.call(lambda storage: setattr(storage, "most_pods", count))

    async def act(world: World) -> None:
        await world.make_pool(low=0, high=0, limit=4)
        dispatcher = await world.dispatch()
        await world.claim("kept")
        status = await until(dispatcher, "kept", lambda status: status.get("phase") == "Bound")
        snapshot = {"id": UUID, "url": "", "at": "2026-01-01T00:00:00Z"}
        await world.kube.patch(CLAIMS, "kept", {"status": {"snapshot": snapshot}}, sub="status")
        await until(dispatcher, "kept", lambda status: "snapshot" in status)
        await asyncio.to_thread(allow, 0)
        await world.kube.delete(PODS, status["pod"], grace=0)
        refused = await until(dispatcher, "kept", lambda status: "exceeded quota" in (status.get("message") or ""))
        assert refused["phase"] == "Recovering"
        await asyncio.to_thread(allow, 100)
        back = await until(dispatcher, "kept", lambda status: status["phase"] == "Bound")
        assert (back["recoveries"], back.get("message")) == (1, None)

    run(server, act)
