"""A simulated API server: real HTTP, real watch streams, over `storage`; in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

from kube.storage import Json, Refusal, Resource, Storage, as_line, merge, selected

BOOKMARK_SECONDS = 1.0


class Server:
    """`url` answers from the start of the block to its end. `storage` may be used through `call` only."""

    def __init__(self) -> None:
        self.storage = Storage()
        self.url = ""
        self.refuse_next: list[int] = []
        """Statuses that the next requests are answered with, whatever they ask."""
        self.is_away = False
        """Whether every request is answered 503."""
        self.watches = 0
        self._held: dict[str, asyncio.Event] = {}
        self._listed: set[str] = set()
        """Kinds of which only watches are held."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube-server")
        self._bells: set[asyncio.Event] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._cut = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self.storage.watchers.append(self._ring)
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, act: Callable[[Storage], Any]) -> Any:
        """Do something with the storage, between two requests."""

        async def done() -> Any:
            return act(self.storage)

        return self._run(done())

    def cut_watches(self) -> None:
        """End every watch that runs, as a load balancer does."""
        self._run(self._cut_all())

    def hold(self, *plurals: str, lists: bool = True) -> None:
        """Answer no list (or do, without `lists`) and tell no watch of these kinds, until `let_go`."""

        def keep(_: Storage) -> None:
            self._held.update({plural: asyncio.Event() for plural in plurals})
            self._listed = set() if lists else set(plurals)

        self.call(keep)

    def let_go(self) -> None:
        """What was held back goes on."""

        def release(_: Storage) -> None:
            for event in self._held.values():
                event.set()
            self._held.clear()

        self.call(release)

    async def _wait_held(self, resource: Resource) -> None:
        if resource.plural in self._held:
            await self._held[resource.plural].wait()

    def _run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        for event in self._held.values():
            event.set()
        await self._cut_all()
        await self._runner.cleanup()

    async def _cut_all(self) -> None:
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if self.is_away:
                raise Refusal(503, "ServiceUnavailable", "away")  # noqa: TRY301
            if self.refuse_next:
                raise Refusal(self.refuse_next.pop(0), "InternalError", "told to refuse")  # noqa: TRY301
            return await self._routed(request)
        except Refusal as refusal:
            return web.json_response(refusal.status, status=refusal.code)

    async def _routed(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        if parts[:1] not in (["api"], ["apis"]) or len(parts) < (3 if parts[0] == "api" else 4):
            return web.json_response(self._discovery(parts))
        group, rest = ("", parts[1:]) if parts[0] == "api" else (parts[1], parts[2:])
        version, rest = rest[0], rest[1:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource = self.storage.resource(group, version, rest[0])
        name, sub = [*rest, "", ""][1:3]
        if sub not in ("", "status", *(("binding",) if resource.kind == "Pod" else ())):
            raise Refusal(404, "NotFound", f"no subresource {sub}")
        if not name and request.method == "GET":
            if request.query.get("watch") in ("true", "1"):
                return await self._watch(request, resource, namespace)
            if resource.plural not in self._listed:
                await self._wait_held(resource)
            return web.json_response(self._list(request, resource, namespace))
        body = json.loads(await request.text() or "{}")
        return self._one(request, resource, namespace, name, sub, body)

    def _one(
        self, request: web.Request, resource: Resource, namespace: str, name: str, sub: str, body: Any
    ) -> web.Response:
        storage = self.storage
        match request.method:
            case "GET":
                return web.json_response(storage.get(resource, namespace, name))
            case "POST" if sub == "binding":
                old = storage.get(resource, namespace, name)
                new = merge(old, {"spec": {"nodeName": body["target"]["name"]}})
                return web.json_response(storage.update(resource, namespace, name, new, ""), status=201)
            case "POST":
                return web.json_response(storage.create(resource, namespace, body), status=201)
            case "PUT":
                return web.json_response(storage.update(resource, namespace, name, body, sub))
            case "PATCH":
                old = storage.get(resource, namespace, name)
                new = json_patched(old, body) if isinstance(body, list) else merge(old, body)
                wanted = body.get("metadata", {}).get("resourceVersion") if isinstance(body, dict) else None
                new["metadata"] = {**new["metadata"], "resourceVersion": wanted}
                return web.json_response(storage.update(resource, namespace, name, new, sub))
            case "DELETE":
                return web.json_response(storage.delete(resource, namespace, name, body))
        raise Refusal(405, "MethodNotAllowed", request.method)

    def _list(self, request: web.Request, resource: Resource, namespace: str) -> Json:
        chosen = [
            one for (where, _), one in sorted(resource.objects.items())
            if (not namespace or where == namespace)
            and selected(one, request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
        ]  # fmt: skip
        meta = {"resourceVersion": str(self.storage.version)}
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta, "items": chosen}

    async def _watch(self, request: web.Request, resource: Resource, namespace: str) -> web.StreamResponse:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        asked = request.query.get("resourceVersion", "")
        seconds = float(request.query.get("timeoutSeconds", 300))
        after = int(asked) if asked not in ("", "0") else 0
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if after and after < self.storage.oldest:
            status = Refusal(410, "Expired", f"too old resource version: {after} ({self.storage.oldest})").status
            await response.write(as_line("ERROR", status))
            return response
        if not after:
            after = self.storage.version
            for one in self._list(request, resource, namespace)["items"]:
                await response.write(as_line("ADDED", one))
        bell = asyncio.Event()
        self._bells.add(bell)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        self.watches += 1
        end = self._loop.time() + seconds
        try:
            while (left := end - self._loop.time()) > 0:
                bell.clear()
                await self._wait_held(resource)
                sent = after
                for version, of, kind, new, old in [one for one in self.storage.history if one[0] > after]:
                    after = version
                    if of is resource and (not namespace or new["metadata"].get("namespace") == namespace):
                        told = _as_seen(kind, selected(new, labels, fields), old and selected(old, labels, fields))
                        if told:
                            await response.write(as_line(told, new))
                            sent = version
                if after == sent or not request.query.get("allowWatchBookmarks"):
                    try:
                        await asyncio.wait_for(bell.wait(), min(left, BOOKMARK_SECONDS))
                        continue
                    except TimeoutError:
                        pass
                after = max(after, self.storage.version)
                mark = {"kind": resource.kind, "apiVersion": resource.api_version}
                await response.write(as_line("BOOKMARK", {**mark, "metadata": {"resourceVersion": str(after)}}))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._bells.discard(bell)
            self._streams.discard(task)
            self.watches -= 1
        return response

    def _discovery(self, parts: list[str]) -> Json:
        resources = list(self.storage.resources.values())
        if parts == ["version"]:
            return {"major": "1", "minor": "32", "gitVersion": "v1.32.0-simulated"}
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            groups: dict[str, set[str]] = {}
            for one in resources:
                if one.group:
                    groups.setdefault(one.group, set()).add(one.version)
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
                {"name": group, "versions": [{"groupVersion": f"{group}/{one}", "version": one} for one in found],
                 "preferredVersion": {"groupVersion": f"{group}/{min(found)}", "version": min(found)}}
                for group, found in groups.items()
            ]}  # fmt: skip
        group, version = (
            ("", parts[1]) if parts[:1] == ["api"] else (parts[1], parts[2]) if len(parts) == 3 else ("", "")
        )
        here = [one for one in resources if one.group == group and one.version == version]
        if not here:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        named = [
            {"name": one.plural, "singularName": one.kind.lower(), "namespaced": one.namespaced, "kind": one.kind,
             "verbs": verbs, "shortNames": list(one.short)} for one in here
        ]  # fmt: skip
        named += [
            {"name": f"{one.plural}/status", "singularName": "", "namespaced": one.namespaced, "kind": one.kind,
             "verbs": ["get", "patch", "update"]} for one in here if one.status
        ]  # fmt: skip
        where = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": where, "resources": named}


def _as_seen(kind: str, matches: bool, matched: bool | None) -> str:
    """What a watch with selectors is told: an object that matches no longer is gone for it."""
    if kind == "DELETED":
        return "DELETED" if matched else ""
    if matches:
        return "MODIFIED" if matched else "ADDED"
    return "DELETED" if matched else ""


def json_patched(target: Json, operations: list[Json]) -> Json:
    """RFC 6902: add, replace, remove, test."""
    result: Json = json.loads(json.dumps(target))
    for one in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]]
        found: Any = result
        for part in parents:
            found = found[int(part)] if isinstance(found, list) else found[part]
        key: Any = (len(found) if last == "-" else int(last)) if isinstance(found, list) else last
        if one["op"] == "test" and found[key] != one["value"]:
            raise Refusal(422, "Invalid", "the server rejected our request due to an error in our request")
        if one["op"] == "remove":
            del found[key]
        elif one["op"] == "add" and isinstance(found, list):
            found.insert(key, one["value"])
        elif one["op"] in ("add", "replace"):
            found[key] = one["value"]
    return result
