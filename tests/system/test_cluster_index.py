"""An index through everything that ends a watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kube.server import Server
from thawbox.cluster.crds import crds
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, Kube, connected
from thawbox.errors import Unavailable


def test_an_index_stays_true_through_cut_watches_refusals_and_forgotten_versions() -> None:
    async def followed(server: Server) -> None:
        heard: list[str] = []
        async with connected(namespace="default", server=server.url) as kube:
            for one in crds():
                await kube.create(DEFINITIONS, one)
            index = Index(kube, CLAIMS)
            index.on_change(lambda name, now, _: heard.append(f"{'+' if now else '-'}{name}"))
            task = asyncio.create_task(index.run())
            try:
                assert await index.wait(index.listed.is_set, timeout=30)
                for name in ("a", "b"):
                    await kube.create(CLAIMS, {"metadata": {"name": name}, "spec": {"pool": "web"}})
                assert await index.wait(lambda: {"a", "b"} <= index.objects.keys(), timeout=30)
                lists = index.lists

                await asyncio.to_thread(server.cut_watches)
                await kube.create(CLAIMS, {"metadata": {"name": "c"}, "spec": {"pool": "web"}})
                assert await index.wait(lambda: "c" in index.objects, timeout=30)
                assert index.lists == lists  # it went on where the watch had ended

                server.refuse_next += [500, 500, 500]
                await asyncio.to_thread(server.cut_watches)
                await kube_until_answered(kube, "d")
                assert await index.wait(lambda: "d" in index.objects, timeout=30)

                def forget(storage: object) -> None:
                    from kube.storage import Storage

                    assert isinstance(storage, Storage)
                    of = storage.resource("thawbox.dev", "v1alpha1", "claims")
                    storage.delete(of, "default", "a", {})
                    storage.create(of, "default", {"metadata": {"name": "e"}, "spec": {"pool": "web"}})
                    storage.compact()

                index.version = "100"  # as after a long absence
                await asyncio.to_thread(server.call, forget)
                await asyncio.to_thread(server.cut_watches)
                assert await index.wait(lambda: "e" in index.objects and "a" not in index.objects, timeout=30)
                assert set(index.objects) == {"b", "c", "d", "e"}
                assert "-a" in heard
            finally:
                task.cancel()

    async def kube_until_answered(kube: object, name: str) -> None:
        assert isinstance(kube, Kube)
        while True:
            try:
                await kube.create(CLAIMS, {"metadata": {"name": name}, "spec": {"pool": "web"}})
            except Unavailable:
                continue
            return

    with Server() as server:
        asyncio.run(asyncio.wait_for(followed(server), 90))


@asynccontextmanager
async def an_index(server: Server) -> AsyncGenerator[tuple[Kube, Index]]:
    """An index of claims that runs."""
    async with connected(namespace="default", server=server.url) as kube:
        for one in crds():
            await kube.create(DEFINITIONS, one)
        index = Index(kube, CLAIMS)
        task = asyncio.create_task(index.run())
        try:
            yield kube, index
        finally:
            task.cancel()


def test_an_answer_that_comes_after_the_objects_end_does_not_bring_it_back() -> None:
    async def followed(server: Server) -> None:
        async with an_index(server) as (kube, index):
            late = await kube.create(CLAIMS, {"metadata": {"name": "a"}, "spec": {"pool": "web"}})
            assert await index.wait(lambda: "a" in index.objects, timeout=30)
            await kube.delete(CLAIMS, "a")
            assert await index.wait(lambda: "a" not in index.objects, timeout=30)
            index.seen(late)
            assert "a" not in index.objects
            made = await kube.create(CLAIMS, {"metadata": {"name": "a"}, "spec": {"pool": "web"}})
            index.seen(made)
            assert index.objects["a"]["metadata"]["uid"] == made["metadata"]["uid"]

    with Server() as server:
        asyncio.run(asyncio.wait_for(followed(server), 90))


def test_what_was_written_while_a_list_was_on_its_way_stays() -> None:
    async def followed(server: Server) -> None:
        async with an_index(server) as (kube, index):
            assert await index.wait(index.listed.is_set, timeout=30)
            old = await kube.list(CLAIMS)
            index.seen(await kube.create(CLAIMS, {"metadata": {"name": "new"}, "spec": {"pool": "web"}}))
            index.take_list(old)
            assert "new" in index.objects
            await kube.delete(CLAIMS, "new")
            index.take_list(await kube.list(CLAIMS))
            assert "new" not in index.objects

    with Server() as server:
        asyncio.run(asyncio.wait_for(followed(server), 90))


CUT_OFF = {
    "before the answer": b"",
    "in its head": b"HTTP/1.1 200 OK\r\nContent-",
    "in its body": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n{",
}


@pytest.mark.parametrize("sent", CUT_OFF.values(), ids=CUT_OFF)
def test_a_connection_that_is_cut_off_is_worth_another_try(sent: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()
        await writer.wait_closed()

    async def asked() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, connected(namespace="default", server=f"http://127.0.0.1:{port}") as kube:

            async def watch() -> None:
                async for _ in kube.watch(CLAIMS, "1"):
                    pass

            asks: tuple[Callable[[], Awaitable[object]], ...] = (lambda: kube.get(CLAIMS, "a"), watch)
            for ask in asks:
                with pytest.raises(Unavailable):
                    await ask()

    asyncio.run(asyncio.wait_for(asked(), 90))


def test_an_api_server_that_is_overloaded_is_not_asked_again_behind_our_back() -> None:
    async def asked(server: Server) -> None:
        async with connected(namespace="default", server=server.url) as kube:
            server.refuse_next.append(503)
            with pytest.raises(Unavailable):
                await kube.list(DEFINITIONS)
            assert (await kube.list(DEFINITIONS))["items"] == []

    with Server() as server:
        asyncio.run(asyncio.wait_for(asked(server), 90))
