"""An index through everything that ends a watch."""

from __future__ import annotations

import asyncio

from kube.server import Server
from thawbox.cluster.crds import crds
from thawbox.cluster.index import Index
from thawbox.cluster.kube import CLAIMS, DEFINITIONS, connected


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
        from thawbox.cluster.kube import Kube
        from thawbox.errors import Unavailable

        assert isinstance(kube, Kube)
        while True:
            try:
                await kube.create(CLAIMS, {"metadata": {"name": name}, "spec": {"pool": "web"}})
            except Unavailable:
                continue
            return

    with Server() as server:
        asyncio.run(asyncio.wait_for(followed(server), 90))
