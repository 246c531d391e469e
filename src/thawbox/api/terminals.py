"""A command on a terminal, or on plain streams, over a WebSocket.

First the client says what to run: `{argv, env, user, workdir, tty: {rows, cols} | null}`. Then, from the client: binary
is input, text is `{"resize": {rows, cols}}`, `{"signal": "INT"}` or `{"eof": true}`. From us: text
`{"started": {session, pid}}`; binary: one byte 1 (stdout) or 2 (stderr), then what was printed; last, as text, one of
`{"exit": {exit_status, signal}}`, `{"interrupted": why}`, `{"error": problem}`. A client that goes takes the command
along.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from functools import partial
from typing import Annotated, Any

from fastapi import WebSocket
from pydantic import Field, ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect, WebSocketState

from thawbox.api.answers import Body, to_json
from thawbox.api.following import Source, Threads
from thawbox.api.problems import describe, problem_of
from thawbox.api.service import Service
from thawbox.api.tokens import Caller, Scope
from thawbox.errors import CommandInterrupted, Forbidden, InvalidRequest, ThawboxError, Unauthenticated
from thawbox.host.init_client import ExecRefused, Output
from thawbox.host.init_wire import Terminal
from thawbox.sandbox.commands import Command, Ended

PROTOCOL = "thawbox.v1"
_FIRST_SECONDS = 30.0
_AHEAD = 4 << 20
"""Bytes of input that a command may leave unread before its client has to wait."""
_MESSAGE = 64
"""Bytes that a message takes at the least."""
_Rows = Annotated[int, Field(ge=1, le=65_535)]


class Size(Body):
    rows: _Rows = 24
    cols: _Rows = 80

    def opened(self) -> Terminal:
        return Terminal(self.rows, self.cols)


class Opening(Body):
    argv: Annotated[list[str], Field(min_length=1, max_length=16_384)]
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    tty: Size | None = None


class Said(Body):
    resize: Size | None = None
    signal: str | None = None
    eof: bool = False


async def serve_terminal(service: Service, threads: Threads, websocket: WebSocket, ref: str) -> None:
    """From the client's first word to the command's end."""
    caller: Caller | None = websocket.scope["state"].get("caller")
    if caller is None or caller.scope < Scope.USE:
        refusal = Unauthenticated("the request brings no token") if caller is None else _too_narrow(caller)
        await websocket.send_denial_response(problem_of(refusal))
        return
    offered: list[str] = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    last: dict[str, Any] = {}
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        try:
            with threads.admitted():
                last = await _converse(service, threads, websocket, ref)
        except (ThawboxError, OSError, ValueError) as error:
            known = error if not isinstance(error, ValueError) else InvalidRequest(_words(error))
            last = {"error": describe(known)}
        if websocket.client_state is WebSocketState.CONNECTED and last:
            await websocket.send_text(to_json(last))
            await websocket.close()


def _too_narrow(caller: Caller) -> Forbidden:
    return Forbidden(f"the token {caller.name} has the scope {caller.scope.word}; this needs {Scope.USE.word}")


def _words(error: ValueError) -> str:
    text = str(error.errors(include_url=False)[:3]) if isinstance(error, ValidationError) else str(error)
    return text.encode("utf-8", "backslashreplace").decode()[:1000]


async def _converse(service: Service, threads: Threads, websocket: WebSocket, ref: str) -> dict[str, Any]:
    try:
        first = await asyncio.wait_for(websocket.receive_text(), _FIRST_SECONDS)
    except (TimeoutError, KeyError):
        raise InvalidRequest("the first message does not say what to run") from None
    wish = Opening.model_validate_json(first)
    command = await threads.do(lambda: _started(service, ref, wish))
    if isinstance(command, ExecRefused):
        return {"exit": {"exit_status": command.exit_status, "signal": 0}, "refused": command.message}
    source = Source(command.events(), abandon=command.abandon, end=command.close)
    hearing = asyncio.ensure_future(_hear(threads, websocket, command))
    ending = asyncio.ensure_future(service.ending.wait())
    for task in (hearing, ending):
        task.add_done_callback(lambda _: command.abandon())
    try:
        await websocket.send_text(to_json({"started": {"session": command.id, "pid": command.pid}}))
        return await _tell(threads, websocket, source)
    finally:
        for task in (hearing, ending):
            task.cancel()
        await threads.finish(source)
        await asyncio.wait([hearing, ending])
        if not hearing.cancelled() and isinstance(senseless := hearing.exception(), (ThawboxError, ValueError)):
            raise senseless


def _started(service: Service, ref: str, wish: Opening) -> Command | ExecRefused:
    terminal = wish.tty.opened() if wish.tty is not None else None
    env = {"TERM": "xterm-256color", **wish.env} if terminal is not None else wish.env
    return service.sandbox(ref).command(
        wish.argv, env=env, user=wish.user, workdir=wish.workdir, terminal=terminal, stdin=True
    )  # fmt: skip


async def _tell(threads: Threads, websocket: WebSocket, source: Source[Output | Ended]) -> dict[str, Any]:
    try:
        while (event := await threads.do(source.fetch)) is not None:
            if isinstance(event, Ended):
                return {"exit": {"exit_status": event.exit_status, "signal": event.signal}}
            await websocket.send_bytes(bytes([event.stream]) + event.content)
    except CommandInterrupted as error:
        return {"interrupted": error.cause}
    return {"interrupted": "the service is stopping"}


async def _hear(threads: Threads, websocket: WebSocket, command: Command) -> None:
    """Until the client goes, or says what makes no sense.

    Input that the command does not read waits here, so that what else the client says, and that it goes, is heard
    meanwhile; only beyond `_AHEAD` bytes does the client wait too.
    """
    waiting: deque[bytes | None] = deque()  # None: no more will come
    ahead = 0
    receiving: asyncio.Future[Message] | None = None
    feeding: asyncio.Future[None] | None = None
    try:
        while True:
            if receiving is None and ahead < _AHEAD:
                receiving = asyncio.ensure_future(websocket.receive())
            if feeding is None and waiting:
                ahead -= len(waiting[0] or b"") + _MESSAGE
                feeding = asyncio.ensure_future(threads.do(partial(_feed, command, waiting.popleft())))
            await asyncio.wait([one for one in (receiving, feeding) if one], return_when=asyncio.FIRST_COMPLETED)
            if feeding is not None and feeding.done():
                feeding.result()
                feeding = None
            if receiving is not None and receiving.done():
                message, receiving = receiving.result(), None
                if message["type"] == "websocket.disconnect":
                    return
                said = _obey(command, message)
                is_next = feeding is None and not waiting
                if said != b"" and not (is_next and said is not None and command.feed_nowait(said)):
                    waiting.append(said)
                    ahead += len(said or b"") + _MESSAGE
    finally:
        for task in (receiving, feeding):
            if task is not None:
                task.cancel()


def _feed(command: Command, content: bytes | None) -> None:
    if content is None:
        command.close_stdin()
    else:
        command.feed(content)


def _obey(command: Command, message: Message) -> bytes | None:
    """The input that a message brings: b"" for none, None for its end. What else it says is done at once."""
    content: bytes | None = message.get("bytes")
    if content is not None:
        return content
    said = Said.model_validate_json(message.get("text") or "")
    if said.resize is not None:
        command.resize(said.resize.opened())
    if said.signal is not None:
        try:
            number = signal.Signals[f"SIG{said.signal.upper().removeprefix('SIG')}"]
        except KeyError:
            raise InvalidRequest(f"there is no signal {said.signal[:20]!r}") from None
        command.signal(number)
    return None if said.eof else b""
