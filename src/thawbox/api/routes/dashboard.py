"""The dashboard: files that came with the package, at `/`. It asks the routes of the service, like any other client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from thawbox.api.service import Service
from thawbox.errors import NotFound

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Nothing but our own files, and no text that becomes markup or code: not even our own scripts could make it so.
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, answered 304 while it is the same: after an upgrade no page mixes two versions.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def router(_: Service) -> APIRouter:
    routes = APIRouter(tags=["dashboard"])
    found = _read()

    @routes.get("/", include_in_schema=False)
    def show_dashboard(request: Request) -> Response:
        """The dashboard: a page that watches and operates the node by these routes."""
        return _answer(request, found["index.html"])

    @routes.get("/dashboard/{name}", include_in_schema=False)
    def show_dashboard_file(request: Request, name: str) -> Response:
        """A file of the dashboard."""
        if name not in found:
            raise NotFound(f"the dashboard has no file {name[:80]!r}", remediation="the dashboard is at /")
        return _answer(request, found[name])

    return routes


def _read() -> dict[str, _File]:
    """Every file, once: there are few, they are small, and none can be reached that is not here."""
    folder = files("thawbox.api").joinpath("dashboard")
    contents = {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}
    return {name: _file(name, content) for name, content in contents.items() if _suffix(name) in _TYPES}


def _file(name: str, content: bytes) -> _File:
    return _File(content, _TYPES[_suffix(name)], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
