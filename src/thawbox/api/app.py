"""The application: what stands before the routes, and the routes of every resource.

Rule: a resource is one module of `routes` with `router(service)`; it is named here, and nowhere else.
"""

from __future__ import annotations

import sqlite3

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from thawbox.api.access import Authentication
from thawbox.api.answers import Patience
from thawbox.api.gates import BodyLimit, Capacity
from thawbox.api.idempotency import Idempotency
from thawbox.api.observing import Observed
from thawbox.api.openapi import Application, routes_of
from thawbox.api.problems import tell_error, tell_invalid, tell_unrouted
from thawbox.api.routes import (
    claims,
    code,
    dashboard,
    events,
    exec,
    files,
    metrics,
    node,
    operations,
    placeholders,
    pools,
    sandboxes,
    snapshots,
    templates,
    tokens,
)
from thawbox.api.service import Service
from thawbox.errors import ThawboxError


def create_app(service: Service) -> FastAPI:
    """The application over a service that is open."""
    app = Application(title="thawbox", version="1", docs_url=None, redoc_url=None)
    for kind in (ThawboxError, OSError, sqlite3.Error):
        app.add_exception_handler(kind, tell_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_unrouted)
    app.add_exception_handler(Exception, tell_error)
    # The last added is the outermost: who asks is known before anything else is done for him.
    app.add_middleware(Idempotency, service=service)
    app.add_middleware(BodyLimit)
    app.add_middleware(Authentication, service=service)
    app.add_middleware(Capacity)
    app.add_middleware(Observed, service=service)
    patience = Patience()
    app.include_router(node.router(service))
    app.include_router(sandboxes.router(service))
    app.include_router(snapshots.router(service))
    app.include_router(templates.router(service))
    app.include_router(pools.router(service, patience))
    app.include_router(claims.router(service, patience))
    app.include_router(placeholders.router(service))
    app.include_router(operations.router(service))
    app.include_router(events.router(service))
    app.include_router(tokens.router(service))
    app.include_router(exec.router(service))
    app.include_router(files.router(service))
    app.include_router(code.router(service))
    app.include_router(metrics.router(service))
    app.include_router(dashboard.router(service))
    return app


__all__ = ["create_app", "routes_of"]
