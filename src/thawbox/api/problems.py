"""The one table from what went wrong to the HTTP status, and how a problem is written (RFC 9457)."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from thawbox.errors import (
    EngineError,
    Incompatible,
    IntegrityError,
    InvalidRequest,
    InvalidTransition,
    NotFound,
    ThawboxError,
    Unavailable,
    Unsupported,
)

HTTP_STATUSES: dict[type[ThawboxError], int] = {
    InvalidRequest: 400,
    InvalidTransition: 409,
    NotFound: 404,
    Unsupported: 501,
    Incompatible: 409,
    Unavailable: 503,
    EngineError: 500,
    IntegrityError: 500,
}
"""One per family, or for a class that differs from its family."""

PROBLEM = "application/problem+json"


def http_status_of(error: ThawboxError) -> int:
    """The HTTP status for an error: that of the nearest of its classes in the table."""
    return next(HTTP_STATUSES[kind] for kind in type(error).__mro__ if kind in HTTP_STATUSES)


async def tell_error(_: Request, error: Exception) -> JSONResponse:
    """One of our own errors as a problem."""
    assert isinstance(error, ThawboxError)  # noqa: S101 - registered for these alone
    return _problem(http_status_of(error), error.code, error.cause, error.remediation, log=error.log)


async def tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """A request that FastAPI could not read."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these alone
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return _problem(400, "invalid", told, "correct the request; /openapi.json describes it")


def _problem(status: int, code: str, cause: str, remediation: str, *, log: str = "") -> JSONResponse:
    told = {"type": "about:blank", "title": code, "status": status, "detail": cause}
    told |= {"code": code, "cause": cause, "remediation": remediation} | ({"log": log} if log else {})
    return JSONResponse(told, status_code=status, media_type=PROBLEM)
