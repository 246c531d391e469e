"""What Prometheus scrapes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from thawbox.api.access import Reader
from thawbox.api.answers import Media, resource
from thawbox.api.metrics import CONTENT_TYPE
from thawbox.api.service import Service


def router(service: Service) -> APIRouter:
    routes = resource("", "node")

    @routes.get("/metrics", response_class=Response)
    def show_metrics(_: Reader) -> Annotated[Response, Media("text/plain")]:
        """What the node has and what it did, in Prometheus' text format."""
        return Response(service.observing.metrics.text(), media_type=CONTENT_TYPE)

    return routes
