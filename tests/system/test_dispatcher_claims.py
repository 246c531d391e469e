"""Claims over HTTP: who may ask, the same request twice, how long they last; and what follows a leader that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from dispatching_world import KEPT, PATIENCE, World, run, until
from kube.server import Server
from thawbox.cluster.claims_app import create_app
from thawbox.cluster.dispatcher import LEADER, Dispatcher
from thawbox.cluster.kube import CLAIMS, LEASES, PODS, POOLS
from thawbox.cluster.times import read

Json = dict[str, Any]


@asynccontextmanager
async def asking(dispatcher: Dispatcher, *, token: str = "") -> AsyncGenerator[httpx.AsyncClient]:
    """Who asks the dispatcher over HTTP, once it is ready."""
    await dispatcher.ready.wait()
    transport = httpx.ASGITransport(create_app(dispatcher, token=token))
    async with httpx.AsyncClient(transport=transport, base_url="http://dispatcher", timeout=PATIENCE) as client:
        yield client


def test_whoever_brings_no_token_is_told_whether_it_lives_and_nothing_else(server: Server) -> None:
    async def act(world: World) -> None:
        async with asking(await world.dispatch(), token="secret") as client:
            assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
            for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret2"}):
                told = await client.get("/v1/claims", headers=given)
                assert (told.status_code, told.json()["code"]) == (401, "unauthenticated")
                assert (await client.post("/v1/claims", json={"pool": "web"}, headers=given)).status_code == 401
            assert (await world.kube.list(CLAIMS))["items"] == []
            right = await client.get("/v1/claims", headers={"Authorization": "Bearer secret"})
            assert (right.status_code, right.json()["claims"]) == (200, [])

    run(server, act)


def test_the_same_request_under_the_same_key_is_the_same_claim(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=3, high=3, limit=4)
        async with asking(await world.dispatch()) as client:

            async def claim(key: str) -> Json:
                answer = await client.post("/v1/claims", json={"pool": "web"}, headers={"Idempotency-Key": key})
                assert answer.status_code == 201, answer.text
                found: Json = answer.json()
                return found

            one, two = await asyncio.gather(claim("k"), claim("k"))
            again, other = await claim("k"), await claim("other")
            assert one == two == again
            assert (other["id"] != one["id"], other["pod"] != one["pod"]) == (True, True)
            assert len((await world.kube.list(CLAIMS))["items"]) == 2

    run(server, act)


def test_a_request_that_is_repeated_ends_no_claim_that_was_bound(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        async with asking(dispatcher) as client:
            wish = {"json": {"pool": "web"}, "headers": {"Idempotency-Key": "k"}}
            made = (await client.post("/v1/claims", **wish)).json()
            await world.kube.delete(PODS, made["pod"], grace=0)
            await until(dispatcher, made["id"], lambda status: status["phase"] == "Lost")
            again = await client.post("/v1/claims", **wish)
            assert (again.status_code, again.json()["code"]) == (503, "unavailable.no_snapshot")
            assert (await client.get(f"/v1/claims/{made['id']}")).json()["state"] == "lost"

    run(server, act)


def test_a_claim_lasts_as_long_as_it_was_last_told_to_and_ends_with_its_clone(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        async with asking(dispatcher) as client:
            made = (await client.post("/v1/claims", json={"pool": "web", "ttl": 3600})).json()
            forever = (await client.post("/v1/claims", json={"pool": "web"})).json()
            assert forever["until"] is None
            longer = await client.patch(f"/v1/claims/{made['id']}", json={"ttl": 7200})
            assert (longer.status_code, read(longer.json()["until"]) > read(made["until"])) == (200, True)
            assert (await world.kube.get(CLAIMS, made["id"]))["spec"]["ttl"] == 7200
            assert (await client.patch("/v1/claims/none", json={"ttl": 1})).status_code == 404
            assert (await client.patch(f"/v1/claims/{made['id']}", json={"ttl": 0})).status_code == 422
            pods, claims = dispatcher.state.pods, dispatcher.state.claims
            assert {made["id"], forever["id"]} == claims.objects.keys()
            await client.patch(f"/v1/claims/{made['id']}", json={"ttl": 0.001})
            assert await claims.wait(lambda: claims.objects.keys() == {forever["id"]}, timeout=PATIENCE)
            assert await pods.wait(lambda: made["pod"] not in pods.objects, timeout=PATIENCE)
            assert (await client.get(f"/v1/claims/{made['id']}")).status_code == 404
            assert (await client.get(f"/v1/claims/{forever['id']}")).json()["state"] == "bound"

    run(server, act)


def test_another_dispatcher_leads_and_goes_on_where_the_leader_that_is_gone_was(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=8)
        async with AsyncExitStack() as of_the_first:
            first = World(server, world.kube, of_the_first, world.nodes)
            one = await first.dispatch("one", lead_seconds=2)
            mine = await world.bound(one, "mine", kept=KEPT)
            assert (await world.kube.get(LEASES, LEADER))["spec"]["holderIdentity"] == "one"
            world.nodes.away.add("n1")  # whether the clone has ended nobody can tell
            await world.kube.delete(PODS, mine["pod"], grace=0)
            await until(one, "mine", lambda status: status["phase"] == "Recovering")
            two = await world.dispatch("two", lead_seconds=2)
            await two.ready.wait()
        await world.kube.patch(POOLS, "web", {"spec": {"low": 3, "high": 3}})
        world.nodes.away.clear()
        back = await until(two, "mine", lambda status: status["phase"] == "Bound")
        assert (back["recoveries"], back["sandbox"]["id"]) == (1, f"sb-of-{KEPT[:4]}")
        assert await two.state.pods.wait(lambda: two.state.fleet.parked("web") == 3, timeout=PATIENCE)
        lease = (await world.kube.get(LEASES, LEADER))["spec"]
        assert (lease["holderIdentity"], (await world.kube.get(CLAIMS, "mine"))["status"]["node"]) == ("two", "n1")

    run(server, act)
