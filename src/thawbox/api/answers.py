"""What routes share in reading and answering: JSON, pages, long work, streams."""

from __future__ import annotations

import base64
import binascii
import inspect
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from thawbox.api.operations import Lane, Progress, waited_for
from thawbox.api.service import Service
from thawbox.api.tokens import Caller
from thawbox.errors import Busy, InvalidRequest

_Result = TypeVar("_Result")
_Shape = TypeVar("_Shape")
_Item = TypeVar("_Item")
MOST_WAITING = 1000
"""Callers that may wait for clones at the same time, each in a thread; one more is told to come back."""
MOST_CHANGING = 256
"""Changes of one resource that may be under way at the same time, each in a thread; one more is told to come back."""
LONGEST_TEXT = 4096
Reference = Annotated[str, Path(max_length=LONGEST_TEXT, description="id, beginning of an id, or name")]
Seconds = Annotated[float, Query(ge=0, le=3600, allow_inf_nan=False)]


class Answer(Response, Generic[_Shape]):
    """JSON of this shape, at once. What the annotation of a route says of it, `/openapi.json` says (`openapi`)."""

    media_type = "application/json"

    def __init__(self, content: _Shape, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


class Carried(Answer[_Shape]):
    """What came of long work, in this shape; or, where the caller would not wait, 202 and the operation."""


@dataclass(frozen=True, slots=True)
class Media:
    """For `Annotated[Response, Media(…)]`: what a route answers that is not JSON. `told` is an event's `data`."""

    media_type: str
    told: Any = None
    statuses: tuple[int, ...] = ()


class Body(BaseModel):
    """What a request may say: nothing that is not named."""

    model_config = ConfigDict(extra="forbid")


class SoundRequest(Request):
    """A request whose JSON holds what every layer below can carry: UTF-8, finite numbers, whole ones of 53 bits."""

    async def json(self) -> Any:
        given = await super().json()
        _check_sound(given)
        return given


class Patience:
    """Threads for callers that wait for clones or locks: none of them keeps anybody else from being answered."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._limiter = CapacityLimiter(most)
        self._most = most

    async def __call__(self, act: Callable[[], _Result]) -> _Result:
        """Do it in a thread; raises Busy when too many wait already."""
        if self._limiter.borrowed_tokens >= self._most:
            raise Busy(f"{self._most} callers wait already")
        return await to_thread.run_sync(act, limiter=self._limiter)


class SoundRoute(APIRoute):
    """A route whose body was looked through, and whose answer is sent as it is.

    What only looks shares FastAPI's threads. What changes something may wait for a lock, so it has those of its
    resource.
    """

    changing: ClassVar[Patience]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if set(options.get("methods") or ()) - {"GET", "HEAD"} and not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_threads(self.changing, endpoint)
        options["response_model"] = None
        if options.get("status_code") == 204:
            options["response_class"] = Response  # nothing is not JSON
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def sound(request: Request) -> Response:
            return await answer(SoundRequest(request.scope, request.receive))

        return sound


def _in_threads(threads: Patience, endpoint: Callable[..., _Result]) -> Callable[..., Coroutine[Any, Any, _Result]]:
    @wraps(endpoint)
    async def answer(**given: Any) -> _Result:
        return await threads(partial(endpoint, **given))

    return answer


def resource(prefix: str, tag: str, *, most_changing: int = MOST_CHANGING) -> APIRouter:
    """The routes of one resource."""

    class Route(SoundRoute):
        changing = Patience(most_changing)

    return APIRouter(prefix=prefix, tags=[tag], route_class=Route)


_LARGEST = 1 << 53


def _check_sound(given: object) -> None:
    if isinstance(given, str):
        given.encode()  # a lone surrogate raises
    elif isinstance(given, int):
        if abs(given) > _LARGEST:
            raise ValueError("a number has more than 53 bits")
    elif isinstance(given, float):
        if not math.isfinite(given):
            raise ValueError("a number is not finite")
    elif isinstance(given, Mapping):
        for key, value in cast("Mapping[object, object]", given).items():
            _check_sound(key)
            _check_sound(value)
    elif isinstance(given, list):
        for value in cast("list[object]", given):
            _check_sound(value)


class Injected(Body):
    """What is told to a restored program and stored nowhere; the secrets' values are base64."""

    secrets: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    def opened(self) -> dict[str, Any]:
        """As `restore` and `clone` take it; raises InvalidRequest."""
        return {"secrets": opened_secrets(self.secrets), "environment": self.environment}


def opened_secrets(secrets: Mapping[str, str]) -> dict[str, bytes]:
    """Secrets from base64; raises InvalidRequest naming the one that is not, never its content."""
    found: dict[str, bytes] = {}
    for name, value in secrets.items():
        try:
            found[name] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"the secret {name[:80]!r} is not base64") from None
    return found


