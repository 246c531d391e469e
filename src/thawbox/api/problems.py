"""The one table from what went wrong to the HTTP status, and how a problem is written (RFC 9457).

Rule: what a caller could have put right is never a 5xx; 500 says that the node, CRIU or the disk failed.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from thawbox.errors import (
    EngineError,
    Forbidden,
    HookFailed,
    IdempotencyConflict,
    Incompatible,
    IntegrityError,
    InvalidRequest,
    InvalidTransition,
    LimitReached,
    NoSpace,
    NotFound,
    StartFailed,
    ThawboxError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from thawbox.telemetry import current_step

if TYPE_CHECKING:
    from thawbox.api import shown

HTTP_STATUSES: dict[type[ThawboxError], int] = {
    InvalidRequest: 400,
    InvalidTransition: 409,
    IdempotencyConflict: 409,
    Unauthenticated: 401,
    Forbidden: 403,
    TooLarge: 413,
    NotFound: 404,
    Unsupported: 422,
    Incompatible: 409,
    Unavailable: 503,
    LimitReached: 429,
    NoSpace: 507,
    EngineError: 500,
    StartFailed: 422,  # nearly always the program: it is not there, or was never ready
    HookFailed: 422,  # the program's own hook
    IntegrityError: 500,
}
"""One per family, or for a class that differs from its family."""

REQUEST = "http.request"
"""The step that a request is."""
PROBLEM = "application/problem+json"
RETRY_SECONDS = 1
"""What `Retry-After` says: a clone is parked, a queue is shorter, a stopping node is back within about this."""
_DISK_FULL = {errno.ENOSPC: 507, errno.EDQUOT: 507}
_log = structlog.get_logger()


def note_failure(code: str) -> None:
    """Let the request's step know why it is answered with a problem."""
    step = current_step()
    while step is not None and step.name != REQUEST:
        step = step.parent
    if step is not None:
        step.note(code=code)


def http_status_of(error: ThawboxError) -> int:
    """The HTTP status for an error: that of the nearest of its classes in the table."""
    return next((HTTP_STATUSES[kind] for kind in type(error).__mro__ if kind in HTTP_STATUSES), 500)


def problem_of(error: BaseException) -> JSONResponse:
    """The answer to whoever asked for what went wrong, whatever it was."""
    told = describe(error)
    note_failure(told["code"])
    status = told["status"]
    headers: dict[str, str] = {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="thawbox"'
    return JSONResponse(told, status_code=status, media_type=PROBLEM, headers=headers)


def describe(error: BaseException) -> shown.Problem:
    """A problem as JSON: `type, title, status, detail`, and our own `code, cause, remediation` and perhaps `log`."""
    if isinstance(error, ThawboxError):
        return _problem(http_status_of(error), error.code, error.cause, error.remediation, log=error.log)
    if isinstance(error, sqlite3.Error):
        return _problem(503, "host.records", f"the node's records could not be used: {error}", "retry")
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "other").lower()
        words = os.strerror(error.errno) if error.errno else str(error)
        status = _DISK_FULL.get(error.errno or 0, 500)
        return _problem(status, f"host.{name}", words, "look at the node: `thawbox doctor`")
    return _problem(500, "defect", f"unexpected {type(error).__name__}", "a defect of thawbox: the node's log has more")


async def tell_error(_: Request, error: Exception) -> JSONResponse:
    """One of our own errors, or of the host's, as a problem."""
    if not isinstance(error, ThawboxError):
        _log.error("request.failed", error=repr(error), exc_info=error)
    return problem_of(error)


async def tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """A request that FastAPI could not read."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these alone
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10])
    told = told.encode("utf-8", "backslashreplace").decode()
    return _as_response(400, "invalid", told[:2000], "correct the request; /openapi.json describes it")


async def tell_unrouted(_: Request, error: Exception) -> JSONResponse:
    """A path or method that there is not."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these alone
    codes = {404: "not_found.route", 405: "invalid.method"}
    code = codes.get(error.status_code, "invalid")
    remedy = "see /openapi.json for the routes"
    return _as_response(error.status_code, code, str(error.detail), remedy, headers=error.headers)


def out_of_range(size: int) -> JSONResponse:
    """None of the bytes that were asked for are in a file of this size."""
    remedy = f"ask for bytes before {size}"
    headers = {"Content-Range": f"bytes */{size}"}
    return _as_response(416, "invalid.range", f"the file has {size} bytes", remedy, headers=headers)


def _as_response(
    status: int, code: str, cause: str, remediation: str, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    told = _problem(status, code, cause, remediation)
    note_failure(code)
    return JSONResponse(told, status_code=status, media_type=PROBLEM, headers=dict(headers or {}))


_LONGEST_CAUSE = 2000
"""Characters: a cause may repeat what was asked for, and that may be long."""


def _problem(status: int, code: str, cause: str, remediation: str, *, log: str = "") -> shown.Problem:
    if len(cause) > _LONGEST_CAUSE:
        cause = cause[: _LONGEST_CAUSE - 1] + "…"
    told: shown.Problem = {
        "type": "about:blank", "title": code, "status": status, "detail": cause, "code": code, "cause": cause,
        "remediation": remediation,
    }  # fmt: skip
    if log:
        told["log"] = log
    return told
