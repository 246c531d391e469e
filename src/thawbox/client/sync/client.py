# Made by scripts/generate_client of client/aio: change that, not this.
"""The client: where everything of a node is asked for."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec

from thawbox.client.problems import error_of
from thawbox.client.results import JSON, Event, encoded, given
from thawbox.client.sse import EventLines
from thawbox.client.sync.sandbox import Sandbox, Snapshot
from thawbox.client.sync.transport import Transport
from thawbox.errors import Unavailable
from thawbox.model import Spec


class Client:
    """A node's service. Default: this node's own socket, or THAWBOX_URL with THAWBOX_TOKEN.

    `timeout` is seconds without a byte of an answer, `retries` how often what is safe to send again is; `ca` a file of
    certificates to trust. A context manager. What the service reports is raised as the class of `thawbox.errors` that
    it was there.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float | None = 900.0, retries: int = 5,
        ca: str | None = None,
    ) -> None:  # fmt: skip
        self._transport = Transport(url, token, timeout=timeout, retries=retries, ca=ca)
        self.templates = Templates(self._transport)
        self.pools = Pools(self._transport)
        self.claims = Claims(self._transport)
        self.operations = Operations(self._transport)
        self.tokens = Tokens(self._transport)

    def __repr__(self) -> str:
        return f"<Client of {self._transport.place.shown}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; sandboxes run on."""
        self._transport.close()

    def acquire(
        self, pool: str, *, timeout: float = 30.0, ttl: float | None = None,
        secrets: Mapping[str, bytes | str] | None = None, environment: Mapping[str, str] | None = None,
    ) -> Sandbox:  # fmt: skip
        """A sandbox of a pool, within `timeout` seconds; released at the end of its block, or after `ttl` seconds."""
        body = given(
            pool=pool, timeout=timeout, ttl=ttl, secrets=encoded(secrets), environment=dict(environment or {})
        )  # fmt: skip
        claim = self._transport.ask("POST", "/v1/claims", body, patient=False)
        return Sandbox(self._transport, {**claim, **claim["sandbox"]}, lease=claim["id"])

    def run(self, spec: Spec | Mapping[str, Any] | Sequence[str] | None = None, **fields: Any) -> Sandbox:
        """A new sandbox, once it is ready: of a Spec, or of its fields (`command=("python3", "agent.py")`)."""
        whole: dict[str, Any] = {}
        if isinstance(spec, Spec):
            whole = msgspec.to_builtins(spec)
        elif isinstance(spec, Mapping):
            whole = dict(spec)
        elif spec is not None:
            whole = {"command": list(spec)}
        body = {"spec": msgspec.to_builtins({**whole, **fields})}
        return Sandbox(self._transport, self._transport.ask("POST", "/v1/sandboxes", body))

    def sandboxes(self, *, all: bool = False, labels: Mapping[str, str] | None = None) -> list[Sandbox]:
        """Sandboxes that have processes; with `all` those that ended, too. Oldest first."""
        query = {"all": all, "label": [f"{key}={value}" for key, value in (labels or {}).items()]}
        found = self._transport.pages("/v1/sandboxes", "sandboxes", query)
        return [Sandbox(self._transport, one) for one in found]

    def sandbox(self, reference: str) -> Sandbox:
        """The sandbox of this name, id or beginning of an id."""
        return Sandbox(self._transport, self._transport.ask("GET", f"/v1/sandboxes/{_part(reference)}"))

    def snapshots(
        self, *, sandbox: str | None = None, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Snapshot]:
        """Snapshots, oldest first."""
        label = [f"{key}={value}" for key, value in (labels or {}).items()]
        query = {"sandbox": sandbox, "name": name, "label": label}
        found = self._transport.pages("/v1/snapshots", "snapshots", query)
        return [Snapshot(self._transport, one) for one in found]

    def snapshot(self, reference: str) -> Snapshot:
        """The snapshot of this name, id or beginning of an id."""
        return Snapshot(self._transport, self._transport.ask("GET", f"/v1/snapshots/{_part(reference)}"))

    def gc(self, *, dry_run: bool = False) -> JSON:
        """Remove what nothing names."""
        return self._transport.ask("POST", "/v1/snapshots/gc", {"dry_run": dry_run})

    def push(self, snapshot: str, url: str) -> JSON:
        """Send a snapshot with its chain to a remote store."""
        return self._transport.ask("POST", "/v1/snapshots/push", {"snapshot": snapshot, "url": url})

    def pull(self, url: str, snapshot: str) -> JSON:
        """Bring a snapshot with its chain from a remote store."""
        return self._transport.ask("POST", "/v1/snapshots/pull", {"url": url, "snapshot": snapshot})

    def events(self, *, after: int | None = None, kinds: Sequence[str] | None = None) -> Generator[Event]:
        """What happens on the node, for ever: after a lost connection from where it was; `after` is an event's id."""
        last = "" if after is None else str(after)
        failures = 0
        while True:
            query = {"after": last or None, "kinds": ",".join(kinds) if kinds else None}
            lines = EventLines(last)
            try:
                for event in self._transport.events("GET", "/v1/events", query=query, lines=lines):
                    failures = 0
                    told = event.content
                    yield Event(int(event.id), told["kind"], told["at"], told.get("subject", {}), told)
            except Unavailable:
                failures += 1
                if failures > _PATIENCE:
                    raise
            last = lines.id
            time.sleep(0.2 * failures)

    def recoveries(self, *, limit: int = 100) -> list[JSON]:
        """Sandboxes that were brought back, newest first."""
        found: list[JSON] = (self._transport.ask("GET", "/v1/recoveries", query={"limit": limit}))["recoveries"]
        return found

    def node(self) -> JSON:
        """What the node is and has."""
        return self._transport.ask("GET", "/v1/node")

    def doctor(self, *, fresh: bool = False) -> JSON:
        """What the node can do, found out by doing."""
        return self._transport.ask("GET", "/v1/doctor", query={"fresh": fresh})

    def is_ready(self) -> bool:
        """Whether the node takes work on."""
        try:
            self._transport.ask("GET", "/readyz", patient=False)
        except Unavailable:
            return False
        return True


