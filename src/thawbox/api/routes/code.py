"""Python code in an interpreter that lives in the sandbox, with its variables, across snapshots."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field
from starlette.responses import Response

from thawbox.api.access import User
from thawbox.api.answers import EVENT_STREAM, Answer, Body, Media, Reference, resource, sse, to_json
from thawbox.api.following import Followed, Source, Threads
from thawbox.api.problems import describe
from thawbox.api.routes.exec import LONGEST_TIMEOUT, interrupted_event, printed_event, wants_stream
from thawbox.api.service import Service
from thawbox.errors import CommandInterrupted, ThawboxError
from thawbox.host.init_client import Output
from thawbox.sandbox.interpreter import CODE_LIMIT, CodeResult, CodeRun


class Code(Body):
    code: Annotated[str, Field(max_length=CODE_LIMIT)]
    context: Annotated[str, Field(max_length=64)] = "default"
    timeout: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] | None = None


def router(service: Service) -> APIRouter:
    routes = resource("/v1/sandboxes", "code")
    threads = Threads(service.ending, awaited=service.awaited)

    @routes.post("/{ref}/code")
    async def run_code(ref: Reference, wish: Code, request: Request, _: User) -> (
        Answer[CodeResult] | Annotated[Response, Media(EVENT_STREAM)]
    ):  # fmt: skip
        """Run code and answer its outcome; as server-sent events with `Accept: text/event-stream`.

        What the code raises is part of the answer. If the caller goes away, the code is interrupted.
        """
        service.check_ready()
        with threads.admitted():
            run = await threads.do(
                lambda: service.sandbox(ref).run_code(wish.code, context=wish.context, timeout=wish.timeout)
            )  # fmt: skip
            if not wants_stream(request):
                return Answer(await threads.do_while_heard(request.receive, run.result, run.abandon))
        source = Source(_told(run), abandon=run.abandon, end=run.command.close)
        return Followed(threads, source, media_type=EVENT_STREAM)

    @routes.delete("/{ref}/code/{context}", status_code=204)
    async def end_context(ref: Reference, context: Annotated[str, Path(max_length=64)], _: User) -> Response:
        """End an interpreter with all it holds."""
        await threads.do(lambda: service.sandbox(ref).end_code(context))
        return Response(status_code=204)

    return routes


def _told(run: CodeRun) -> Generator[bytes]:
    with run:
        try:
            for event in run.events():
                if isinstance(event, Output):
                    yield printed_event(event)
                else:
                    yield sse("result", to_json(event)).encode()
        except CommandInterrupted as error:
            yield interrupted_event(error)
        except ThawboxError as error:
            yield sse("error", to_json(describe(error))).encode()
