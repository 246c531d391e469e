"""Nodes, by HTTP: the only way in which the cluster layer speaks to one."""

from __future__ import annotations

import contextlib
import ssl
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from thawbox.cluster.crds import Json
from thawbox.errors import (
    EngineError,
    Incompatible,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Refused,
    ThawboxError,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    import httpx

_FAMILIES: dict[str, type[ThawboxError]] = {
    "invalid": InvalidRequest, "not_found": NotFound, "unsupported": Unsupported, "incompatible": Incompatible,
    "unavailable": Unavailable, "engine": EngineError, "integrity": IntegrityError,
}  # fmt: skip
NAME = "thawbox-node"
"""What the certificate of a node names: their addresses come and go."""
ACQUIRE_SECONDS = 10.0
LONG_SECONDS = 600.0


class NodeError(EngineError):
    """A node said no; `said` is the code in its own words."""

    code = "engine.node"


class Nodes:
    """Every node by its URL (`http://…`, `https://…`, `unix:///path/of/serve.sock`), its connections kept.

    With `ca` (a file, PEM) a node is trusted over TLS whose certificate it signed for the name `thawbox-node`;
    without, one that the machine's own authorities signed for the address.
    """

    def __init__(self, *, token: str = "", ca: str = "") -> None:
        self._token = token
        self._tls = _trusting(ca) if ca else None
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def acquire(self, url: str, pod: str, *, environment: Json | None = None) -> Json:
        """Let a parked clone run, with this environment given to it.

        Raises NotFound when it is there no longer, Unavailable when nobody answers, InvalidRequest when its programs
        take no environment.
        """
        wish = {"environment": environment} if environment else None
        return await self._ask(url, "POST", f"/v1/placeholders/{quote(pod)}/acquire", wish, timeout=ACQUIRE_SECONDS)

    async def tell_lease(self, url: str, *, until: float) -> list[str]:
        """Let what is leased run until this time of the node's monotonic clock; returns the pods that it has frozen."""
        done = await self._ask(url, "PUT", "/v1/placeholders/lease", {"until": until}, timeout=ACQUIRE_SECONDS)
        fenced: list[str] = done["fenced"]
        return fenced

    async def place(self, url: str, /, **wish: Any) -> Json:
        """Park a clone in a placeholder, or recover a sandbox there: the fields of `Placing`."""
        return await self._ask(url, "POST", "/v1/placeholders", wish, timeout=LONG_SECONDS)

    async def placed(self, url: str) -> list[Json]:
        """What the node's placeholders hold."""
        found: list[Json] = (await self._ask(url, "GET", "/v1/placeholders"))["placeholders"]
        return found

    async def machine(self, url: str) -> Json:
        """The facts that a snapshot made there is bound to."""
        found: Json = (await self._ask(url, "GET", "/v1/placeholders"))["machine"]
        return found

    async def empty(self, url: str, pod: str) -> None:
        await self._ask(url, "DELETE", f"/v1/placeholders/{quote(pod)}", timeout=60)

    async def checkpoint(self, url: str, pod: str, *, to: str) -> Json:
        return await self._ask(
            url, "POST", f"/v1/placeholders/{quote(pod)}/checkpoint", {"url": to}, timeout=LONG_SECONDS
        )

    async def golden(self, url: str, *, name: str, spec: Json, to: str, timeout: float) -> Json:
        """Make a golden snapshot and send it to a store."""
        wish = {"name": name, "spec": spec, "url": to}
        return await self._ask(url, "POST", "/v1/placeholders/golden", wish, timeout=timeout)

    async def drop_golden(self, url: str, name: str) -> None:
        await self._ask(url, "DELETE", f"/v1/placeholders/golden/{quote(name)}", timeout=60)

    async def drop_snapshot(self, url: str, snapshot: str) -> None:
        """Remove a snapshot that was pulled there; one that is not there is as wanted. Raises while it is needed."""
        with contextlib.suppress(NotFound):
            await self._ask(url, "DELETE", f"/v1/snapshots/{quote(snapshot)}", timeout=60)

    async def _ask(self, url: str, method: str, path: str, body: Json | None = None, *, timeout: float = 30) -> Json:
        import httpx

        name = {"sni_hostname": NAME} if self._tls is not None else {}
        try:
            answer = await self._client(url).request(method, path, json=body, timeout=timeout, extensions=name)
        except httpx.HTTPError as error:
            raise Unavailable(f"the node at {url} does not answer {path}: {type(error).__name__} {error}") from error
        if answer.is_success:
            found: Json = answer.json() if answer.content else {}
            return found
        try:
            told: Json = answer.json()
        except ValueError:
            told = {}
        code = str(told.get("code", ""))
        if answer.status_code in (401, 403):
            cause = f"the node at {url} does not take our token: {told.get('cause') or answer.status_code}"
            raise Refused(cause, remediation="give its `serve` (--token-file) and us (--node-token-file) the same")
        family = _FAMILIES.get(code.partition(".")[0], NodeError)
        cause = told.get("cause") or f"the node at {url} answers {answer.status_code} to {path}"
        raise family(f"{cause} ({code})" if code else cause, remediation=str(told.get("remediation", "")))

    def _client(self, url: str) -> httpx.AsyncClient:
        import httpx

        if url not in self._clients:
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            socket = url.removeprefix("unix://") if url.startswith("unix://") else None
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
            transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits, verify=self._tls or socket is None)
            base = "http://node" if socket else url
            self._clients[url] = httpx.AsyncClient(base_url=base, headers=headers, transport=transport)
        return self._clients[url]


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # an SSLError is one, too
        raise InvalidRequest(
            f"the certificate {ca} cannot be used: {error}", remediation="name a file in PEM"
        ) from error
