"""What commands ask of the node, asked of the `thawbox serve` that runs: over its socket, with the standard library.

Every answer is the object that the command prints with --json; `embedded.Embedded` gives the same.

Rule 1: nothing is imported here that a command would have to wait for: no httpx, no FastAPI, no node.
Rule 2: long work is begun as an operation, so that whoever interrupts the command ends the work too.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from thawbox.config import load_settings
from thawbox.errors import InvalidRequest, NotFound, ThawboxError, Unavailable

if TYPE_CHECKING:
    from thawbox.model import Spec
    from thawbox.restart_plan import Policy

SOCKET = "serve.sock"
_PATIENCE = 60
"""Seconds for which one look at an operation waits."""
_GLANCE = 0.2
"""The same, while somebody looks at a progress bar."""
_CREDENTIALS = struct.Struct("=iii")
_OF_A_SANDBOX = (
    "id", "name", "state", "command", "created_at", "address", "parent_snapshot", "labels",
)  # fmt: skip
_OF_A_SNAPSHOT = (
    "id", "names", "kind", "parent", "sandbox", "created_at", "bytes", "labels", "pinned", "expires_at", "used_at",
)  # fmt: skip
_OF_A_POLICY = (
    "restart", "health", "checkpoint_every", "checkpoint_on_pressure", "checkpoint_on_drain", "keep", "spare",
)  # fmt: skip
_OF_A_TEMPLATE = ("name", "snapshot", "command", "bytes", "created_at", "rebuilt_at", "exposures")

Given = Mapping[str, Any]
Tell = Callable[[int, int], None]


class Connection:
    """HTTP over the service's socket. What the service reports as a problem is raised as the error it was there."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def ask(
        self, method: str, *path: str, body: Mapping[str, object] | None = None,
        query: Mapping[str, object] | None = None, prefer: str = "",
    ) -> Given:  # fmt: skip
        """What the service answers; empty where it has nothing to say."""
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode([(key, _as_query(one)) for key, one in query.items()])
        headers = {"Content-Type": "application/json"} | ({"Prefer": prefer} if prefer else {})
        self._connection.request(method, target, body=None if body is None else json.dumps(body), headers=headers)
        response = self._connection.getresponse()
        found = response.read()
        answer: Given = json.loads(found) if found else {}
        if response.status >= 400:
            raise _error_of(answer)
        return answer

    def pages(self, resource: str, **query: object) -> list[Given]:
        """Everything that a list has."""
        found: list[Given] = []
        cursor: str | None = ""
        while cursor is not None:
            more = {"cursor": cursor} if cursor else {}
            page = self.ask("GET", resource, query={"limit": 1000, **query, **more})
            found += page[resource]
            cursor = page["next"]
        return found

    def carry_out(
        self, method: str, *path: str, body: Mapping[str, object] | None = None, tell: Tell | None = None
    ) -> Given:
        """The result of long work. If this is interrupted, so is the work."""
        operation = self.ask(method, *path, body=body, prefer="respond-async")
        try:
            while operation["state"] in ("pending", "running"):
                patience = _PATIENCE if tell is None else _GLANCE
                operation = self.ask("GET", "operations", operation["id"], query={"wait": patience})
                if tell is not None and (progress := operation["progress"]) is not None:
                    tell(progress["done"], progress["total"])
        except (KeyboardInterrupt, SystemExit):
            self._cancel(operation["id"])
            raise
        if operation["error"] is not None:
            raise _error_of(operation["error"])
        result: Given = operation["result"]
        return result

    def _cancel(self, operation: str) -> None:
        """Over a connection of its own: this one is in the middle of an answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ThawboxError), connected() as other:
            if other is not None:
                other.ask("DELETE", "operations", operation)


def _as_query(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def connected() -> Generator[Connection | None]:
    """The running service for the block; None where none runs, and the command does the work itself."""
    try:
        opened = _open_socket(load_settings().home)
    except (FileNotFoundError, ConnectionRefusedError, PermissionError):  # without root the node says what it needs
        yield None
        return
    connection = http.client.HTTPConnection("thawbox")
    connection.sock = opened
    with contextlib.closing(connection):
        try:
            yield Connection(connection)
        except (ConnectionError, http.client.HTTPException) as error:
            raise Unavailable(f"`thawbox serve` ended before it answered: {type(error).__name__}") from None


def _open_socket(home: Path) -> socket.socket:
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        _check_peer(connecting, home)
    except BaseException:
        connecting.close()
        raise
    finally:
        os.close(directory)
    return connecting


def _check_peer(connection: socket.socket, home: Path) -> None:
    """Secrets go over this connection: to root's service, not to whoever could make a socket of that name."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    if uid not in (0, os.geteuid()):
        raise InvalidRequest(
            f"{home / SOCKET} is served by user {uid}, not by root",
            remediation=f"find out who made it; {home} is to be root's alone",
        )


