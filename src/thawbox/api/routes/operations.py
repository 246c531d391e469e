"""Operations: long work that its caller did not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from thawbox.api import shown
from thawbox.api.access import Reader, User
from thawbox.api.answers import (
    EVENT_STREAM,
    HEARTBEAT,
    Answer,
    Media,
    Pages,
    Reference,
    event_stream,
    resource,
    sse,
    to_json,
)
from thawbox.api.events import HEARTBEAT_SECONDS
from thawbox.api.operations import OVER
from thawbox.api.service import Service
from thawbox.api.tokens import Scope
from thawbox.errors import Forbidden

_OVER = {state.value for state in OVER}


def router(service: Service) -> APIRouter:
    routes = resource("/v1/operations", "operations")

    @routes.get("")
    def list_operations(page: Pages, _: Reader) -> Answer[shown.OperationPage]:
        """Every operation that is remembered, oldest first."""
        found = service.operations.all()
        operations, more = page.of(found, lambda one: (str(one["created_at"]), one["id"]))
        return Answer({"operations": list(operations), "next": more})

    @routes.get("/{operation}")
    async def show_operation(
        operation: Reference, _: Reader, wait: Annotated[float, Query(ge=0, le=300, allow_inf_nan=False)] = 0
    ) -> Answer[shown.Operation]:
        """An operation as it is; with `wait` once it is over, or after so many seconds."""
        return Answer(await service.operations.wait(operation, seconds=wait))

    @routes.get("/{operation}/events")
    async def follow_operation(
        operation: Reference, _: Reader
    ) -> Annotated[Response, Media(EVENT_STREAM, shown.Operation)]:
        """The operation whenever it changes (server-sent), until it is over."""
        service.operations.show(operation)
        return event_stream(_changes(service, operation))

    @routes.delete("/{operation}")
    def cancel_operation(operation: Reference, caller: User) -> Answer[shown.Operation]:
        """Cancel: at once where it has not begun, else at its next safe point. What it had begun is undone."""
        if caller.scope < Scope.ADMIN and service.operations.owner(operation) != caller.token_id:
            raise Forbidden(f"the operation {operation[:40]} was not begun with the token {caller.name}")
        return Answer(service.operations.cancel(operation))

    return routes


async def _changes(service: Service, operation: str) -> AsyncIterator[str]:
    told: shown.Operation | None = None
    while not service.ending.is_set():
        rung = service.events.bell.next_ring()
        now = service.operations.show(operation)
        if now != told:
            told = now
            yield sse("operation", to_json(now))
        if now["state"] in _OVER:
            return
        try:
            await asyncio.wait_for(rung.wait(), HEARTBEAT_SECONDS)
        except TimeoutError:
            yield HEARTBEAT
