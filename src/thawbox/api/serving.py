"""`thawbox serve`: the service on a unix socket below THAWBOX_HOME, and perhaps on TCP, until a signal ends it.

Rule: SIGTERM drains within a deadline. What is under way ends or is refused; what has not ended by then is left as a
kill would leave it, which loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from anyio import to_thread

from thawbox.api.access import MOST_HEAD_BYTES, PeerProtocol
from thawbox.api.app import create_app
from thawbox.api.logs import set_up_logs
from thawbox.api.observing import Observing
from thawbox.api.service import Service
from thawbox.config import notify_socket
from thawbox.errors import InvalidRequest, Unavailable
from thawbox.host.files import locked
from thawbox.host.notice import notify
from thawbox.node import Node

SOCKET = "serve.sock"
BACKLOG = 512
"""Connections that may wait to be accepted: 200 clients come at once and none is turned away."""
KEEP_ALIVE_SECONDS = 75
"""For which a connection that nobody uses stays open: longer than pools of connections commonly rest."""
GONE_SECONDS = 60
"""After which a connection is given up whose other side confirms nothing of what was sent: terminals are pinged."""
DRAIN_SECONDS = 30.0
"""How long what is under way may take to end after SIGTERM."""
_HANDSHAKE_SECONDS = 10.0
_AFTER_DRAIN = 10.0
"""Seconds for pools and supervision to let go; a restore takes a tenth of one."""
_LOOPBACK = "127.0.0.1"
_FORCED = 1
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the service answers beside its unix socket: `port` None is nowhere, 0 any that is free.

    `secret` opens everything, as the tokens of this home that are an admin's do.

    `host` None is this machine's own loopback.
    """

    host: str | None = None
    port: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Answering:
    """Where it does answer: the unix socket, and the URL, if any."""

    socket: Path
    url: str | None


def serve(
    node: Node, *, listening: Listening = Listening(), drain_timeout: float = DRAIN_SECONDS,
    ready: Callable[[Answering], None] = lambda _: None, observing: Observing | None = None,
) -> None:  # fmt: skip
    """Own the node and answer for it until SIGTERM or SIGINT; `ready` is told where, once all pools are open.

    Raises Unavailable while another process serves this node, InvalidRequest for an address or certificate that cannot
    be used. Sandboxes, parked and leased clones outlive the end.
    """
    home, told = node.settings.home, notify_socket()
    set_up_logs(level=node.settings.log_level, as_json=node.settings.log_format == "json")
    with contextlib.ExitStack() as undo:
        undo.enter_context(_alone(node))
        context = _tls(listening)
        outside = undo.enter_context(_listening_outside(listening))
        service = Service(node, observing=observing)
        config = uvicorn.Config(
            create_app(service), http=PeerProtocol, ws="websockets-sansio", lifespan="off", log_level="warning",
            log_config=None, access_log=False, server_header=False, backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            # a ping unanswered may lie behind input that its program does not read yet: GONE_SECONDS tells who is gone
            ws_ping_timeout=None,
        )  # fmt: skip
        server = _Server(config, service, outside, context, drain_timeout)
        undo.enter_context(_ended_by_signals(server))
        undo.enter_context(service)
        if listening.secret:
            service.tokens.give(listening.secret)
        inside = undo.enter_context(_listening(home))
        undo.callback(notify, told, "STOPPING=1")
        server.when_started = partial(_tell_ready, told, ready, Answering(home / SOCKET, _url(listening, outside)))
        server.run(sockets=[inside])
        _force_end_after(server.seconds_left() + _AFTER_DRAIN)


def _tell_ready(told: str, ready: Callable[[Answering], None], where: Answering) -> None:
    ready(where)
    notify(told, "READY=1", f"STATUS=answers on {where.socket}{f' and {where.url}' if where.url else ''}")


class _Server(uvicorn.Server):
    """uvicorn's server on a unix socket and, with TLS or without, on another; it drains before it closes either."""

    def __init__(
        self, config: uvicorn.Config, service: Service, outside: socket.socket | None, context: ssl.SSLContext | None,
        drain_timeout: float,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._service = service
        self._outside = outside
        self._context = context
        self._drain_timeout = drain_timeout
        self._deadline = 0.0
        self.when_started: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._service.events.bell.hang_in(loop)
        await super().startup(sockets)
        if self._outside is not None:
            handshake = _HANDSHAKE_SECONDS if self._context is not None else None
            server = await loop.create_server(
                self._protocol, sock=self._outside, backlog=BACKLOG, ssl=self._context, ssl_handshake_timeout=handshake
            )
            self.servers.append(server)
        self.when_started()

    def _protocol(self) -> asyncio.Protocol:
        return PeerProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def seconds_left(self) -> float:
        """Until the drain's deadline."""
        return max(0.0, self._deadline - time.monotonic())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, wait for what is under way, then close: all of it before the deadline."""
        self._deadline = time.monotonic() + self._drain_timeout
        _log.info("serve.stopping", under_way=self._service.operations.under_way)
        has_ended = await to_thread.run_sync(partial(self._service.stop, timeout=self._drain_timeout))
        if not has_ended:
            _log.warning("serve.forced", under_way=self._service.operations.under_way)
        await self._service.awaited.wait_none(self.seconds_left())
        self._service.ending.set()
        self._service.events.bell.ring()
        self.config.timeout_graceful_shutdown = max(1, round(self.seconds_left()))
        await super().shutdown(sockets)
        if not has_ended:
            os._exit(_FORCED)  # threads are in the midst of things: closing under them would be worse than a kill


def _force_end_after(seconds: float) -> None:
    """End the process by force if closing pools and supervision takes this long."""
    timer = threading.Timer(seconds, os._exit, (_FORCED,))
    timer.daemon = True
    timer.start()


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


def _tls(listening: Listening) -> ssl.SSLContext | None:
    """TLS 1.2 and newer with the certificate that was named; None without one. Raises InvalidRequest."""
    if listening.certificate is None and listening.key is None:
        return None
    if listening.port is None or listening.certificate is None or listening.key is None:
        raise InvalidRequest("TLS needs a port, a certificate and its key", remediation="give --port, --tls-cert, "
                             "--tls-key")  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listening.certificate, listening.key)
    except (ssl.SSLError, OSError) as error:
        raise InvalidRequest(f"the certificate and its key cannot be used: {error}") from error
    return context


@contextlib.contextmanager
def _listening_outside(listening: Listening) -> Generator[socket.socket | None]:
    if listening.port is None:
        if listening.host is not None:
            raise InvalidRequest(f"{listening.host} is an address without a port", remediation="give --port, too")
        yield None
        return
    host = listening.host or _LOOPBACK
    try:
        family, _, _, _, address = socket.getaddrinfo(host, listening.port, type=socket.SOCK_STREAM)[0]
        opened = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_SECONDS * 1000)  # of all it accepts
    except OSError as error:
        where = f"{host}:{listening.port}"
        raise InvalidRequest(f"cannot listen on {where}: {error.strerror or error}") from error
    with opened:
        yield opened


def _url(listening: Listening, outside: socket.socket | None) -> str | None:
    if outside is None:
        return None
    host, port = outside.getsockname()[:2]
    scheme = "https" if listening.certificate is not None else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
