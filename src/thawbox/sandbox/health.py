"""Whether a running sandbox is well: one asking of its probe, which ends in its time also when nobody answers."""

from __future__ import annotations

import http.client
import signal
import socket
import time
import urllib.parse

from thawbox.errors import NotFound, Unavailable
from thawbox.host.init_client import ExecSession, Exited, Interrupted, Output
from thawbox.host.init_wire import ExecRequest
from thawbox.host.reach import connect_within
from thawbox.model import Health
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link


def ask_health(context: Context, record: Record, health: Health, *, reconnect: bool = True) -> str:
    """What is wrong with the sandbox, in words; empty if it is healthy. Takes `health.timeout` seconds or little more.

    The caller sees to it that the sandbox is neither frozen nor being dumped. Without `reconnect` a command that loses
    its connection is over: for whoever holds the sandbox's lock, so that only its end can be the reason.
    """
    kind, _, rest = health.probe.partition(":")
    try:
        if kind == "tcp":
            connect_within(record.keeper_pid, int(rest), timeout=health.timeout).close()
            return ""
        if kind == "http":
            return _ask_http(record, health)
        return _ask_command(context, record, rest, timeout=health.timeout, reconnect=reconnect)
    except TimeoutError:
        return f"{health.probe} did not answer within {health.timeout:g} s"
    except (NotFound, OSError, Unavailable, http.client.HTTPException) as error:
        return f"{health.probe}: {error}"


def _ask_http(record: Record, health: Health) -> str:
    deadline = time.monotonic() + health.timeout
    parts = urllib.parse.urlsplit(health.probe)
    port = parts.port or 80
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with connect_within(record.keeper_pid, port, timeout=health.timeout) as link:
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.hostname}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = _status_line(link, deadline).split()
    if len(status) < 2 or not status[0].startswith("HTTP/"):
        return f"{health.probe} did not answer in HTTP"
    return "" if "200" <= status[1] < "400" else f"{health.probe} answered {status[1]}"


def _status_line(link: socket.socket, deadline: float) -> str:
    """The first line; raises TimeoutError when it has not come whole by the deadline, however slowly it drips."""
    said = b""
    while b"\n" not in said and len(said) < 1024:
        link.settimeout(max(deadline - time.monotonic(), 0.001))
        part = link.recv(1024)
        if not part:
            break
        said += part
    return said.partition(b"\n")[0].decode("latin-1")


def _ask_command(context: Context, record: Record, command: str, *, timeout: float, reconnect: bool) -> str:
    deadline = time.monotonic() + timeout
    request = ExecRequest(("/bin/sh", "-c", command))
    with open_link(context, record, timeout=timeout) as link:
        session = link.exec(request)
    if not isinstance(session, ExecSession):
        return f"cmd:{command} could not be started"
    with session:
        session.reconnect_seconds = timeout if reconnect else 0.0  # a checkpoint by somebody else closes connections
        while (left := deadline - time.monotonic()) > 0:
            for event in session.poll(left):
                if isinstance(event, Interrupted):
                    return event.cause
                if isinstance(event, Exited):
                    return "" if event.exit_status == 0 else f"cmd:{command} exited with {event.exit_status}"
                assert isinstance(event, Output)  # noqa: S101 - there is no other event; what it prints is not wanted
        session.signal(signal.SIGKILL)
    raise TimeoutError
