"""What a dispatcher makes of nodes with agents: pods that go, leases, captures, regions, retention."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatching_world import KEPT, PATIENCE, World, run, until
from kube.server import Server
from thawbox.cluster.backends import NodeBackend
from thawbox.cluster.binding import Binding
from thawbox.cluster.crds import POOL_LABEL, STATE_LABEL
from thawbox.cluster.facts import Refusal
from thawbox.cluster.kube import CLAIMS, LEASES, PODS, POOLS, TEMPLATES
from thawbox.cluster.reconcile import Reconciler, ReconcilerEnded, reconciling
from thawbox.cluster.recovery import FORGET_SECONDS, Recovery
from thawbox.cluster.state import State
from thawbox.errors import EngineError

Json = dict[str, Any]


@asynccontextmanager
async def running_recovery(
    world: World, clock: Callable[[], float] = lambda: 0.0
) -> AsyncGenerator[tuple[State, Recovery]]:
    """What a dispatcher knows once it has listed, and its recovery, which looks when it is told to."""
    try:
        async with asyncio.TaskGroup() as tasks:
            state = State(world.kube, clock=clock)
            backend = NodeBackend(world.kube, world.nodes, state)
            binding = Binding(world.kube, state, lambda _: backend, tasks)
            await state.run(tasks)
            yield state, Recovery(world.kube, state, binding, lambda _: backend, tasks, now=lambda: 0.0)
            raise _Ended  # noqa: TRY301 - the way to cancel a group's tasks
    except* _Ended:
        pass


class _Ended(Exception):
    """The block is over."""


# --- pods that go while their node lives ------------------------------------------------------------------------


async def delete_by_force(world: World, pod: str) -> None:
    await world.kube.delete(PODS, pod, grace=0)


async def delete(world: World, pod: str) -> None:
    await world.kube.delete(PODS, pod)


async def evict_for_want_of_memory(world: World, pod: str) -> None:
    await world.kube.patch(PODS, pod, {"status": {"phase": "Failed", "reason": "Evicted"}}, sub="status")


async def find_dead(world: World, pod: str) -> None:
    """As the node's agent tells that a clone has died in its pod."""
    await world.kube.patch(PODS, pod, {"metadata": {"labels": {STATE_LABEL: "broken"}}})


@pytest.mark.parametrize("go", [delete_by_force, delete, evict_for_want_of_memory, find_dead])
def test_a_claim_whose_pod_goes_comes_back_in_another_once_nothing_runs_in_the_old_one(
    server: Server, go: Callable[[World, str], Awaitable[None]]
) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        before = await world.bound(dispatcher, "mine")
        uid = (await world.kube.get(PODS, before["pod"]))["metadata"]["uid"]
        world.nodes.away.add("n1")  # its lease goes on, its service answers nobody
        await go(world, before["pod"])
        lost = await until(dispatcher, "mine", lambda status: status["phase"] == "Recovering")
        assert (lost["reason"], before["pod"] in lost["message"]) == ("PodLost", True)
        assert uid in world.nodes.clones["n1"]
        world.nodes.away.clear()
        after = await until(dispatcher, "mine", lambda status: status["phase"] == "Bound")
        assert (after["recoveries"], after["node"], after["pod"] != before["pod"]) == (1, "n1", True)
        assert after["sandbox"]["id"] == f"sb-of-{KEPT[:4]}"
        assert world.nodes.ended == [uid]

    run(server, act)


