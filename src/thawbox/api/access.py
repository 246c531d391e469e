"""Who asks, and whether they may: root over the node's own socket, or whoever brings a token.

Rule 1: every request but those to `OPEN` paths is authenticated here, before any route sees it.
Rule 2: what a route demands stands at the route: a parameter `caller: User`.
Rule 3: a browser's request is taken from pages of this node alone (`origins`).
"""

from __future__ import annotations

import socket
import struct
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import h11
from fastapi import Depends
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope
from uvicorn.protocols.http.h11_impl import H11Protocol

from thawbox.api.origins import check_origin
from thawbox.api.problems import problem_of
from thawbox.api.service import Service
from thawbox.api.tokens import LOCAL, Caller, Scope
from thawbox.errors import Forbidden, InvalidRequest, Refused, Unauthenticated

OPEN = frozenset({"/", "/healthz", "/readyz", "/favicon.ico"})
"""Paths that tell nothing of the node; with everything below `OPEN_BELOW`: the dashboard's own files."""
OPEN_BELOW = "/dashboard/"
SUBPROTOCOL = "bearer."
"""A browser cannot send headers with a WebSocket: it sends its token as one more subprotocol."""
_CREDENTIALS = struct.Struct("=iii")
MOST_HEAD_BYTES = 64 << 10
"""Of a request's address and headers."""
_NO_REQUEST = f"send HTTP/1.1, with at most {MOST_HEAD_BYTES >> 10} KiB of address and headers"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as it was when it connected."""

    pid: int
    uid: int


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also tells who is at the other end: `scope["state"]["peer"]`, None over TCP."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.app_state = {**self.app_state, "peer": _peer(transport.get_extra_info("socket"))}

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request and end the connection; uvicorn does so too, but in plain text."""
        answer = problem_of(InvalidRequest(msg.rstrip("."), remediation=_NO_REQUEST))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _peer(connection: socket.socket | None) -> Peer | None:
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return Peer(pid, uid)


class Authentication:
    """`scope["state"]["caller"]` says who asks, or the request is answered 401 or 403 here."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            state = scope.setdefault("state", {})
            state["caller"] = None
            connection = HTTPConnection(scope)
            try:
                caller = state["caller"] = self._caller(connection)
                check_origin(connection, has_token=caller is not LOCAL)
            except Refused as error:
                if not is_open(scope["path"]):
                    await _refuse(scope, receive, send, error)
                    return
        await self._app(scope, receive, send)

    def _caller(self, connection: HTTPConnection) -> Caller:
        given = _token_of(connection)
        if given is not None:
            return self._service.tokens.check(given)
        peer: Peer | None = connection.scope["state"].get("peer")
        if peer is not None and peer.uid == 0:
            return LOCAL
        raise Unauthenticated("the request brings no token")


def is_open(path: str) -> bool:
    """Whether anybody may ask for this path."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def _token_of(connection: HTTPConnection) -> str | None:
    header = connection.headers.get("authorization")
    if header is not None:
        kind, _, token = header.partition(" ")
        return token.strip() if kind.lower() == "bearer" else ""
    if connection.scope["type"] == "websocket":
        for protocol in cast("list[str]", connection.scope.get("subprotocols", [])):
            if protocol.startswith(SUBPROTOCOL):
                return protocol.removeprefix(SUBPROTOCOL)
    return None


async def _refuse(scope: AsgiScope, receive: Receive, send: Send, error: Refused) -> None:
    answer = problem_of(error)
    if scope["type"] == "http":
        await answer(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        start: dict[str, Any] = {"type": "websocket.http.response.start", "status": answer.status_code}
        await send({**start, "headers": answer.raw_headers})
        await send({"type": "websocket.http.response.body", "body": bytes(answer.body)})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})


def needs(scope: Scope) -> Any:
    """For `dependencies=[needs(…)]` of a route or router: Forbidden when the caller's scope is narrower."""
    return Depends(_DEMANDS[scope])


def scope_of(route: BaseRoute) -> str:
    """What a route demands of its caller: the word of a scope, or `open`."""
    demands = route.dependant.dependencies if isinstance(route, (APIRoute, APIWebSocketRoute)) else []
    found = [word for one in demands if (word := getattr(one.call, "demands", None)) is not None]
    return str(found[0]) if found else "open"


def _demand(scope: Scope) -> Callable[[HTTPConnection], Awaitable[Caller]]:
    async def demanded(connection: HTTPConnection) -> Caller:
        caller: Caller | None = connection.scope["state"]["caller"]
        if caller is None:
            raise Unauthenticated("the request brings no token")
        if caller.scope < scope:
            raise Forbidden(f"the token {caller.name} has the scope {caller.scope.word}; this needs {scope.word}")
        return caller

    demanded.demands = scope.word  # type: ignore[attr-defined]  # for `scope_of`
    return demanded


_DEMANDS = {scope: _demand(scope) for scope in Scope}
Reader = Annotated[Caller, Depends(_DEMANDS[Scope.READ])]
User = Annotated[Caller, Depends(_DEMANDS[Scope.USE])]
Admin = Annotated[Caller, Depends(_DEMANDS[Scope.ADMIN])]
"""The caller, as a parameter of a route that demands at least this scope."""
