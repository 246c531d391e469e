"""Whose thread a route is answered in: what waits in one keeps nobody from looking."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from fastapi import FastAPI

from thawbox.api.answers import Answer, resource
from thawbox.api.crowd import MOST_CHANGES, Crowd
from thawbox.api.problems import tell_error
from thawbox.errors import Busy, ThawboxError
from thawbox.model import SandboxId

MOST = 50
"""More than there are threads for what only looks."""


def test_looks_are_answered_while_as_many_as_may_wait_to_change_something_and_one_more_is_told_to_come_back() -> None:
    begun, goes_on = threading.Semaphore(0), threading.Event()
    routes = resource("/things", "things", most_changing=MOST)

    @routes.post("/{name}", status_code=204)
    def change(name: str) -> None:
        assert name == "one"
        begun.release()
        assert goes_on.wait(60)

    @routes.get("/{name}")
    def look(name: str) -> Answer[dict[str, str]]:
        return Answer({"name": name})

    app = FastAPI()
    app.add_exception_handler(ThawboxError, tell_error)
    app.include_router(routes)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
            changes = [asyncio.ensure_future(client.post("/things/one")) for _ in range(MOST)]
            for _ in range(MOST):
                assert await asyncio.to_thread(begun.acquire, timeout=60)
            refused = await client.post("/things/one")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert (await client.get("/things/one")).json() == {"name": "one"}
            goes_on.set()
            assert {one.status_code for one in await asyncio.gather(*changes)} == {204}
            assert (await client.post("/things/one")).status_code == 204

    try:
        asyncio.run(ask())
    finally:
        goes_on.set()


def test_a_sandbox_has_room_for_a_few_changes_and_each_that_ends_makes_room() -> None:
    crowd, busy = Crowd(), SandboxId("busy")

    def fill(left: int) -> None:
        with crowd.one(busy):
            if left > 1:
                fill(left - 1)
                return
            with pytest.raises(Busy), crowd.one(busy):
                raise AssertionError
            with crowd.one(SandboxId("other")):
                pass

    fill(MOST_CHANGES)
    fill(MOST_CHANGES)
