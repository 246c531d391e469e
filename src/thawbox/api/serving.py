"""`thawbox serve`: the service on a unix socket below THAWBOX_HOME, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

import uvicorn

from thawbox.api.access import PeerProtocol
from thawbox.api.app import create_app
from thawbox.api.service import Service
from thawbox.errors import Unavailable
from thawbox.host.files import locked
from thawbox.node import Node

SOCKET = "serve.sock"
BACKLOG = 512
"""Connections that may wait to be accepted: 200 clients come at once and none is turned away."""
STOP_SECONDS = 10
"""How long requests that are under way may take to end after SIGTERM."""


def serve(node: Node, *, ready: Callable[[Path], None] = lambda _: None) -> None:
    """Keep the node's pools and answer on `serve.sock` until SIGTERM or SIGINT; `ready` is told the socket.

    Raises Unavailable while another process serves this node. Parked and leased clones outlive the end.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(_alone(node))
        service = Service(node)
        config = uvicorn.Config(
            create_app(service), http=PeerProtocol, ws="websockets-sansio", lifespan="off", log_level="warning",
            access_log=False, server_header=False, timeout_graceful_shutdown=STOP_SECONDS, backlog=BACKLOG,
        )  # fmt: skip
        server = _Server(config, service)
        undo.enter_context(_ended_by_signals(server))
        undo.enter_context(service)
        listening = undo.enter_context(_listening(node.settings.home))
        ready(node.settings.home / SOCKET)
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's server, whose loop the service's events are heard in, and whose end ends their streams."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.events.bell.hang_in(asyncio.get_running_loop())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping()
        self._service.ending.set()
        self._service.events.bell.ring()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _alone(node: Node) -> Generator[None]:
    with contextlib.ExitStack() as undo:
        try:
            undo.enter_context(locked(node.settings.home / "serve.lock", timeout=0))
        except Unavailable:
            raise Unavailable("this node is served by another process", remediation="stop that one first") from None
        yield


@contextlib.contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Generator[None]:
    """SIGTERM and SIGINT end the server, also before it runs. It raises them once more after its end, to no effect."""

    def end(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextlib.contextmanager
def _listening(home: Path) -> Generator[socket.socket]:
    """A socket that only its owner can connect to; the one that a dead process left is replaced."""
    (home / SOCKET).unlink(missing_ok=True)
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(f"/proc/self/fd/{directory}/{SOCKET}")  # a socket's path has at most 108 bytes, a home may more
    finally:
        os.umask(mask)
        os.close(directory)
    with listening:
        listening.listen(BACKLOG)
        try:
            yield listening
        finally:
            (home / SOCKET).unlink(missing_ok=True)
