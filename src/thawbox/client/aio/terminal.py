"""A command on a terminal, over a WebSocket."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from thawbox.client.aio.transport import AsyncTransport
from thawbox.client.problems import error_of, problem_of
from thawbox.errors import CommandInterrupted, Unavailable

_SUBPROTOCOL: Any = "thawbox.v1"


@dataclass(frozen=True, slots=True)
class Printed:
    """What came from the command: `stream` is 1 for stdout and for all of a terminal, 2 for stderr."""

    stream: int
    content: bytes


class AsyncTerminal:
    """A command that is being talked to. Read it until `read` gives None; then `exit_code` is there."""

    def __init__(self, link: websockets.asyncio.client.ClientConnection) -> None:
        self._link = link
        self.exit_code: int | None = None

    async def write(self, content: bytes | str) -> None:
        """Type, or send input."""
        await self._link.send(content.encode() if isinstance(content, str) else content)

    async def close_stdin(self) -> None:
        await self._link.send(json.dumps({"eof": True}))

    async def resize(self, rows: int, cols: int) -> None:
        await self._link.send(json.dumps({"resize": {"rows": rows, "cols": cols}}))

    async def signal(self, number: signal.Signals | str) -> None:
        """Signal the command's process group."""
        word = number if isinstance(number, str) else number.name.removeprefix("SIG")
        await self._link.send(json.dumps({"signal": word}))

    async def read(self) -> Printed | None:
        """What it prints next; None once it has ended.

        Raises CommandInterrupted when the sandbox stopped, Unavailable when the service went away.
        """
        while self.exit_code is None:
            try:
                message = await self._link.recv()
            except ConnectionClosed:
                raise Unavailable("the service went away before the command ended") from None
            if isinstance(message, bytes):
                return Printed(message[0], message[1:])
            self._understand(json.loads(message))
        return None

    async def output(self) -> AsyncGenerator[Printed]:
        """Everything it prints, until it ends."""
        while (printed := await self.read()) is not None:
            yield printed

    def _understand(self, told: Mapping[str, Any]) -> None:
        if "exit" in told:
            self.exit_code = int(told["exit"]["exit_status"])
        elif "interrupted" in told:
            raise CommandInterrupted(f"the command was interrupted: {told['interrupted']}")
        elif "error" in told:
            raise error_of(told["error"], status=int(told["error"].get("status", 500)))


@contextlib.asynccontextmanager
async def open_terminal(transport: AsyncTransport, path: str, wish: Mapping[str, Any]) -> AsyncGenerator[AsyncTerminal]:
    """The terminal for the block; left before its end, the command is killed."""
    place = transport.place
    where = f"ws{place.url.removeprefix('http')}{path}"
    try:
        if place.socket:
            link = await websockets.asyncio.client.unix_connect(
                place.address, where, additional_headers=place.headers, subprotocols=[_SUBPROTOCOL], max_size=None
            )
        else:
            link = await websockets.asyncio.client.connect(
                where, additional_headers=place.headers, subprotocols=[_SUBPROTOCOL], max_size=None, ssl=transport.tls
            )
    except InvalidStatus as refused:
        raise error_of(problem_of(bytes(refused.response.body or b"")), status=refused.response.status_code) from None
    except OSError as error:
        raise Unavailable(f"no service answers at {place.shown}: {error}") from None
    async with link:
        await link.send(json.dumps(wish))
        yield AsyncTerminal(link)
