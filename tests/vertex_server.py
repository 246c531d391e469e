"""A server on the loopback that speaks Vertex AI's REST protocol as far as Context Caching needs it.

Caches expire by a clock that the test moves. Requests without the right token are refused, as Google does.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT, LOCATION, MODEL = "isles", "us-central1", "gemini-2.5-flash"
_PARENT = f"projects/{PROJECT}/locations/{LOCATION}"


class Vertex:
    """What the server knows: `caches` by name, `calls` in order, `now` and the one `token` that it accepts."""

    def __init__(self) -> None:
        self.caches: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.generated: list[dict[str, Any]] = []
        self.now = 1_000_000.0
        self.token = "first"
        self.is_down = False
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.caches = {name: one for name, one in self.caches.items() if one["expires"] > self.now}
        if path == f"{_PARENT}/cachedContents":
            if method == "GET":
                self.calls.append("list")
                return 200, {"cachedContents": [_told(one) for one in self.caches.values()]}
            self.calls.append("create")
            name = f"{_PARENT}/cachedContents/{1000 + len(self.calls)}"
            self.caches[name] = {"name": name, "expires": self.now + _seconds(body["ttl"]), **body}
            return 200, _told(self.caches[name])
        if path.endswith(":generateContent"):
            self.calls.append("generate")
            self.generated.append(body)
            if body["cachedContent"] not in self.caches:
                return _error(404, "Not found: cached content metadata")
            return 200, {"candidates": [{"content": {"role": "model", "parts": [{"text": "It was Lars Dahl."}]}}]}
        if method == "PATCH" and path in self.caches:
            self.calls.append("update")
            self.caches[path]["expires"] = self.now + _seconds(body["ttl"])
            return 200, _told(self.caches[path])
        self.calls.append(f"{method} gone")
        return _error(404, f"Not found: {path}")


def _told(cache: dict[str, Any]) -> dict[str, Any]:
    expires = datetime.datetime.fromtimestamp(cache["expires"], datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"name": cache["name"], "displayName": cache["displayName"], "model": cache["model"], "expireTime": expires}


def _seconds(ttl: str) -> float:
    return float(ttl.removesuffix("s"))


def _error(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"error": {"code": code, "message": message, "status": "NOT_FOUND"}}


@contextmanager
def serving() -> Iterator[Vertex]:
    """A running server, for the block."""
    vertex = Vertex()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            path, _, query = self.path.partition("?")
            with vertex.lock:
                if vertex.is_down:
                    status, said = 503, {"error": {"code": 503, "message": "down", "status": "UNAVAILABLE"}}
                elif self.headers.get("authorization") != f"Bearer {vertex.token}":
                    status, said = 401, {"error": {"code": 401, "message": "who are you?", "status": "UNAUTHENTICATED"}}
                else:
                    status, said = vertex.answer(self.command, re.sub(r"^/v1[a-z0-9]*/", "", path), query, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = handle_request

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        vertex.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield vertex
        finally:
            server.shutdown()
            thread.join()
