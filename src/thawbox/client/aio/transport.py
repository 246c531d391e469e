"""Requests to the service: sent again where that is safe, and their problems raised as errors.

Rule 1: what cannot have reached the service is sent again. What may have is sent again only where twice is once: it
changes nothing, or it carries an idempotency key.
Rule 2: the service's own `Retry-After` is heard, a bounded number of times.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import anyio
import httpx

from thawbox.client.places import Place, find_place
from thawbox.client.problems import error_of, problem_of
from thawbox.client.results import JSON
from thawbox.client.sse import EventLines, ServerEvent
from thawbox.errors import Unavailable

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
_LONGEST_PAUSE = 5.0
_SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_LOST = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)
_REFUSED = (429, 503)


class AsyncTransport:
    """One service, over a pool of connections. `timeout` is seconds without a byte; `retries` is times."""

    def __init__(
        self, url: str | None, token: str | None, *, timeout: float | None, retries: int, ca: str | None
    ) -> None:
        self.place: Place = find_place(url, token)
        self._retries = retries
        self.tls: ssl.SSLContext | None = (
            ssl.create_default_context(cafile=ca) if self.place.url.startswith("https:") else None
        )
        carrier = httpx.AsyncHTTPTransport(
            uds=self.place.address if self.place.socket else None, verify=self.tls or False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )  # fmt: skip
        self._http = httpx.AsyncClient(
            transport=carrier, base_url=self.place.url, headers=self.place.headers,
            timeout=httpx.Timeout(timeout, connect=10.0),
        )  # fmt: skip

    async def aclose(self) -> None:
        await self._http.aclose()
        self.place.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Mapping[str, Any] | None = None,
        once: bool = False, patient: bool = True,
    ) -> JSON:  # fmt: skip
        """The JSON object that is answered, empty if none is.

        `once`: it must not be done twice, and no key tells the service of that. Without `patient`, "not now" is raised
        at once: the service has waited itself.
        """
        headers = {} if method in _SAFE or once else {"Idempotency-Key": secrets.token_hex(16)}
        response = await self._sent(
            method, path, again=not once, patient=patient, json=body, params=_query(query), headers=headers
        )
        return problem_of(response.content) if response.content else {}

    async def pages(self, path: str, name: str, query: Mapping[str, Any] | None = None) -> list[JSON]:
        """Every item of a list, page after page."""
        found: list[JSON] = []
        cursor: str | None = None
        while True:
            page = await self.ask("GET", path, query={"limit": 1000, **(query or {}), "cursor": cursor})
            found += page[name]
            cursor = page.get("next")
            if not cursor:
                return found

    async def put(self, path: str, content: bytes | AsyncIterator[bytes], *, query: Mapping[str, Any]) -> JSON:
        """Send bytes; those of an iterator can be sent but once."""
        again = isinstance(content, bytes)
        response = await self._sent("PUT", path, again=again, patient=again, content=content, params=_query(query))
        return problem_of(response.content) if response.content else {}

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[httpx.Response]:  # fmt: skip
        """An answer whose body is read as it comes; sent again only while it cannot have been begun."""
        for left in range(self._retries, -1, -1):
            request = self._http.build_request(
                method, path, json=body, params=_query(query), headers=dict(headers or {}), timeout=_ENDLESS
            )
            try:
                response = await self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not left:
                    raise self._unreachable(error) from None
                await anyio.sleep(_PAUSES[min(self._retries - left, len(_PAUSES) - 1)])
                continue
            except httpx.TransportError as error:
                raise self._lost(error) from None
            break
        else:  # the loop returns or raises
            raise AssertionError
        try:
            if response.status_code >= 400:
                raise error_of(problem_of(await response.aread()), status=response.status_code)
            yield response
        except httpx.TransportError as error:
            raise self._lost(error) from None
        finally:
            await response.aclose()

    async def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None, lines: EventLines | None = None,
    ) -> AsyncGenerator[ServerEvent]:  # fmt: skip
        """Server-sent events, until the service ends them; `lines` knows where to go on after."""
        accept = {"Accept": "text/event-stream", **(headers or {})}
        lines = lines or EventLines()
        async with self.stream(method, path, body, query=query, headers=accept) as response:
            async for piece in response.aiter_bytes():
                for event in lines.take(piece):
                    yield event

    async def _sent(self, method: str, path: str, *, again: bool, patient: bool, **request: Any) -> httpx.Response:
        for tried in range(self._retries + 1):
            is_last = tried == self._retries
            pause = _PAUSES[min(tried, len(_PAUSES) - 1)]
            try:
                response = await self._http.request(method, path, **request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if is_last:
                    raise self._unreachable(error) from None
            except httpx.TransportError as error:
                if is_last or not again or not isinstance(error, _LOST):
                    raise self._lost(error) from None
            else:
                if response.status_code < 400:
                    return response
                if is_last or not patient or response.status_code not in _REFUSED:
                    raise error_of(problem_of(response.content), status=response.status_code)
                pause = _pause_of(response, pause)
            await anyio.sleep(pause)
        raise AssertionError  # the last turn returns or raises

    def _unreachable(self, error: Exception) -> Unavailable:
        remedy = "start `thawbox serve`, or correct THAWBOX_URL"
        return Unavailable(f"no service answers at {self.place.shown}: {error}", remediation=remedy)

    def _lost(self, error: Exception) -> Unavailable:
        what = f"the answer of {self.place.shown} was lost: {type(error).__name__} {error}"
        return Unavailable(what.rstrip(), remediation="look what came of it, then retry")


_ENDLESS = httpx.Timeout(None, connect=10.0)


def _query(query: Mapping[str, Any] | None) -> dict[str, Any]:
    """Without what is not said; truths in the words of JSON."""
    said = {name: value for name, value in (query or {}).items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in said.items()}


def _pause_of(response: httpx.Response, default: float) -> float:
    try:
        return min(_LONGEST_PAUSE, max(0.0, float(response.headers.get("retry-after", default))))
    except ValueError:
        return default