# Pages


class Page:
    """`?limit=` and `?cursor=` of a list."""

    def __init__(self, *, limit: int, cursor: str) -> None:
        self.limit = limit
        self.after = _read_cursor(cursor)

    def of(
        self, items: Sequence[_Item], key: Callable[[_Item], tuple[float | str, str]]
    ) -> tuple[Sequence[_Item], str | None]:
        """Those on the page of these items, and the cursor of the next; `key` is what they are ordered by, and an id.

        Steady while items come.
        """
        ordered = sorted(items, key=lambda one: _comparable(key(one)))  # by what a cursor keeps of it, and no finer
        left = [one for one in ordered if self.after is None or _comparable(key(one)) > self.after]
        shown = left[: self.limit]
        return shown, _write_cursor(key(shown[-1])) if len(left) > self.limit else None


async def _page(
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str, Query(max_length=LONGEST_TEXT, description="`next` of the page before")] = "",
) -> Page:
    return Page(limit=limit, cursor=cursor)


Pages = Annotated[Page, Depends(_page)]
"""The page that is asked for, as a parameter of a route; read without a thread."""


def _comparable(key: tuple[float | str, str]) -> tuple[str, str]:
    first = key[0]
    return (first if isinstance(first, str) else f"{first:020.6f}"), key[1]


def _write_cursor(key: tuple[float | str, str]) -> str:
    return base64.urlsafe_b64encode("\n".join(_comparable(key)).encode()).decode()


def _read_cursor(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    try:
        first, _, second = base64.b64decode(text, altchars=b"-_", validate=True).decode().partition("\n")
    except (binascii.Error, ValueError):
        raise InvalidRequest("the cursor is none of ours", remediation="give `next` of the page before") from None
    return first, second


def read_labels(labels: Iterable[str]) -> dict[str, str]:
    """`k=v` of a query as labels; raises InvalidRequest."""
    found: dict[str, str] = {}
    for label in labels:
        key, separator, value = label.partition("=")
        if not separator:
            raise InvalidRequest(f"{label[:80]!r} is not KEY=VALUE")
        found[key] = value
    return found


Labels = Annotated[list[str], Query(alias="label", description="`key=value`; repeatable: all must match")]

# Long work


async def carry_out(
    service: Service, request: Request, caller: Caller, kind: str, act: Callable[[Progress], _Shape], *, lane: Lane,
    status: int = 200,
) -> Carried[_Shape]:  # fmt: skip
    """Do long work in its lane and answer its result, or with `Prefer: respond-async` 202 and the operation."""
    is_listed = prefers_async(request)
    operation = service.operations.begin(kind, act, lane=lane, owner=caller.token_id, is_listed=is_listed)
    if is_listed:
        where = f"/v1/operations/{operation.id}"
        headers = {"Location": where, "Preference-Applied": "respond-async"}
        return Carried(cast("_Shape", operation.shown()), status_code=202, headers=headers)
    result = await waited_for(operation)
    return Carried(cast("_Shape", result), status_code=status)


def prefers_async(request: Request) -> bool:
    """Whether the caller would rather have an operation to ask for than wait."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(one.split(";")[0].strip() == "respond-async" for one in preferences)


# Streams

EVENT_STREAM = "text/event-stream"


def event_stream(source: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events; proxies are told to pass them on at once."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(source, media_type="text/event-stream", headers=headers)


def sse(event: str, content: str, *, number: int | None = None) -> str:
    """One server-sent event; `content` is JSON, which has no line breaks."""
    identity = f"id: {number}\n" if number is not None else ""
    return f"{identity}event: {event}\ndata: {content}\n\n"


HEARTBEAT = ": alive\n\n"


def to_json(content: object) -> str:
    return msgspec.json.encode(content).decode()
