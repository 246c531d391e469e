"""Network namespaces for the peers: made before the clock starts, loopback up, as their users' networks would be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from thawbox.errors import Unsupported
from thawbox.host.proc import run_program
from thawbox.host.reach import connect_in

_WHERE = Path("/run/netns")


class NetworkNamespace:
    """A named network namespace with its loopback up; `close` removes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _WHERE / name
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")

    def connect(self, port: int) -> socket.socket:
        """A connection to a port of its loopback."""
        namespace = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return connect_in(namespace, port, timeout=30)
        finally:
            os.close(namespace)

    def close(self) -> None:
        _ip("netns", "del", self.name)


def _ip(*words: str) -> None:
    done = run_program(["ip", *words], timeout=30)
    if done.status:
        raise Unsupported(f"`ip {' '.join(words)}` failed: {done.stderr.decode(errors='replace').strip()}")
