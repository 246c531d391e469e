"""What the cluster layer counts on of an API server; the simulated one and a real one are held to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube.real import real_server, why_not
from kube.server import Server
from thawbox.cluster.crds import POOL_LABEL, crds
from thawbox.cluster.index import Index
from thawbox.cluster.kube import (
    CLAIMS,
    DEFINITIONS,
    LEASES,
    PODS,
    POOLS,
    SNAPSHOTS,
    Conflict,
    Exists,
    Expired,
    Kube,
    connected,
)
from thawbox.errors import InvalidRequest, NotFound

Act = Callable[[Kube], Awaitable[Any]]
Do = Callable[[Act], Any]
GKE_KINDS = Path(__file__).parents[1] / "kube" / "podsnapshot-crds.yaml"
MANY = 5


@pytest.fixture(scope="module", params=["simulated", "real"])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if request.param == "simulated":
        with Server() as server:
            yield {"server": server.url}
        return
    if why_not():
        pytest.skip(why_not())
    with real_server(tmp_path_factory.mktemp("kube")) as config:
        yield {"kubeconfig": str(config)}


@pytest.fixture(scope="module")
def defined(where: dict[str, str]) -> dict[str, str]:
    """The same, with our kinds and those of GKE's pod snapshots."""

    async def define() -> None:
        async with connected(namespace="default", **where) as kube:
            for one in (*crds(), *yaml.safe_load_all(GKE_KINDS.read_text())):
                await kube.create(DEFINITIONS, one)
            for _ in range(300):  # a real server serves a new kind a moment later
                found = (await kube.list(DEFINITIONS))["items"]
                if all(_established(one) for one in found):
                    return
                await asyncio.sleep(0.1)
            pytest.fail("the kinds were not established")

    asyncio.run(define())
    return where


def _established(definition: dict[str, Any]) -> bool:
    conditions = definition.get("status", {}).get("conditions", [])
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


@pytest.fixture
def do(defined: dict[str, str]) -> Do:
    def done(act: Act) -> Any:
        async def whole() -> Any:
            async with connected(namespace="default", **defined) as kube:
                return await act(kube)

        return asyncio.run(asyncio.wait_for(whole(), 60))

    return done


def claim(**spec: object) -> dict[str, Any]:
    return {"metadata": {"generateName": "claim-"}, "spec": {"pool": "web", **spec}}


def test_a_new_object_has_a_name_an_identity_a_version_and_its_defaults(do: Do) -> None:
    made, again = do(lambda kube: asyncio.gather(kube.create(CLAIMS, claim()), kube.create(CLAIMS, claim())))
    assert made["metadata"]["name"].startswith("claim-")
    assert made["metadata"]["name"] != again["metadata"]["name"]
    assert made["metadata"]["uid"] != again["metadata"]["uid"]
    assert (made["spec"]["timeout"], made["metadata"]["generation"]) == (30, 1)
    assert do(lambda kube: kube.get(CLAIMS, made["metadata"]["name"])) == made


def test_of_many_changes_to_one_version_exactly_one_is_made(do: Do) -> None:
    async def race(kube: Kube) -> list[Any]:
        made = await kube.create(CLAIMS, claim())
        name, version = made["metadata"]["name"], made["metadata"]["resourceVersion"]
        changes = [
            kube.patch(
                CLAIMS, name, {"status": {"phase": "Bound", "node": f"n{number}"}}, version=version, sub="status"
            )
            for number in range(MANY)
        ]
        return await asyncio.gather(*changes, return_exceptions=True)

    done = do(race)
    assert sum(isinstance(one, Conflict) for one in done) == MANY - 1
    assert sum(isinstance(one, dict) for one in done) == 1


