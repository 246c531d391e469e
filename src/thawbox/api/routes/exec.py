"""Commands in a sandbox: collected, streamed, or on a terminal over a WebSocket."""

from __future__ import annotations

import base64
from collections.abc import Generator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, WebSocket
from pydantic import Field, PrivateAttr, model_validator
from starlette.responses import Response

from thawbox.api import shown
from thawbox.api.access import User
from thawbox.api.answers import EVENT_STREAM, Answer, Body, Media, Reference, resource, sse, to_json
from thawbox.api.following import Followed, Source, Threads
from thawbox.api.service import Service
from thawbox.api.terminals import serve_terminal
from thawbox.api.tokens import Scope
from thawbox.errors import CommandInterrupted, InvalidRequest
from thawbox.host.init_client import ExecRefused, ExecSession, Output
from thawbox.host.init_wire import Stream
from thawbox.sandbox.commands import Command, Ended, collect

COLLECTED = 8 << 20
"""Bytes of each stream that an answer holds; more is read and left out, and `truncated` says so."""
LONGEST_TIMEOUT = 30 * 86_400.0


class Exec(Body):
    argv: Annotated[list[str], Field(min_length=1, max_length=16_384)]
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    stdin: str | None = None
    stdin_base64: str | None = None
    timeout: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] | None = None
    detach: bool = False

    _input: bytes | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _sensible(self) -> Exec:
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("stdin and stdin_base64 exclude each other")
        self._input = None if self.stdin is None else self.stdin.encode()
        if self.stdin_base64 is not None:
            try:
                self._input = base64.b64decode(self.stdin_base64, validate=True)
            except ValueError:
                raise ValueError("stdin_base64 is not base64") from None
        if self.detach and (self.timeout is not None or self._input is not None):
            raise ValueError("a detached command has neither input nor timeout")
        return self

    def input(self) -> bytes | None:
        return self._input


def router(service: Service) -> APIRouter:
    routes = resource("/v1/sandboxes", "exec")
    threads = Threads(service.ending, awaited=service.awaited)

    @routes.post("/{ref}/exec")
    async def run_command(ref: Reference, wish: Exec, request: Request, _: User) -> (
        Answer[shown.CommandResult] | Answer[shown.Session] | Annotated[Response, Media(EVENT_STREAM)]
    ):  # fmt: skip
        """Run a command to its end and answer what it printed; as server-sent events with `Accept: text/event-stream`.

        If the caller goes away, the command is killed. With `detach` it belongs to the sandbox alone, and its output
        to the log.
        """
        if wish.detach:
            return Answer(await threads.do(lambda: _detached(service, ref, wish)))
        service.check_ready()
        with threads.admitted():
            started = await threads.do(lambda: _started(service, ref, wish))
            if isinstance(started, Command) and not wants_stream(request):
                return Answer(
                    await threads.do_while_heard(request.receive, lambda: _collected(started), started.abandon)
                )
        if isinstance(started, Command):
            source = Source(_told(started), abandon=started.abandon, end=started.close)
            return Followed(threads, source, media_type=EVENT_STREAM)
        if wants_stream(request):
            return Followed(threads, Source(_refused(started)), media_type=EVENT_STREAM)
        return Answer(_refusal(started))

    @routes.websocket("/{ref}/terminal", dependencies=[Depends(_demanded_inside)])
    async def open_terminal(websocket: WebSocket, ref: str) -> None:
        """A command on a terminal, or on plain streams."""
        await serve_terminal(service, threads, websocket, ref)

    return routes


async def _demanded_inside() -> None:
    """`serve_terminal` refuses whoever may not: to a WebSocket an exception's answer would not be sent."""


_demanded_inside.demands = Scope.USE.word  # type: ignore[attr-defined]  # for `scope_of`


def wants_stream(request: Request) -> bool:
    """Whether the caller asks for server-sent events."""
    return EVENT_STREAM in request.headers.get("accept", "")


def _started(service: Service, ref: str, wish: Exec) -> Command | ExecRefused:
    given = wish.input()
    command = service.sandbox(ref).command(
        wish.argv, env=wish.env, user=wish.user, workdir=wish.workdir, stdin=given is not None, timeout=wish.timeout
    )
    if isinstance(command, Command) and given is not None:
        command.feed_nowait(given)
        command.close_stdin()
    return command


def _detached(service: Service, ref: str, wish: Exec) -> shown.Session:
    session = service.sandbox(ref).exec(
        wish.argv, env=wish.env, user=wish.user, workdir=wish.workdir, detach=True
    )  # fmt: skip
    if isinstance(session, ExecRefused):
        raise InvalidRequest(f"{wish.argv[0][:200]}: {session.message}", remediation="correct the command")
    assert not isinstance(session, ExecSession)  # noqa: S101 - that comes only without `detach`
    return {"session": session}


def _collected(command: Command) -> shown.CommandResult:
    whole = collect(command, limit=COLLECTED)
    out, err = (printed.decode(errors="replace") for printed in (whole.stdout, whole.stderr))
    return {**ended_shown(whole.ended), "stdout": out, "stderr": err, "truncated": whole.truncated}


def _refusal(refused: ExecRefused) -> shown.CommandResult:
    ended = ended_shown(Ended(refused.exit_status, 0, False, 0.0))
    return {**ended, "stdout": "", "stderr": f"{refused.message}\n", "truncated": False}


def ended_shown(ended: Ended) -> shown.CommandEnded:
    """How a command ended, as JSON."""
    return {
        "exit_status": ended.exit_status, "signal": ended.signal, "timed_out": ended.timed_out,
        "duration_ms": ended.duration_ms,
    }  # fmt: skip


def printed_event(output: Output) -> bytes:
    """What was printed, as an event."""
    name = "stdout" if output.stream is Stream.STDOUT else "stderr"
    return sse(name, to_json({"data": base64.b64encode(output.content).decode()})).encode()


def interrupted_event(error: CommandInterrupted) -> bytes:
    """That the command can be heard no more."""
    return sse("interrupted", to_json({"why": error.cause, "code": error.code})).encode()


def _told(command: Command) -> Generator[bytes]:
    with command:
        yield sse("started", to_json({"session": command.id, "pid": command.pid})).encode()
        try:
            for event in command.events():
                if isinstance(event, Output):
                    yield printed_event(event)
                else:
                    yield sse("exit", to_json(ended_shown(event))).encode()
        except CommandInterrupted as error:
            yield interrupted_event(error)


def _refused(refused: ExecRefused) -> Generator[bytes]:
    yield printed_event(Output(Stream.STDERR, 0, f"{refused.message}\n".encode()))
    yield sse("exit", to_json(ended_shown(Ended(refused.exit_status, 0, False, 0.0)))).encode()
