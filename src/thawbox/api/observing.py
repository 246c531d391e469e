"""What looks on while the service works: metrics, logs, traces, and the audit log, told of every request.

Rule 1: the request's step is begun before anything else looks at the request, and knows how it was answered.
Rule 2: a line of the audit log is written before the answer begins; while none can be written, nothing is changed.
Rule 3: of a request only method, route, ids and names are told: never its path as it came, query, headers or body.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thawbox.api.logs import LEASE_ROUTE, StepLog
from thawbox.api.metrics import Metrics
from thawbox.api.problems import REQUEST, describe, problem_of
from thawbox.audit import Entry
from thawbox.errors import ThawboxError
from thawbox.telemetry import Observer, Step, Telemetry, code_of

if TYPE_CHECKING:
    from thawbox.api.service import Service
    from thawbox.api.tokens import Caller
    from thawbox.api.tracing import Tracing
    from thawbox.config import Settings

_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_INTO_A_SANDBOX = ("/files", "/logs", "/terminal")
"""Looking at these is looking at what is in a sandbox, which is audited."""
_REFUSALS = frozenset({401, 403, 429})
_NOT_OURS = frozenset({400, 401, 404})
_FLUSH_SECONDS = 5.0


class Observing:
    """The observers of one service. `telemetry` is the node's too, so that a trace goes on from request to engine."""

    def __init__(self, *, tracing: Tracing | None = None, log: Observer | None = None) -> None:
        self.metrics = Metrics()
        self.tracing = tracing
        observers: list[Observer] = [self.metrics]
        if tracing is not None:
            observers.append(tracing)  # before the log, which tells the trace's id
        if log is not None:
            observers.append(log)
        self.telemetry = Telemetry(*observers)

    def close(self) -> None:
        """Send what has not been sent yet."""
        if self.tracing is not None:
            self.tracing.flush(seconds=_FLUSH_SECONDS)
            self.tracing.close()


def observing_as(settings: Settings, *, node: str) -> Observing:
    """What the settings ask for; OpenTelemetry is imported only for an endpoint."""
    if not settings.otlp_endpoint:
        return Observing(log=StepLog())
    from thawbox.api.tracing import Tracing

    return Observing(tracing=Tracing(settings.otlp_endpoint, node=node), log=StepLog())


class Observed:
    """The outermost layer of the application: each request is a step, and a line of the audit log if it matters."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        method = str(scope.get("method", "WS"))
        with self._service.observing.telemetry.step(REQUEST, method=method, **_trace_headers(scope)) as step:
            try:
                if method not in _LOOKING:
                    self._service.audit.check(at=time.time())
            except ThawboxError as error:
                await problem_of(error)(scope, receive, send)
                return
            begun = time.perf_counter()

            async def answer(message: Message) -> None:
                status = _status_of(message)
                if status:
                    self._answered(scope, step, method, status, (time.perf_counter() - begun) * 1000)
                await send(message)

            try:
                await self._app(scope, receive, answer)
            except Exception as error:  # a defect: whoever asked is told so outside of this layer
                step.note(code=str(describe(error)["code"]))
                self._answered(scope, step, method, 500, (time.perf_counter() - begun) * 1000)
                raise

    def _answered(self, scope: Scope, step: Step, method: str, status: int, ms: float) -> None:
        if "status" in step.fields:  # a WebSocket says more than once that it is over
            return
        route = _route_of(scope)
        step.note(route=route, status=status)
        is_looking = method in _LOOKING and not any(part in route for part in _INTO_A_SANDBOX)
        if (is_looking or route == LEASE_ROUTE) and status not in _REFUSALS:
            return
        caller: Caller | None = scope.get("state", {}).get("caller")
        entry = Entry(
            who=caller.name if caller is not None else "", token=caller.token_id if caller is not None else "",
            via="http", what=f"{method} {route}", subject=_subject_of(scope, status),
            outcome=str(step.fields.get("code", "ok" if status < 400 else f"status {status}")), status=status, ms=ms,
        )  # fmt: skip
        try:
            self._service.audit.write(entry, at=time.time())
        except (OSError, ThawboxError) as error:  # it is done already; the next change is refused
            self._service.observing.telemetry.happened("audit.failed", code=code_of(error))


def _status_of(message: Message) -> int:
    """The status of the message that begins an answer; 0 for any other."""
    kind = message["type"]
    if kind in ("http.response.start", "websocket.http.response.start"):
        return int(message["status"])
    if kind == "websocket.accept":
        return 101
    return 403 if kind == "websocket.close" else 0


def _trace_headers(scope: Scope) -> dict[str, str]:
    return {
        name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS
    }  # fmt: skip


def _subject_of(scope: Scope, status: int) -> dict[str, str]:
    """What the request was about, by parameter; where nothing of that name was found, it may be anything."""
    given: dict[str, object] = scope.get("path_params") or {}
    return {key: "" if status in _NOT_OURS else str(one) for key, one in given.items()}


def _route_of(scope: Scope) -> str:
    """The route that took the request, or would have: as it is written, with its parameters' names."""
    from thawbox.api.app import routes_of  # which makes this layer

    route: Any = scope.get("route")
    if route is None and (app := scope.get("app")) is not None:  # refused before it was looked for
        route = next((one for one in routes_of(app) if one.matches(scope)[0] is Match.FULL), None)
    return str(getattr(route, "path", "")) or "(none)"
