"""`thawbox serve`: the service on a unix socket below THAWBOX_HOME, until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

import uvicorn

from thawbox.api.app import create_app
from thawbox.api.service import Service
from thawbox.errors import Unavailable
from thawbox.host.files import locked
from thawbox.node import Node

SOCKET = "serve.sock"
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
            create_app(service), lifespan="off", log_level="warning", access_log=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )  # fmt: skip
        server = uvicorn.Server(config)
        undo.enter_context(_ended_by_signals(server))
        undo.enter_context(service)
        listening = undo.enter_context(_listening(node.settings.home))
        ready(node.settings.home / SOCKET)
        server.run(sockets=[listening])


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
        listening.listen(128)
        try:
            yield listening
        finally:
            (home / SOCKET).unlink(missing_ok=True)
