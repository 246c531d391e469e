"""The `thawbox serve` of this node, if one runs: asked over its socket, with the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from thawbox.config import load_settings
from thawbox.errors import ThawboxError, Unavailable

SOCKET = "serve.sock"


class Served:
    """A connection to the node's service."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def ask(self, method: str, *path: str, body: Mapping[str, object] | None = None, **query: object) -> dict[str, Any]:
        """What the service answers; what it reports as a problem is raised as the error it was there."""
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        target += "?" * bool(query) + "&".join(f"{name}={quote(str(value).lower())}" for name, value in query.items())
        content = None if body is None else json.dumps({key: one for key, one in body.items() if one is not None})
        self._connection.request(method, target, body=content, headers={"Content-Type": "application/json"})
        response = self._connection.getresponse()
        found = response.read()
        answer: dict[str, Any] = json.loads(found) if found else {}
        if response.status >= 400:
            raise _error_of(answer)
        return answer


@contextlib.contextmanager
def served() -> Generator[Served | None]:
    """The running service for the block; None where none runs, and the command does the work itself."""
    try:
        connected = _connected(load_settings().home)
    except (FileNotFoundError, ConnectionRefusedError):
        yield None
        return
    connection = http.client.HTTPConnection("thawbox")
    connection.sock = connected
    with contextlib.closing(connection):
        try:
            yield Served(connection)
        except (ConnectionError, http.client.HTTPException) as error:
            raise Unavailable(f"`thawbox serve` ended before it answered: {type(error).__name__}") from None


def _connected(home: Path) -> socket.socket:
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.connect(f"/proc/self/fd/{directory}/{SOCKET}")
    except OSError:
        connecting.close()
        raise
    finally:
        os.close(directory)
    return connecting


def _error_of(problem: Mapping[str, Any]) -> ThawboxError:
    """The error that a problem tells of, of its own class where it has one."""
    code = str(problem.get("code", ""))
    kinds = [ThawboxError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    chosen = next((kind for kind in kinds if kind.code == code), ThawboxError)
    cause = str(problem.get("cause") or problem.get("detail") or "`thawbox serve` failed")
    return chosen(cause, remediation=str(problem.get("remediation", "")), log=str(problem.get("log", "")))