class Templates:
    """What sandboxes are cloned from: `client.templates`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, spec: Spec | Mapping[str, Any]) -> JSON:
        """Boot a spec until it is ready and keep it to make clones from."""
        whole = msgspec.to_builtins(spec if isinstance(spec, Spec) else dict(spec))
        return self._transport.ask("POST", "/v1/templates", {"name": name, "spec": whole})

    def list(self) -> list[JSON]:
        return self._transport.pages("/v1/templates", "templates")

    def get(self, name: str) -> JSON:
        return self._transport.ask("GET", f"/v1/templates/{_part(name)}")

    def rebuild(self, name: str) -> JSON:
        """Boot its spec anew; pools replace their parked clones."""
        return self._transport.ask("POST", f"/v1/templates/{_part(name)}/rebuild")

    def remove(self, name: str) -> None:
        self._transport.ask("DELETE", f"/v1/templates/{_part(name)}")


class Pools:
    """Pools of parked clones: `client.pools`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, template: str, **fields: Any) -> JSON:
        """Make a pool and begin to fill it: `low`, `high`, `limit`, …"""
        return self._transport.ask("POST", "/v1/pools", {"name": name, "template": template, **fields})

    def list(self) -> list[JSON]:
        return self._transport.pages("/v1/pools", "pools")

    def get(self, name: str) -> JSON:
        return self._transport.ask("GET", f"/v1/pools/{_part(name)}")

    def drain(self, name: str, *, timeout: float | None = None) -> JSON:
        """Take no more callers, and wait for the leases that there are."""
        return self._transport.ask("POST", f"/v1/pools/{_part(name)}/drain", {"timeout": timeout})

    def roll(self, name: str, *, timeout: float | None = None) -> JSON:
        """Replace every parked clone by one of the template as it is now."""
        return self._transport.ask("POST", f"/v1/pools/{_part(name)}/roll", {"timeout": timeout})

    def remove(self, name: str, *, force: bool = False) -> None:
        self._transport.ask("DELETE", f"/v1/pools/{_part(name)}", query={"force": force})


class Claims:
    """Sandboxes that pools have given: `client.claims`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[JSON]:
        return self._transport.pages("/v1/claims", "claims")

    def get(self, claim: str) -> JSON:
        return self._transport.ask("GET", f"/v1/claims/{_part(claim)}")

    def sandbox(self, claim: str) -> Sandbox:
        """The sandbox of a claim: one process acquires, another goes on."""
        told = self.get(claim)
        return Sandbox(self._transport, {**told, **told["sandbox"]}, lease=told["id"])


class Operations:
    """Long work that its caller did not wait for: `client.operations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def begin(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> JSON:
        """Ask for long work (a checkpoint, a clone, …) and return its operation at once."""
        headers = {"Prefer": "respond-async"}
        with self._transport.stream(method, path, body or {}, headers=headers) as response:
            found: JSON = msgspec.json.decode(response.read())
            return found

    def list(self) -> list[JSON]:
        return self._transport.pages("/v1/operations", "operations")

    def get(self, operation: str) -> JSON:
        return self._transport.ask("GET", f"/v1/operations/{_part(operation)}")

    def wait(self, operation: str) -> JSON:
        """Its result, once it is over. Raises what it failed with."""
        while True:
            told = self._transport.ask("GET", f"/v1/operations/{_part(operation)}", query={"wait": 60})
            if told["state"] == "succeeded":
                result: JSON = told["result"] or {}
                return result
            if told["state"] in ("failed", "cancelled"):
                problem = told["error"] or {"code": "unavailable.cancelled", "cause": "the operation was cancelled"}
                raise error_of(problem, status=int(problem.get("status", 503)))

    def cancel(self, operation: str) -> JSON:
        """Cancel it: at once where it has not begun, else at its next safe point."""
        return self._transport.ask("DELETE", f"/v1/operations/{_part(operation)}")


class Tokens:
    """Who may ask over TCP: `client.tokens`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, name: str, *, scope: str, limits: Mapping[str, int] | None = None, ttl: float | None = None
    ) -> JSON:
        """Make a token; its text is in `token`, this once. `scope` is read, use or admin."""
        body = given(name=name, scope=scope, limits=dict(limits) if limits else None, ttl=ttl)
        return self._transport.ask("POST", "/v1/tokens", body)

    def list(self) -> list[JSON]:
        return self._transport.pages("/v1/tokens", "tokens")

    def revoke(self, token: str) -> None:
        self._transport.ask("DELETE", f"/v1/tokens/{_part(token)}")


_PATIENCE = 20
"""Times in a row that events may be lost before that is raised."""


def _part(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")
