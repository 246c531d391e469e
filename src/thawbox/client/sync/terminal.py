# Made by scripts/generate_client of client/aio: change that, not this.
"""A command on a terminal, over a WebSocket."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from thawbox.client.problems import error_of, problem_of
from thawbox.client.sync.transport import Transport
from thawbox.errors import CommandInterrupted, Unavailable

_SUBPROTOCOL: Any = "thawbox.v1"


@dataclass(frozen=True, slots=True)
class Printed:
    """What came from the command: `stream` is 1 for stdout and for all of a terminal, 2 for stderr."""

    stream: int
    content: bytes


class Terminal:
    """A command that is being talked to. Read it until `read` gives None; then `exit_code` is there."""

    def __init__(self, link: websockets.sync.client.ClientConnection) -> None:
        self._link = link
        self.exit_code: int | None = None

    def write(self, content: bytes | str) -> None:
        """Type, or send input."""
        self._link.send(content.encode() if isinstance(content, str) else content)

    def close_stdin(self) -> None:
        self._link.send(json.dumps({"eof": True}))

    def resize(self, rows: int, cols: int) -> None:
        self._link.send(json.dumps({"resize": {"rows": rows, "cols": cols}}))

    def signal(self, number: signal.Signals | str) -> None:
        """Signal the command's process group."""
        word = number if isinstance(number, str) else number.name.removeprefix("SIG")
        self._link.send(json.dumps({"signal": word}))

    def read(self) -> Printed | None:
        """What it prints next; None once it has ended.

        Raises CommandInterrupted when the sandbox stopped, Unavailable when the service went away.
        """
        while self.exit_code is None:
            try:
                message = self._link.recv()
            except ConnectionClosed:
                raise Unavailable("the service went away before the command ended") from None
            if isinstance(message, bytes):
                return Printed(message[0], message[1:])
            self._understand(json.loads(message))
        return None

    def output(self) -> Generator[Printed]:
        """Everything it prints, until it ends."""
        while (printed := self.read()) is not None:
            yield printed

    def _understand(self, told: Mapping[str, Any]) -> None:
        if "exit" in told:
            self.exit_code = int(told["exit"]["exit_status"])
        elif "interrupted" in told:
            raise CommandInterrupted(f"the command was interrupted: {told['interrupted']}")
        elif "error" in told:
            raise error_of(told["error"], status=int(told["error"].get("status", 500)))


@contextlib.contextmanager
def open_terminal(transport: Transport, path: str, wish: Mapping[str, Any]) -> Generator[Terminal]:
    """The terminal for the block; left before its end, the command is killed."""
    place = transport.place
    where = f"ws{place.url.removeprefix('http')}{path}"
    try:
        if place.socket:
            link = websockets.sync.client.unix_connect(
                place.address, where, additional_headers=place.headers, subprotocols=[_SUBPROTOCOL], max_size=None
            )
        else:
            link = websockets.sync.client.connect(
                where, additional_headers=place.headers, subprotocols=[_SUBPROTOCOL], max_size=None, ssl=transport.tls
            )
    except InvalidStatus as refused:
        raise error_of(problem_of(bytes(refused.response.body or b"")), status=refused.response.status_code) from None
    except OSError as error:
        raise Unavailable(f"no service answers at {place.shown}: {error}") from None
    with link:
        link.send(json.dumps(wish))
        yield Terminal(link)
