"""What stands before every route: how many requests are answered at a time, and how long a body may be."""

from __future__ import annotations

import contextlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thawbox.api.problems import problem_of
from thawbox.errors import Busy, TooLarge

MOST_REQUESTS = 2000
"""Under way at a time, streams included: each costs some 100 KiB. One more is told to come back."""
LONGEST_BODY = 32 << 20
"""Bytes of a JSON body; what is streamed into a sandbox (`…/files`) has no limit here."""
_STREAMED = re.compile(r"/v1/sandboxes/[^/]+/files(/archive)?")


class Capacity:
    """Answers 503 with Retry-After at once where there is too much to do already."""

    def __init__(self, app: ASGIApp, *, most: int = MOST_REQUESTS) -> None:
        self._app = app
        self._most = most
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._most:
            await problem_of(Busy(f"{self._most} requests are under way"))(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


class BodyLimit:
    """Answers 413 to a body that is too long, by its word or by its length."""

    def __init__(self, app: ASGIApp, *, longest: int = LONGEST_BODY) -> None:
        self._app = app
        self._longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "PUT" and _STREAMED.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._longest:
            await problem_of(self._too_large())(scope, receive, send)
            return
        received = 0
        is_too_large = False

        async def counted() -> Message:
            nonlocal received, is_too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._longest:
                is_too_large = True
                raise self._too_large()
            return message

        async def unless_too_large(message: Message) -> None:
            if not is_too_large:  # else what is said of a body that could not be read is not what was wrong with it
                await send(message)

        with contextlib.suppress(TooLarge):
            await self._app(scope, counted, unless_too_large)
        if is_too_large:
            await problem_of(self._too_large())(scope, receive, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._longest} bytes")
