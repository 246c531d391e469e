"""Where the service is: its unix socket, or a URL with a token."""

from __future__ import annotations

import os
from dataclasses import dataclass

from thawbox.config import load_settings
from thawbox.errors import InvalidRequest

SOCKET = "serve.sock"
_LONGEST_SOCKET = 100
"""A unix socket's address has 108 bytes, its end included."""


@dataclass(frozen=True, slots=True)
class Place:
    """A unix socket, or a base URL; and what is shown there."""

    url: str
    socket: str = ""
    token: str = ""
    directory: int = -1
    """An open descriptor of the socket's directory, where its path is too long for an address."""

    @property
    def shown(self) -> str:
        return self.socket or self.url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def address(self) -> str:
        """What to connect the socket to."""
        if self.directory < 0:
            return self.socket
        return f"/proc/self/fd/{self.directory}/{self.socket.rpartition('/')[2]}"

    def close(self) -> None:
        if self.directory >= 0:
            os.close(self.directory)


def find_place(url: str | None, token: str | None) -> Place:
    """The place of `url` (`http://…`, `https://…`, `unix:/path`), else of THAWBOX_URL, else this node's own socket.

    Raises InvalidRequest for what is no such URL.
    """
    settings = load_settings()
    where = url or settings.url
    shown = token or settings.token
    if where.startswith(("http://", "https://")):
        return Place(where.rstrip("/"), token=shown)
    if where and not where.startswith("unix:"):
        raise InvalidRequest(f"{where[:200]} is neither http://, https:// nor unix:", remediation="correct THAWBOX_URL")
    path = where.removeprefix("unix:").removeprefix("//") if where else str(settings.home / SOCKET)
    directory = -1
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        parent = path.rpartition("/")[0] or "/"
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Place("http://thawbox", socket=path, token=shown, directory=directory)