def test_a_claim_whose_pod_goes_and_of_which_no_snapshot_was_kept_is_said_to_be_lost(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        before = await world.bound(dispatcher, "mine", kept="")
        await world.kube.delete(PODS, before["pod"], grace=0)
        lost = await until(dispatcher, "mine", lambda status: status["phase"] == "Lost")
        assert (lost["reason"], before["pod"] in lost["message"]) == ("NoSnapshot", True)

    run(server, act)


def test_a_pod_that_the_index_has_not_heard_of_is_not_lost(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool()
        async with running_recovery(world) as (state, recovery):
            await asyncio.to_thread(world.server.hold, "pods")
            pod = {"metadata": {"name": "p1", "labels": {POOL_LABEL: "web"}},
                   "spec": {"nodeName": "n1", "containers": [{"name": "placeholder", "image": "pause"}]}}  # fmt: skip
            await world.kube.create(PODS, pod)
            await world.kube.create(CLAIMS, {"metadata": {"name": "mine"}, "spec": {"pool": "web"}})
            bound = {"status": {"phase": "Bound", "node": "n1", "pod": "p1"}}
            claim = await world.kube.patch(CLAIMS, "mine", bound, sub="status")
            state.claims.seen(claim)
            recovery.look()
            assert await state.pods.wait(lambda: "p1" in state.pods.objects, timeout=PATIENCE)  # it was asked for
            await asyncio.to_thread(world.server.let_go)
            assert (await world.kube.get(CLAIMS, "mine"))["status"] == claim["status"]

    run(server, act)


# --- leases that cannot be read ---------------------------------------------------------------------------------


def test_a_node_whose_lease_cannot_be_read_is_alive_and_given_nothing(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("odd", machine=None, url="")
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        dispatcher = await world.dispatch()
        mine = await world.bound(dispatcher, "mine")
        fleet, leases = dispatcher.state.fleet, dispatcher.state.leases
        assert (mine["node"], "odd" in fleet) == ("n1", True)
        assert await dispatcher.state.pods.wait(lambda: fleet.parked("web") == 1, timeout=PATIENCE)
        await world.nodes.add("n1", machine='{"of": "another version"}')
        assert await leases.wait(lambda: "another" in str(leases.objects["node-n1"]), timeout=PATIENCE)
        assert "n1" in fleet
        claim = dispatcher.state.claims.objects["mine"]
        assert isinstance(fleet.choose(dispatcher.state.wish(claim)), Refusal)
        await world.nodes.add("n1")
        assert (await world.bound(dispatcher, "later"))["node"] == "n1"
        assert (await until(dispatcher, "mine", bool))["pod"] == mine["pod"]

    run(server, act)


def test_a_template_of_a_machine_that_cannot_be_read_fits_no_node(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.make_pool(low=1, high=1, limit=4)
        await world.kube.patch(TEMPLATES, "golden", {"status": {"machine": {"arch": None, "of": "next"}}}, sub="status")
        dispatcher = await world.dispatch()
        assert await dispatcher.state.pods.wait(lambda: dispatcher.state.fleet.parked("web") == 1, timeout=PATIENCE)
        await world.kube.create(CLAIMS, {"metadata": {"name": "mine"}, "spec": {"pool": "web"}})
        failed = await until(dispatcher, "mine", lambda status: status.get("phase") == "Failed")
        assert failed["reason"] == "NoCompatibleNode"

    run(server, act)


# --- captures ---------------------------------------------------------------------------------------------------


async def uncaptured(world: World) -> Reconciler:
    """What captures and retires for a dispatcher that runs; there is a template, and it has no snapshot."""
    await world.kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": {"sandbox": {}, "keep": 1}})
    dispatcher = await world.dispatch()
    return Reconciler(dispatcher, now=lambda: 0.0)


def test_a_node_without_an_agent_is_not_asked_to_capture(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        reconciler = await uncaptured(world)
        pod = {"containers": [{"name": "agent", "image": "agent:1"}]}
        await world.kube.create(TEMPLATES, {"metadata": {"name": "other"}, "spec": {"backend": "gke", "pod": pod}})
        await world.kube.create(POOLS, {"metadata": {"name": "gvisor"}, "spec": {"template": "other"}})
        labels = {POOL_LABEL: "gvisor", STATE_LABEL: "leased"}
        await world.kube.create(
            PODS, {"metadata": {"name": "p", "labels": labels}, "spec": {**pod, "nodeName": "a-gvisor"}}
        )
        fleet = reconciler.dispatcher.state.fleet
        assert await reconciler.dispatcher.state.pods.wait(lambda: "a-gvisor" in fleet, timeout=PATIENCE)
        await reconciler.template("golden")
        assert (await world.kube.get(TEMPLATES, "golden"))["status"]["phase"] == "Ready"
        assert len(world.nodes.goldens["n1"]) == 1

    run(server, act)


@pytest.mark.parametrize("failure", [EngineError("the disk is full"), KeyError("n1"), TimeoutError()])
def test_a_capture_that_fails_in_whatever_way_says_so_and_the_next_is_tried_elsewhere(
    server: Server, failure: Exception
) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.nodes.add("n2")
        world.nodes.refuse["n1"] = failure
        reconciler = await uncaptured(world)
        with pytest.raises(type(failure)):
            await reconciler.template("golden")
        status = (await world.kube.get(TEMPLATES, "golden"))["status"]
        assert (status["phase"], status.get("capture")) == ("Failed", None)
        assert status["conditions"][0]["message"]
        await reconciler.template("golden")
        assert (await world.kube.get(TEMPLATES, "golden"))["status"]["phase"] == "Ready"
        assert (len(world.nodes.goldens["n1"]), len(world.nodes.goldens["n2"])) == (0, 1)

    run(server, act)


# --- kopf -------------------------------------------------------------------------------------------------------


def test_a_dispatcher_ends_when_kopf_does(server: Server) -> None:
    async def act(world: World) -> None:
        dispatcher = await world.dispatch()
        with pytest.raises(ExceptionGroup) as ended, Server() as refusing:
            refusing.refuse_next = [401] * 1000
            async with reconciling(dispatcher, server=refusing.url, now=lambda: 0.0):
                await asyncio.Event().wait()
        assert [type(one) for one in ended.value.exceptions] == [ReconcilerEnded]

    run(server, act)


def test_kopf_has_a_template_captured_when_it_comes_and_when_it_changes_and_nothing_is_left_when_it_goes(
    server: Server,
) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        dispatcher = await world.dispatch()
        templates = dispatcher.state.templates

        def is_of(generation: int) -> bool:
            status = templates.objects.get("golden", {}).get("status", {})
            return bool(status.get("phase") == "Ready" and status["observedGeneration"] == generation)

        async with reconciling(dispatcher, server=server.url, now=lambda: 0.0):
            await world.kube.create(TEMPLATES, {"metadata": {"name": "golden"}, "spec": {"sandbox": {}, "keep": 1}})
            assert await templates.wait(lambda: is_of(1), timeout=PATIENCE)
            await world.kube.patch(TEMPLATES, "golden", {"spec": {"sandbox": {"command": ["next"]}}})
            assert await templates.wait(lambda: is_of(2), timeout=PATIENCE)
            assert len(world.nodes.goldens["n1"]) >= 1
            world.nodes.emptied.clear()
            await world.kube.delete(TEMPLATES, "golden")
            await world.nodes.emptied.wait()
            assert world.nodes.goldens == {"n1": {}}

    run(server, act)


# --- regions ----------------------------------------------------------------------------------------------------


def test_a_claim_that_insists_on_a_region_without_nodes_is_refused_before_any_pod_is_made_for_it(
    server: Server,
) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1", region="a")
        await world.make_pool(low=0, high=0, limit=4)
        dispatcher = await world.dispatch()
        await dispatcher.ready.wait()
        wish = {"pool": "web", "timeout": 300, "regionRequired": True}
        await world.kube.create(CLAIMS, {"metadata": {"name": "far"}, "spec": {**wish, "region": "b"}})
        far = await until(dispatcher, "far", lambda status: status.get("phase") == "Failed")
        assert (far["reason"], "b" in far["message"]) == ("RegionEmpty", True)
        assert (await world.kube.list(PODS))["items"] == []
        await asyncio.to_thread(
            functools.partial(world.server.hold, "leases", lists=False)
        )  # of the new node we have not heard yet
        await world.nodes.add("n2", region="b")
        await world.kube.create(CLAIMS, {"metadata": {"name": "near"}, "spec": {**wish, "region": "b"}})
        line, claims = dispatcher.binding.line("web"), dispatcher.state.claims
        assert await claims.wait(lambda: "near" in line.waiting, timeout=PATIENCE)

    run(server, act)


# --- nodes that never come back ---------------------------------------------------------------------------------


def test_the_lease_of_a_node_that_is_lost_for_long_goes_and_that_of_one_that_lives_stays(server: Server) -> None:
    async def act(world: World) -> None:
        clock = [1000.0]
        await world.nodes.add("gone", lasts=15)
        await world.nodes.add("n1", lasts=100_000)
        async with running_recovery(world, lambda: clock[0]) as (state, recovery):
            for passed, left in ((100, {"gone", "n1"}), (FORGET_SECONDS, {"n1"})):
                clock[0] += passed
                await recovery.lose_silent()
                await recovery.forget_gone()
                leases = (await world.kube.list(LEASES))["items"]
                assert {one["spec"]["holderIdentity"] for one in leases} == left
                assert set(state.fleet.nodes()) == {"n1"}
            await world.nodes.add("gone", lasts=15)  # the machine comes back after all
            assert await state.leases.wait(lambda: "gone" in state.fleet, timeout=PATIENCE)

    run(server, act)


# --- retention --------------------------------------------------------------------------------------------------


def test_a_superseded_golden_snapshot_goes_from_all_nodes_once_the_one_that_is_away_is_back(server: Server) -> None:
    async def act(world: World) -> None:
        await world.nodes.add("n1")
        await world.nodes.add("n2")
        reconciler = await uncaptured(world)
        await reconciler.template("golden")
        first = (await world.kube.get(TEMPLATES, "golden"))["status"]["snapshot"]
        world.nodes.snapshots["n2"].add(first)  # pulled for its clones
        await world.kube.patch(TEMPLATES, "golden", {"spec": {"sandbox": {"command": ["next"]}}})
        world.nodes.away.add("n2")
        await reconciler.template("golden")
        status = (await world.kube.get(TEMPLATES, "golden"))["status"]
        assert [one["id"] for one in status["history"]] == [first, status["snapshot"]]
        assert list(world.nodes.goldens["n1"].values()) == [status["snapshot"]]
        world.nodes.away.clear()
        templates = reconciler.dispatcher.state.templates
        assert await templates.wait(
            lambda: len(templates.objects["golden"]["status"].get("history", [])) == 2, timeout=PATIENCE
        )
        await reconciler.retire_all()
        history = (await world.kube.get(TEMPLATES, "golden"))["status"]["history"]
        assert ([one["id"] for one in history], world.nodes.snapshots["n2"]) == ([status["snapshot"]], set())

    run(server, act)
