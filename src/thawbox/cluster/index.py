"""One list+watch index per kind: what the API server has, as of a moment ago, without asking.

Rule 1: what is in the index may be old; whoever acts on it does so by compare-and-swap.
Rule 2: a watch that ends goes on where it ended; one that is too far behind lists anew, and tells what has changed.
Rule 3: own writes overtake the watch, and it overtakes them: whichever is older of the two is ignored. What is not here
although the watch is past its version is gone, and no late answer brings it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from thawbox.cluster.crds import Json
from thawbox.cluster.kube import Expired, Kind, Kube
from thawbox.errors import Unavailable

Hear = Callable[[str, Json, Json | None], None]
"""Told of each change: the name, the object as it is now ({} when it is gone), and as it was before."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0


class Index:
    """Objects of one kind by name. `run` keeps it true until it is cancelled."""

    def __init__(self, kube: Kube, kind: Kind, *, labels: str = "", fields: str = "", seconds: int = 300) -> None:
        self._kube = kube
        self.kind = kind
        self._labels = labels
        self._fields = fields
        self._seconds = seconds
        self.objects: dict[str, Json] = {}
        self.version = ""
        self.listed = asyncio.Event()
        self.lists = 0
        self._heard = 0
        self._hearers: list[Hear] = []
        self._bell = asyncio.Event()

    def on_change(self, hear: Hear) -> None:
        """Call `hear(name, now, before)` for each change from now on; `now` is {} when the object is gone."""
        self._hearers.append(hear)

    async def run(self) -> None:
        """List, watch, and begin again when that ends; an API server that is away is asked again, ever less often."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if not self.version:
                    await self._list()
                async for event in self._kube.watch(
                    self.kind, self.version, labels=self._labels, fields=self._fields, seconds=self._seconds
                ):
                    self._hear(event)
                    pause = _FIRST_PAUSE
            except Expired:
                self.version = ""
            except Unavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads callers, protects nothing
                pause = min(_LONGEST_PAUSE, 2 * pause)

    def seen(self, found: Json) -> None:
        """Take in what an own write was answered, without waiting for the watch; what is older is ignored."""
        name = found["metadata"]["name"]
        before = self.objects.get(name)
        known = self._heard if before is None else _version(before)
        if _version(found) > known:
            self._put(name, found)

    def forget(self, name: str) -> None:
        """Take in that an object is gone, without waiting for the watch."""
        if name in self.objects:
            self._put(name, {})

    async def wait(self, condition: Callable[[], bool], *, timeout: float) -> bool:
        """Whether the condition came true within `timeout` seconds; it is asked after each change."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._bell.wait()
        return condition()

    async def _list(self) -> None:
        self.take_list(await self._kube.list(self.kind, labels=self._labels, fields=self._fields))
        self.lists += 1
        self.listed.set()
        self._ring()

    def take_list(self, found: Json) -> None:
        """Take in a list: what is not in it is gone, unless it is newer than the list."""
        there = {one["metadata"]["name"]: one for one in found["items"]}
        listed = _version(found)
        for name in self.objects.keys() - there.keys():
            if _version(self.objects[name]) <= listed:  # else it was made after the list was
                self._put(name, {})
        for name, one in there.items():
            before = self.objects.get(name)
            if before is None or _version(one) > _version(before) or _uid(one) != _uid(before):
                self._put(name, one)
        self._heard_up_to(found)

    def _hear(self, event: Json) -> None:
        found: Json = event["object"]
        self._heard_up_to(found)
        if event["type"] == "BOOKMARK":
            return
        name = found["metadata"]["name"]
        if event["type"] == "DELETED":
            if name in self.objects and _version(self.objects[name]) <= _version(found):  # else it was made anew
                self._put(name, {})
        else:
            before = self.objects.get(name)
            if before is None or _version(found) > _version(before) or _uid(found) != _uid(before):
                self._put(name, found)

    def _heard_up_to(self, found: Json) -> None:
        self.version = found["metadata"]["resourceVersion"]
        self._heard = _version(found)

    def _put(self, name: str, now: Json) -> None:
        before = self.objects.get(name)
        if now:
            self.objects[name] = now
        else:
            self.objects.pop(name, None)
        for hear in self._hearers:
            hear(name, now, before)
        self._ring()

    def _ring(self) -> None:
        """Wake whoever waits, to ask anew."""
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()


def _version(found: Json) -> int:
    """Resource versions of one object are comparable numbers (Kubernetes says so since 1.35; etcd always made them)."""
    text = str(found["metadata"]["resourceVersion"])
    return int(text) if text.isdigit() else 0


def _uid(found: Json) -> str:
    return str(found["metadata"].get("uid", ""))