def _error_of(problem: Mapping[str, Any]) -> Exception:
    """The error that a problem tells of, of its own class where it has one."""
    code = str(problem.get("code", ""))
    cause = str(problem.get("cause") or problem.get("detail") or "`thawbox serve` failed")
    if code.startswith("host."):
        number = getattr(errno, code.removeprefix("host.").upper(), None)
        return OSError(cause) if number is None else OSError(number, os.strerror(number))
    kinds = [ThawboxError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    chosen = next((kind for kind in kinds if kind.code == code), ThawboxError)
    return chosen(cause, remediation=str(problem.get("remediation", "")), log=str(problem.get("log", "")))


class Served:
    """The node, as the running service has it: with its warm template servers, its pools and its supervision."""

    is_served = True

    def __init__(self, connection: Connection) -> None:
        self._service = connection

    # --- sandboxes --------------------------------------------------------------------------------------------

    def sandboxes(self, *, show_all: bool) -> list[Given]:
        return [_only(one, _OF_A_SANDBOX) for one in self._service.pages("sandboxes", all=show_all)]

    def inspect(self, name: str) -> Given:
        found = self._service.ask("GET", "sandboxes", name)
        return {key: value for key, value in found.items() if key not in ("owner", "pool")}

    def stats(self, name: str) -> Given:
        return self._service.ask("GET", "sandboxes", name, "stats")

    def preflight(self, name: str) -> Given:
        return self._service.ask("GET", "sandboxes", name, "preflight")

    def run(self, spec: Spec) -> Given:
        return self._service.carry_out("POST", "sandboxes", body={"spec": _plain(spec)})

    def stop(self, name: str, *, timeout: float | None) -> Given:
        return self._service.carry_out("POST", "sandboxes", name, "stop", body={"timeout": timeout})

    def freeze(self, name: str) -> Given:
        return self._service.ask("POST", "sandboxes", name, "freeze")

    def thaw(self, name: str) -> Given:
        return self._service.ask("POST", "sandboxes", name, "thaw")

    def remove(self, name: str, *, force: bool) -> Given:
        found = self._service.ask("GET", "sandboxes", name)
        self._service.ask("DELETE", "sandboxes", found["id"], query={"force": force})
        return {"id": found["id"], "name": found["name"], "state": "removed"}

    def checkpoint(self, name: str, wish: Given) -> Given:
        return self._service.carry_out("POST", "sandboxes", name, "checkpoint", body=wish)

    def restore(self, reference: str, *, secrets: Mapping[str, bytes], environment: Mapping[str, str]) -> Given:
        body = {"secrets": _closed(secrets), "environment": dict(environment)}
        return self._service.carry_out("POST", "snapshots", reference, "restore", body=body)

    def clone(
        self, reference: str, count: int, *, name: str, eager: bool, secrets: Mapping[str, bytes],
        environment: Mapping[str, str], tell: Tell,
    ) -> Given:  # fmt: skip
        body = {
            "count": count, "name": name, "eager": eager, "secrets": _closed(secrets), "environment": dict(environment),
        }  # fmt: skip
        return self._service.carry_out(
            "POST", "snapshots", reference, "clone", body=body, tell=tell if count > 1 else None
        )

    def fork(self, reference: str, count: int, *, name: str, eager: bool, tell: Tell) -> Given:
        body = {"count": count, "name": name, "eager": eager}
        wanted = tell if count > 1 else None
        return self._service.carry_out("POST", "sandboxes", reference, "fork", body=body, tell=wanted)

    def supervise(self, name: str, policy: Policy) -> Given:
        done = self._service.carry_out(
            "PUT", "sandboxes", name, "supervision", body=_only(_plain(policy), _OF_A_POLICY)
        )
        return _only(done, ("id", "name"))

    def leave_alone(self, name: str) -> Given:
        """Supervise a sandbox no longer."""
        found = self._service.ask("GET", "sandboxes", name)
        self._service.ask("DELETE", "sandboxes", found["id"], "supervision")
        return _only(found, ("id", "name"))

    # --- snapshots --------------------------------------------------------------------------------------------

    def snapshots(self, labels: Mapping[str, str]) -> list[Given]:
        found = [_only(one, _OF_A_SNAPSHOT) for one in self._service.pages("snapshots")]
        return [one for one in found if labels.items() <= one["labels"].items()]

    def snapshot(self, reference: str) -> Given:
        found = self._service.ask("GET", "snapshots", reference)
        return {key: value for key, value in found.items() if key != "owner"}

    def chain(self, reference: str) -> Given:
        return self._service.ask("GET", "snapshots", reference, "chain")

    def flatten(self, reference: str, *, name: str) -> Given:
        return self._service.carry_out("POST", "snapshots", reference, "flatten", body={"name": name})

    def verify(self, references: Sequence[str], *, deep: bool, tell: Tell) -> Given:
        """All where none is named, also those whose manifest cannot be read."""
        body = {"snapshots": list(references), "deep": deep}
        return self._service.carry_out("POST", "snapshots", "verify", body=body, tell=tell)

    def remove_snapshots(self, references: Sequence[str], *, cascade: bool) -> list[str]:
        removed: list[str] = []
        for snapshot in [self._service.ask("GET", "snapshots", one)["id"] for one in references]:
            if snapshot not in removed:
                removed += self._service.ask("DELETE", "snapshots", snapshot, query={"cascade": cascade})["removed"]
        return removed

    def collect(self, *, dry_run: bool, budget: int | None) -> Given:
        body = {"dry_run": dry_run, "budget": budget}
        return self._service.carry_out("POST", "snapshots", "gc", body=body)

    def change_snapshot(
        self, reference: str, *, name: str = "", labels: Mapping[str, str | None] | None = None,
        pinned: bool | None = None, ttl: float | None = None, never_expires: bool = False,
    ) -> Given:  # fmt: skip
        change: dict[str, Any] = {"add_names": [name] if name else [], "labels": dict(labels or {}), "pinned": pinned}
        if ttl is not None or never_expires:
            change["ttl"] = ttl
        return self._service.ask("PATCH", "snapshots", reference, body=change)

    # --- templates --------------------------------------------------------------------------------------------

    def create_template(self, name: str, spec: Spec) -> Given:
        made = self._service.carry_out("POST", "templates", body={"name": name, "spec": _plain(spec)})
        return _only(made, _OF_A_TEMPLATE)

    def rebuild_template(self, name: str) -> Given:
        return _only(self._service.carry_out("POST", "templates", name, "rebuild"), _OF_A_TEMPLATE)

    def templates(self) -> list[Given]:
        return self._service.pages("templates")

    def template(self, name: str) -> Given:
        return self._service.ask("GET", "templates", name)

    def remove_template(self, name: str) -> None:
        self._service.ask("DELETE", "templates", name)

    # --- pools ------------------------------------------------------------------------------------------------

    def create_pool(self, name: str, wish: Given) -> Given:
        return self._service.ask("POST", "pools", body={"name": name, **wish})

    def pools(self) -> list[Given]:
        return self._service.pages("pools")

    def pool(self, name: str) -> Given:
        return self._service.ask("GET", "pools", name)

    def acquire(self, name: str, *, timeout: float, ttl: float | None) -> Given:
        return self._service.ask("POST", "pools", name, "leases", body={"timeout": timeout, "ttl": ttl})

    def release(self, reference: str, *, reset: bool) -> Given:
        released = self._lease_of(reference)
        self._service.ask("DELETE", "pools", released["pool"], "leases", released["lease"], query={"reset": reset})
        return released

    def drain(self, name: str, *, timeout: float | None) -> None:
        self._service.carry_out("POST", "pools", name, "drain", body={"timeout": timeout})

    def roll(self, name: str, *, timeout: float | None) -> None:
        self._service.carry_out("POST", "pools", name, "roll", body={"timeout": timeout})

    def remove_pool(self, name: str, *, force: bool) -> None:
        self._service.ask("DELETE", "pools", name, query={"force": force})

    def _lease_of(self, reference: str) -> Given:
        try:
            claim = self._service.ask("GET", "claims", reference)
        except NotFound:
            sandbox = self._service.ask("GET", "sandboxes", reference)
            claims = self._service.pages("claims")
            mine = [one for one in claims if one["sandbox"]["id"] == sandbox["id"]]
            if not mine:
                from thawbox.cli.embedded import not_leased

                raise not_leased(sandbox["name"]) from None
            claim = mine[0]
        return {**claim["sandbox"], "pool": claim["pool"], "lease": claim["id"]}


def _only(found: Given, keys: Sequence[str]) -> Given:
    return {key: found[key] for key in keys}


def _plain(value: object) -> Given:
    """One of our values as JSON has it."""
    import msgspec

    plain: Given = msgspec.to_builtins(value)
    return plain


def _closed(secrets: Mapping[str, bytes]) -> dict[str, str]:
    import base64

    return {name: base64.b64encode(value).decode() for name, value in secrets.items()}
