"""What a thread does for a caller, for as long as the caller is there.

Rule 1: whoever goes away is heard at once, and what was done for them is abandoned: the thread ends soon after.
Rule 2: a piece is fetched when the one before it was taken: a slow caller holds up what he asked for, and nobody else.
Rule 3: there is a thread for everybody who was let in; one more is told to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from thawbox.api.answers import HEARTBEAT
from thawbox.api.awaited import Awaited
from thawbox.api.events import HEARTBEAT_SECONDS
from thawbox.errors import Busy, CommandInterrupted

_T = TypeVar("_T")
MOST_FOLLOWED = 500
"""Commands, runs of code and transfers under way at a time, each with a thread of its own: some 100 KiB."""


def _nothing() -> None:
    pass


class Source(Generic[_T]):
    """A blocking generator that is fetched from in threads, and may be closed while one of them is inside.

    `abandon` makes the one inside come out; `end` lets go of everything, also where nothing was ever fetched.
    """

    def __init__(
        self, pieces: Generator[_T], *, abandon: Callable[[], None] = _nothing, end: Callable[[], None] = _nothing
    ) -> None:
        self.abandon = abandon
        self._end = end
        self._pieces = pieces
        self._lock = threading.Lock()
        self._closed = False

    def fetch(self) -> _T | None:
        """The next piece, None after the last."""
        with self._lock:
            return None if self._closed else next(self._pieces, None)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            try:
                self._pieces.close()
            finally:
                self._end()


class Threads:
    """The threads of everybody who follows something."""

    def __init__(self, ending: asyncio.Event, *, most: int = MOST_FOLLOWED, awaited: Awaited | None = None) -> None:
        self._ending = ending
        self._awaited = awaited or Awaited()
        self._most = most
        self._admitted = 0
        self._limiter = CapacityLimiter(
            2 * most
        )  # who is let in never waits for a thread; one more ends what another left

    @contextlib.contextmanager
    def admitted(self) -> Generator[None]:
        """Room for one; raises Busy."""
        if self._admitted >= self._most:
            raise Busy(f"{self._most} commands and transfers are under way")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def do(self, act: Callable[[], _T]) -> _T:
        return await to_thread.run_sync(act, limiter=self._limiter)

    async def do_while_heard(self, receive: Receive, act: Callable[[], _T], abandon: Callable[[], None]) -> _T:
        """Do it, and `abandon` it, in whatever thread it runs, when the caller goes or the service ends.

        A service that stops waits for it until its deadline; CommandInterrupted then.
        """
        try:
            with self._awaited.one():
                async with self.hearing(receive, abandon):
                    return await self.do(act)
        except CommandInterrupted:
            if self._ending.is_set():
                raise CommandInterrupted("the service stopped before the command had ended") from None
            raise

    @contextlib.asynccontextmanager
    async def hearing(self, receive: Receive, gone: Callable[[], None]) -> AsyncGenerator[None]:
        """A block during which `gone` is called when the caller goes, the service ends, or the block fails."""
        watch = asyncio.ensure_future(self._listen(receive, gone))
        try:
            yield
        except BaseException:
            gone()
            raise
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def _listen(self, receive: Receive, gone: Callable[[], None]) -> None:
        ending = asyncio.ensure_future(self._ending.wait())
        hung_up = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait([ending, hung_up], return_when=asyncio.FIRST_COMPLETED)
            gone()
        finally:
            ending.cancel()
            hung_up.cancel()

    async def finish(self, source: Source[_T]) -> None:
        """Abandon and close it, also where the one who waits is being cancelled himself."""
        source.abandon()
        await asyncio.shield(asyncio.ensure_future(self.do(source.close)))


async def _until_disconnect(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


class Followed(Response):
    """A response whose body comes from a thread, piece by piece, and ends with its caller."""

    def __init__(
        self, threads: Threads, source: Source[bytes], *, media_type: str, status_code: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(None, status_code, {"Cache-Control": "no-store", **(headers or {})}, media_type)
        if "content-length" not in (headers or {}):
            del self.headers["content-length"]
        self._threads = threads
        self._source = source
        self._is_stream = media_type == "text/event-stream"
        self._is_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        try:
            with self._threads.admitted():
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async with self._threads.hearing(receive, self._gone):
                    await self._pass_on(send)
        finally:
            await self._threads.finish(self._source)

    def _gone(self) -> None:
        self._is_gone = True
        self._source.abandon()

    async def _pass_on(self, send: Send) -> None:
        while not self._is_gone and (piece := await self._fetched(send)) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not self._is_gone or self._is_stream:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fetched(self, send: Send) -> bytes | None:
        fetching: asyncio.Future[bytes | None] = asyncio.ensure_future(self._threads.do(self._source.fetch))
        while not (await asyncio.wait([fetching], timeout=HEARTBEAT_SECONDS))[0]:
            if self._is_stream:
                await send({"type": "http.response.body", "body": HEARTBEAT.encode(), "more_body": True})
        return fetching.result()
