"""The stream of what happens on the node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from thawbox.api import shown
from thawbox.api.access import Reader
from thawbox.api.answers import EVENT_STREAM, HEARTBEAT, Media, event_stream, resource, sse
from thawbox.api.service import Service

_Number = Annotated[int | None, Query(ge=0, le=1 << 53, description="go on after the event of this number")]


def router(service: Service) -> APIRouter:
    routes = resource("/v1/events", "events")

    @routes.get("")
    async def follow_events(
        _: Reader, after: _Number = None,
        kinds: Annotated[str, Query(max_length=1000, description="comma-separated kinds, or `sandbox.`")] = "",
        last_event_id: Annotated[str, Header(max_length=20)] = "",
    ) -> Annotated[Response, Media(EVENT_STREAM, shown.Event)]:  # fmt: skip
        """Events as they happen (server-sent). With `Last-Event-ID` or `after` from there on, none lost or doubled."""
        resumed = last_event_id.strip()
        place = int(resumed) if resumed.isascii() and resumed.isdigit() else after
        wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
        return event_stream(_told(service, place, wanted))

    return routes


async def _told(service: Service, after: int | None, wanted: list[str]) -> AsyncIterator[str]:
    begin = service.events.last if after is None else after
    yield f"id: {begin}\n\n"  # so that the caller knows at once that it listens, and from where on
    async for event in service.events.follow(after=begin, wanted=wanted, until=service.ending):
        yield HEARTBEAT if event is None else sse(event.kind, event.content, number=event.id)
