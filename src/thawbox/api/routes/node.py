"""The node itself: alive, ready, in figures, examined; and the sandboxes it brought back."""

from __future__ import annotations

from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query

from thawbox import views
from thawbox.api import shown
from thawbox.api.access import Reader
from thawbox.api.answers import Answer, Patience, resource
from thawbox.api.service import Service

MOST_EXAMINING = 16
"""Callers that may wait for the doctor: an examination takes seconds, and there is one at a time."""
_ALIVE = 4


def router(service: Service) -> APIRouter:
    routes = resource("", "node")
    alive, examining = CapacityLimiter(_ALIVE), Patience(MOST_EXAMINING)

    @routes.get("/healthz")
    async def health() -> Answer[shown.Alive]:
        """Alive: nothing that it keeps going has ended."""
        await to_thread.run_sync(service.check, limiter=alive)  # threads of its own: told however much is looked at
        return Answer({"status": "ok"})

    @routes.get("/readyz")
    async def readiness() -> Answer[shown.Alive]:
        """Ready: the pools are open, and it is not stopping."""
        service.check_ready()
        return Answer({"status": "ready"})

    @routes.get("/v1/node")
    def show_node(_: Reader) -> Answer[shown.Node]:
        """The node in figures."""
        return Answer(service.facts())

    @routes.get("/v1/doctor")
    async def show_doctor(_: Reader, *, fresh: bool = False) -> Answer[shown.Doctor]:
        """Whether this machine has all that thawbox needs; found out by doing it, and kept for ten minutes."""
        return Answer(await examining(lambda: service.doctor.findings(fresh=fresh)))

    @routes.get("/v1/recoveries")
    def list_recoveries(_: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> (
        Answer[shown.Recoveries]
    ):  # fmt: skip
        """The recoveries that brought sandboxes back, newest first."""
        context = service.node.context
        return Answer({"recoveries": views.recoveries(context, context.journal.all(), limit=limit)})

    return routes
