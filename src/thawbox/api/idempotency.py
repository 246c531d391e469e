"""`Idempotency-Key`: a POST that is sent again is answered as the first time, and done once.

Rule 1: an answer is in the book before it is sent, so whoever saw it sees it again.
Rule 2: an answer that says "not now", "not here" or that the node failed is not kept: the same may succeed later.
Rule 3: an answer that is never to be stored (`Cache-Control: no-store`: a token's text; what a program in a sandbox
printed) is remembered, not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thawbox.api.problems import problem_of
from thawbox.api.service import Service
from thawbox.api.tokens import Caller
from thawbox.errors import IdempotencyConflict, InvalidRequest

KEPT_SECONDS = 24 * 3600.0
LONGEST_KEY = 255
LONGEST_ANSWER = 1 << 20
"""Bytes of an answer that is kept; of a longer one only that it was given."""
_FROM_A_SANDBOX = ("/exec", "/code")
"""Ends of paths whose answers hold what programs printed."""
_SWEEP_EVERY = 200
_NOT_KEPT = frozenset({401, 403, 404, 408, 413, 429})


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request with a key: whose it is, and its content's digest."""

    whose: str
    key: str
    digest: str
    is_of_a_program: bool = False


@dataclass(slots=True)
class _Answer:
    """What a route sends, kept while it passes."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    body: bytearray | None = field(default_factory=bytearray)

    def hear(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
            if "no-store" in dict(self.headers).get("cache-control", ""):
                self.body = None
        elif message["type"] == "http.response.body" and self.body is not None:
            self.body.extend(message.get("body", b""))
            if len(self.body) > LONGEST_ANSWER:
                self.body = None


class Idempotency:
    """The layer that knows the keys: by caller, method and path."""

    def __init__(self, app: ASGIApp, *, service: Service, now: Callable[[], float] = time.time) -> None:
        self._app = app
        self._service = service
        self._now = now
        self._under_way: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._kept = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        caller: Caller | None = scope.get("state", {}).get("caller")
        if key is None or caller is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
            error = InvalidRequest(f"an idempotency key is 1 to {LONGEST_KEY} printable ASCII characters")
            await problem_of(error)(scope, receive, send)
            return
        body = await _whole_body(receive)
        if body is None:
            return  # the caller is gone, and what he wanted was never said
        digest = hashlib.sha256(scope["query_string"] + b"\n" + body).hexdigest()
        path = hashlib.sha256(scope["path"].encode("utf-8", "surrogateescape")).hexdigest()  # it may hold anything
        asked = _Asked(f"{caller.key} POST {path}", key, digest, scope["path"].endswith(_FROM_A_SANDBOX))
        async with self._alone(asked.whose, key):
            again = self._answer_to(asked)
            if again is not None:
                await again(scope, receive, send)
            else:
                await self._app(scope, _told_again(body, receive), self._hearing(asked, send))

    @asynccontextmanager
    async def _alone(self, whose: str, key: str) -> AsyncGenerator[None]:
        """One request of a key at a time: the others wait for its answer."""
        lock, users = self._under_way.get((whose, key), (asyncio.Lock(), 0))
        self._under_way[whose, key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._under_way.pop((whose, key))
            if users > 1:
                self._under_way[whose, key] = (lock, users - 1)

    def _answer_to(self, asked: _Asked) -> Response | None:
        """What was answered before, or why that cannot be given again; None if nothing was."""
        rows = self._service.book.rows(
            "SELECT request, status, headers, body FROM answers WHERE caller = ? AND key = ? AND at > ?",
            asked.whose, asked.key, self._now() - KEPT_SECONDS,
        )  # fmt: skip
        if not rows:
            return None
        first, status, headers, body = rows[0]
        if first != asked.digest:
            return problem_of(IdempotencyConflict(f"the idempotency key {asked.key!r} was used for another request"))
        if body is None:
            cause = "the request was carried out; its answer is not kept, so it cannot be given again"
            return problem_of(IdempotencyConflict(cause, remediation="look what there is"))
        again = Response(bytes(body), status_code=status)
        told = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(headers)]
        again.raw_headers = [*told, (b"idempotency-replayed", b"true")]
        return again

    def _hearing(self, asked: _Asked, send: Send) -> Send:
        """A `send` that keeps what it passes on."""
        answer = _Answer()
        held: list[Message] = []

        async def heard(message: Message) -> None:
            answer.hear(message)
            held.append(message)
            if message["type"] == "http.response.start":
                return
            if not message.get("more_body", False):  # an answer in one piece is kept before any of it is sent
                self._keep(asked, answer)
            for one in held:
                await send(one)
            held.clear()

        return heard

    def _keep(self, asked: _Asked, answer: _Answer) -> None:
        if answer.status >= 500 or answer.status in _NOT_KEPT:
            return
        body = None if answer.body is None or asked.is_of_a_program else bytes(answer.body)
        values = (asked.whose, asked.key, asked.digest, self._now(), answer.status, json.dumps(answer.headers), body)
        with self._service.book.change() as sql:
            sql.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            if self._kept % _SWEEP_EVERY == 0:
                sql.execute("DELETE FROM answers WHERE at <= ?", (self._now() - KEPT_SECONDS,))
        self._kept += 1


async def _whole_body(receive: Receive) -> bytes | None:
    """The request's body; None if its sender went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _told_again(body: bytes, receive: Receive) -> Receive:
    is_told = False

    async def told() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return told
