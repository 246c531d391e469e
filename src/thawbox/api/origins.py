"""Which pages a browser may ask for: the node's own. A page of elsewhere brings no token, but may reach the door.

A caller without a token is whoever can connect to the unix socket. Where that is forwarded (`ssh -L`, a proxy), any
page in a browser beside it can send requests there, and open WebSockets, which no same-origin policy holds back.

Rule 1: what changes something, and every WebSocket, comes from a page of this very host, or from no page.
Rule 2: a caller without a token asks for a host that no foreign page can have as its own (DNS rebinding): an address,
or a name without a dot.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from thawbox.errors import Forbidden

_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})


def check_origin(connection: HTTPConnection, *, has_token: bool) -> None:
    """Raise Forbidden for what a page of elsewhere asks for."""
    host = connection.headers.get("host", "")
    if not has_token and not _is_local_name(host):
        raise Forbidden(
            f"a request without a token asks for the host {host[:80]!r}",
            remediation="bring a token, or ask for localhost",
        )
    origin = connection.headers.get("origin")
    if origin is None or (connection.scope["type"] == "http" and connection.scope["method"] in _LOOKING):
        return
    if _host_of(origin) != host.lower():
        raise Forbidden(
            f"a page of {origin[:80]!r} asks for this",
            remediation="pages of the node alone may; a proxy must keep `Host`",
        )


def _host_of(origin: str) -> str | None:
    """Host and port as the browser also writes them into `Host`; None for an opaque origin (`null`)."""
    try:
        found = urlsplit(origin)
    except ValueError:
        return None
    return found.netloc.lower() if found.scheme in ("http", "https") and found.netloc else None


def _is_local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name.removesuffix(".localhost")
    return True
