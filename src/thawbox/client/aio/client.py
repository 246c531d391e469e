"""The client: where everything of a node is asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import anyio
import msgspec

from thawbox.client.aio.sandbox import AsyncSandbox, AsyncSnapshot
from thawbox.client.aio.transport import AsyncTransport
from thawbox.client.entering import entered
from thawbox.client.problems import error_of
from thawbox.client.results import JSON, Event, encoded, given
from thawbox.client.sse import EventLines
from thawbox.errors import Unavailable
from thawbox.model import Spec


class AsyncClient:
    """A node's service. Default: this node's own socket, or THAWBOX_URL with THAWBOX_TOKEN.

    `timeout` is seconds without a byte of an answer, `retries` how often what is safe to send again is; `ca` a file of
    certificates to trust. A context manager. What the service reports is raised as the class of `thawbox.errors` that
    it was there.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float | None = 900.0, retries: int = 5,
        ca: str | None = None,
    ) -> None:  # fmt: skip
        self._transport = AsyncTransport(url, token, timeout=timeout, retries=retries, ca=ca)
        self.templates = AsyncTemplates(self._transport)
        self.pools = AsyncPools(self._transport)
        self.claims = AsyncClaims(self._transport)
        self.operations = AsyncOperations(self._transport)
        self.tokens = AsyncTokens(self._transport)

    def __repr__(self) -> str:
        return f"<Client of {self._transport.place.shown}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; sandboxes run on."""
        await self._transport.aclose()

    @entered
    async def acquire(
        self, pool: str, *, timeout: float = 30.0, ttl: float | None = None,
        secrets: Mapping[str, bytes | str] | None = None, environment: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:  # fmt: skip
        """A sandbox of a pool, within `timeout` seconds; released at the end of its block, or after `ttl` seconds."""
        body = given(
            pool=pool, timeout=timeout, ttl=ttl, secrets=encoded(secrets), environment=dict(environment or {})
        )  # fmt: skip
        claim = await self._transport.ask("POST", "/v1/claims", body, patient=False)
        return AsyncSandbox(self._transport, {**claim, **claim["sandbox"]}, lease=claim["id"])

    @entered
    async def run(self, spec: Spec | Mapping[str, Any] | Sequence[str] | None = None, **fields: Any) -> AsyncSandbox:
        """A new sandbox, once it is ready: of a Spec, or of its fields (`command=("python3", "agent.py")`)."""
        whole: dict[str, Any] = {}
        if isinstance(spec, Spec):
            whole = msgspec.to_builtins(spec)
        elif isinstance(spec, Mapping):
            whole = dict(spec)
        elif spec is not None:
            whole = {"command": list(spec)}
        body = {"spec": msgspec.to_builtins({**whole, **fields})}
        return AsyncSandbox(self._transport, await self._transport.ask("POST", "/v1/sandboxes", body))

    async def sandboxes(self, *, all: bool = False, labels: Mapping[str, str] | None = None) -> list[AsyncSandbox]:
        """Sandboxes that have processes; with `all` those that ended, too. Oldest first."""
        query = {"all": all, "label": [f"{key}={value}" for key, value in (labels or {}).items()]}
        found = await self._transport.pages("/v1/sandboxes", "sandboxes", query)
        return [AsyncSandbox(self._transport, one) for one in found]

    async def sandbox(self, reference: str) -> AsyncSandbox:
        """The sandbox of this name, id or beginning of an id."""
        return AsyncSandbox(self._transport, await self._transport.ask("GET", f"/v1/sandboxes/{_part(reference)}"))

    async def snapshots(
        self, *, sandbox: str | None = None, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[AsyncSnapshot]:
        """Snapshots, oldest first."""
        label = [f"{key}={value}" for key, value in (labels or {}).items()]
        query = {"sandbox": sandbox, "name": name, "label": label}
        found = await self._transport.pages("/v1/snapshots", "snapshots", query)
        return [AsyncSnapshot(self._transport, one) for one in found]

    async def snapshot(self, reference: str) -> AsyncSnapshot:
        """The snapshot of this name, id or beginning of an id."""
        return AsyncSnapshot(self._transport, await self._transport.ask("GET", f"/v1/snapshots/{_part(reference)}"))

    async def gc(self, *, dry_run: bool = False) -> JSON:
        """Remove what nothing names."""
        return await self._transport.ask("POST", "/v1/snapshots/gc", {"dry_run": dry_run})

    async def push(self, snapshot: str, url: str) -> JSON:
        """Send a snapshot with its chain to a remote store."""
        return await self._transport.ask("POST", "/v1/snapshots/push", {"snapshot": snapshot, "url": url})

    async def pull(self, url: str, snapshot: str) -> JSON:
        """Bring a snapshot with its chain from a remote store."""
        return await self._transport.ask("POST", "/v1/snapshots/pull", {"url": url, "snapshot": snapshot})

    async def events(self, *, after: int | None = None, kinds: Sequence[str] | None = None) -> AsyncGenerator[Event]:
        """What happens on the node, for ever: after a lost connection from where it was; `after` is an event's id."""
        last = "" if after is None else str(after)
        failures = 0
        while True:
            query = {"after": last or None, "kinds": ",".join(kinds) if kinds else None}
            lines = EventLines(last)
            try:
                async for event in self._transport.events("GET", "/v1/events", query=query, lines=lines):
                    failures = 0
                    told = event.content
                    yield Event(int(event.id), told["kind"], told["at"], told.get("subject", {}), told)
            except Unavailable:
                failures += 1
                if failures > _PATIENCE:
                    raise
            last = lines.id
            await anyio.sleep(0.2 * failures)

    async def recoveries(self, *, limit: int = 100) -> list[JSON]:
        """Sandboxes that were brought back, newest first."""
        found: list[JSON] = (await self._transport.ask("GET", "/v1/recoveries", query={"limit": limit}))["recoveries"]
        return found

    async def node(self) -> JSON:
        """What the node is and has."""
        return await self._transport.ask("GET", "/v1/node")

    async def doctor(self, *, fresh: bool = False) -> JSON:
        """What the node can do, found out by doing."""
        return await self._transport.ask("GET", "/v1/doctor", query={"fresh": fresh})

    async def is_ready(self) -> bool:
        """Whether the node takes work on."""
        try:
            await self._transport.ask("GET", "/readyz", patient=False)
        except Unavailable:
            return False
        return True


class AsyncTemplates:
    """What sandboxes are cloned from: `client.templates`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, spec: Spec | Mapping[str, Any]) -> JSON:
        """Boot a spec until it is ready and keep it to make clones from."""
        whole = msgspec.to_builtins(spec if isinstance(spec, Spec) else dict(spec))
        return await self._transport.ask("POST", "/v1/templates", {"name": name, "spec": whole})

    async def list(self) -> list[JSON]:
        return await self._transport.pages("/v1/templates", "templates")

    async def get(self, name: str) -> JSON:
        return await self._transport.ask("GET", f"/v1/templates/{_part(name)}")

    async def rebuild(self, name: str) -> JSON:
        """Boot its spec anew; pools replace their parked clones."""
        return await self._transport.ask("POST", f"/v1/templates/{_part(name)}/rebuild")

    async def remove(self, name: str) -> None:
        await self._transport.ask("DELETE", f"/v1/templates/{_part(name)}")


class AsyncPools:
    """Pools of parked clones: `client.pools`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, template: str, **fields: Any) -> JSON:
        """Make a pool and begin to fill it: `low`, `high`, `limit`, …"""
        return await self._transport.ask("POST", "/v1/pools", {"name": name, "template": template, **fields})

    async def list(self) -> list[JSON]:
        return await self._transport.pages("/v1/pools", "pools")

    async def get(self, name: str) -> JSON:
        return await self._transport.ask("GET", f"/v1/pools/{_part(name)}")

    async def drain(self, name: str, *, timeout: float | None = None) -> JSON:
        """Take no more callers, and wait for the leases that there are."""
        return await self._transport.ask("POST", f"/v1/pools/{_part(name)}/drain", {"timeout": timeout})

    async def roll(self, name: str, *, timeout: float | None = None) -> JSON:
        """Replace every parked clone by one of the template as it is now."""
        return await self._transport.ask("POST", f"/v1/pools/{_part(name)}/roll", {"timeout": timeout})

    async def remove(self, name: str, *, force: bool = False) -> None:
        await self._transport.ask("DELETE", f"/v1/pools/{_part(name)}", query={"force": force})


class AsyncClaims:
    """Sandboxes that pools have given: `client.claims`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> list[JSON]:
        return await self._transport.pages("/v1/claims", "claims")

    async def get(self, claim: str) -> JSON:
        return await self._transport.ask("GET", f"/v1/claims/{_part(claim)}")

    async def sandbox(self, claim: str) -> AsyncSandbox:
        """The sandbox of a claim: one process acquires, another goes on."""
        told = await self.get(claim)
        return AsyncSandbox(self._transport, {**told, **told["sandbox"]}, lease=told["id"])


class AsyncOperations:
    """Long work that its caller did not wait for: `client.operations`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def begin(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> JSON:
        """Ask for long work (a checkpoint, a clone, …) and return its operation at once."""
        headers = {"Prefer": "respond-async"}
        async with self._transport.stream(method, path, body or {}, headers=headers) as response:
            found: JSON = msgspec.json.decode(await response.aread())
            return found

    async def list(self) -> list[JSON]:
        return await self._transport.pages("/v1/operations", "operations")

    async def get(self, operation: str) -> JSON:
        return await self._transport.ask("GET", f"/v1/operations/{_part(operation)}")

    async def wait(self, operation: str) -> JSON:
        """Its result, once it is over. Raises what it failed with."""
        while True:
            told = await self._transport.ask("GET", f"/v1/operations/{_part(operation)}", query={"wait": 60})
            if told["state"] == "succeeded":
                result: JSON = told["result"] or {}
                return result
            if told["state"] in ("failed", "cancelled"):
                problem = told["error"] or {"code": "unavailable.cancelled", "cause": "the operation was cancelled"}
                raise error_of(problem, status=int(problem.get("status", 503)))

    async def cancel(self, operation: str) -> JSON:
        """Cancel it: at once where it has not begun, else at its next safe point."""
        return await self._transport.ask("DELETE", f"/v1/operations/{_part(operation)}")


class AsyncTokens:
    """Who may ask over TCP: `client.tokens`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self, name: str, *, scope: str, limits: Mapping[str, int] | None = None, ttl: float | None = None
    ) -> JSON:
        """Make a token; its text is in `token`, this once. `scope` is read, use or admin."""
        body = given(name=name, scope=scope, limits=dict(limits) if limits else None, ttl=ttl)
        return await self._transport.ask("POST", "/v1/tokens", body)

    async def list(self) -> list[JSON]:
        return await self._transport.pages("/v1/tokens", "tokens")

    async def revoke(self, token: str) -> None:
        await self._transport.ask("DELETE", f"/v1/tokens/{_part(token)}")


_PATIENCE = 20
"""Times in a row that events may be lost before that is raised."""


def _part(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")