def test_status_and_spec_are_changed_apart(do: Do) -> None:
    async def both(kube: Kube) -> list[Any]:
        made = await kube.create(CLAIMS, {**claim(), "status": {"phase": "Bound"}})
        name = made["metadata"]["name"]
        status = await kube.patch(CLAIMS, name, {"spec": {"ttl": 5}, "status": {"phase": "Lost"}}, sub="status")
        spec = await kube.patch(CLAIMS, name, {"spec": {"ttl": 7}, "status": {"phase": "Bound"}})
        return [made, status, spec]

    made, status, spec = do(both)
    assert "status" not in made
    assert (status["status"], status["spec"].get("ttl"), status["metadata"]["generation"]) == (
        {"phase": "Lost"},
        None,
        1,
    )
    assert (spec["status"], spec["spec"]["ttl"], spec["metadata"]["generation"]) == ({"phase": "Lost"}, 7, 2)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CLAIMS, {"metadata": {"name": "wrong"}, "spec": {}}),
        (CLAIMS, {"metadata": {"name": "wrong"}, "spec": {"pool": "web", "timeout": -1}}),
        (CLAIMS, {"metadata": {"name": "wrong"}, "spec": {"pool": 7}}),
        (POOLS, {"metadata": {"name": "wrong"}, "spec": {"template": "t", "low": 9, "high": 2, "limit": 20}}),
        (SNAPSHOTS, {"metadata": {"name": "wrong"}, "spec": {}}),
        (PODS, {"metadata": {"name": "wrong"}, "spec": {}}),
    ],
)
def test_an_object_that_breaks_its_schema_is_refused(do: Do, kind: Any, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        do(lambda kube: kube.create(kind, body))
    with pytest.raises(NotFound):
        do(lambda kube: kube.get(kind, "wrong"))


def test_what_may_not_change_does_not_and_unknown_fields_are_dropped(do: Do) -> None:
    made = do(lambda kube: kube.create(CLAIMS, claim(unknown="dropped")))
    assert "unknown" not in made["spec"]
    with pytest.raises(InvalidRequest, match="pool cannot be changed"):
        do(lambda kube: kube.patch(CLAIMS, made["metadata"]["name"], {"spec": {"pool": "other"}}))


def test_a_name_is_taken_once(do: Do) -> None:
    body = {"metadata": {"name": "only"}, "spec": {"pool": "web"}}
    do(lambda kube: kube.create(CLAIMS, body))
    with pytest.raises(Exists):
        do(lambda kube: kube.create(CLAIMS, body))


def test_a_finalizer_holds_an_object_that_is_being_deleted(do: Do) -> None:
    async def life(kube: Kube) -> list[Any]:
        name = (await kube.create(CLAIMS, {**claim(), "metadata": {"name": "held", "finalizers": ["thawbox.dev/t"]}}))[
            "metadata"
        ]["name"]
        await kube.delete(CLAIMS, name)
        going = await kube.get(CLAIMS, name)
        await kube.patch(CLAIMS, name, {"metadata": {"finalizers": None}})
        return [going, (await kube.list(CLAIMS, fields="metadata.name=held"))["items"]]

    going, left = do(life)
    assert going["metadata"]["deletionTimestamp"]
    assert left == []


def test_a_deletion_of_another_version_is_refused(do: Do) -> None:
    async def race(kube: Kube) -> None:
        made = await kube.create(CLAIMS, claim())
        name = made["metadata"]["name"]
        await kube.patch(CLAIMS, name, {"metadata": {"labels": {"a": "b"}}})
        with pytest.raises(Conflict):
            await kube.delete(CLAIMS, name, version=made["metadata"]["resourceVersion"])
        assert await kube.get(CLAIMS, name)
        await kube.delete(CLAIMS, name)
        await kube.delete(CLAIMS, name)  # gone is no error

    do(race)


async def first(events: AsyncIterator[dict[str, Any]], count: int) -> list[tuple[str, str]]:
    """The first so many changes of a watch, without its bookmarks: (type, name)."""
    seen: list[tuple[str, str]] = []
    async with aclosing(events) as stream:  # type: ignore[type-var]
        async for event in stream:
            if event["type"] != "BOOKMARK":
                seen.append((event["type"], event["object"]["metadata"]["name"]))
            if len(seen) == count:
                return seen
    return seen


def pod(name: str, **labels: str) -> dict[str, Any]:
    container = {"name": "placeholder", "image": "example/placeholder:1"}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}


def test_a_watch_tells_every_change_after_its_version_and_what_leaves_its_selector(do: Do) -> None:
    async def watched(kube: Kube) -> list[tuple[str, str]]:
        version = (await kube.list(PODS))["metadata"]["resourceVersion"]
        await kube.create(PODS, pod("seen", **{POOL_LABEL: "web"}))
        await kube.create(PODS, pod("unseen"))
        await kube.patch(PODS, "seen", {"metadata": {"annotations": {"a": "b"}}})
        await kube.patch(PODS, "seen", {"metadata": {"labels": {POOL_LABEL: "other"}}})
        await kube.patch(PODS, "unseen", {"metadata": {"labels": {POOL_LABEL: "web"}}})
        await kube.delete(PODS, "unseen", grace=0)
        return await first(kube.watch(PODS, version, labels=f"{POOL_LABEL}=web"), 5)

    assert do(watched) == [
        ("ADDED", "seen"), ("MODIFIED", "seen"), ("DELETED", "seen"), ("ADDED", "unseen"), ("DELETED", "unseen"),
    ]  # fmt: skip


def test_a_watch_from_a_forgotten_version_is_told_so(do: Do) -> None:
    async def late(kube: Kube) -> None:
        await first(kube.watch(CLAIMS, "1"), 1)

    with pytest.raises(Expired):
        do(late)


def test_a_lease_is_taken_over_by_one(do: Do) -> None:
    async def race(kube: Kube) -> int:
        lease = await kube.create(LEASES, {"metadata": {"name": "node"}, "spec": {"holderIdentity": "one"}})
        taken = [{**lease, "spec": {"holderIdentity": f"n{number}"}} for number in range(MANY)]
        done = await asyncio.gather(*(kube.replace(LEASES, one) for one in taken), return_exceptions=True)
        return sum(isinstance(one, dict) for one in done)

    assert do(race) == 1


def test_an_index_is_what_the_server_has(do: Do) -> None:
    async def followed(kube: Kube) -> tuple[set[str], set[str]]:
        index = Index(kube, POOLS)
        task = asyncio.create_task(index.run())
        try:
            assert await index.wait(index.listed.is_set, timeout=30)
            for number in range(MANY):
                await kube.create(POOLS, {"metadata": {"name": f"pool-{number}"}, "spec": {"template": "t"}})
            await kube.delete(POOLS, "pool-0")
            await kube.create(POOLS, {"metadata": {"name": "last"}, "spec": {"template": "t"}})
            assert await index.wait(lambda: "last" in index.objects, timeout=30)
            there = {one["metadata"]["name"] for one in (await kube.list(POOLS))["items"]}
            return there, set(index.objects)
        finally:
            task.cancel()

    there, known = do(followed)
    assert there == known
    assert "pool-0" not in known
