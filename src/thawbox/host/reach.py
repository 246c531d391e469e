"""Sockets inside another network namespace, for callers that stay outside it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from thawbox.errors import NotFound
from thawbox.host.namespaces import CLONE_NEWNET

_T = TypeVar("_T")
_LISTENS = "00010000"
"""Flags of a listening socket in /proc/net/unix (`__SO_ACCEPTCON`)."""

_libc = ctypes.CDLL(None, use_errno=True)


def connect_within(pid: int, port: int, *, host: str = "127.0.0.1", timeout: float) -> socket.socket:
    """A TCP connection made inside the network namespace of process `pid`; usable from anywhere.

    `timeout` is seconds. Raises NotFound when the process is gone, OSError (refused, timed out) when nobody answers.
    """
    return run_within(pid, lambda: socket.create_connection((host, port), timeout=timeout))


def connect_in(namespace: int, port: int, *, host: str = "127.0.0.1", timeout: float) -> socket.socket:
    """The same inside the network namespace that is open as descriptor `namespace`, which stays the caller's."""
    return _visit(namespace, lambda: socket.create_connection((host, port), timeout=timeout))


def connect_abstract(pid: int, name: str, *, timeout: float) -> socket.socket:
    """A stream connection to the abstract unix socket `name` (without its NUL) of a process's network namespace.

    `timeout` is seconds, for this and for every later wait on the socket. Raises NotFound when the process is gone,
    OSError when nobody answers.
    """

    def connect() -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Blocking, with the kernel's own limit: a non-blocking connect fails at once where the queue is full.
            seconds = struct.pack("@ll", *divmod(int(timeout * 1_000_000), 1_000_000))
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            link.connect("\0" + name)
            link.settimeout(timeout)
        except BaseException:
            link.close()
            raise
        return link

    return run_within(pid, connect)


def listeners(pid: int, prefix: str) -> tuple[str, ...]:
    """Names (without the NUL) of the abstract unix sockets that are listened on in a process's network namespace.

    Only those beginning with `prefix`, sorted; none when the process is gone.
    """
    try:
        table = Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError, OSError):
        return ()
    if f"@{prefix}" not in table:
        return ()
    rows = [line.split(maxsplit=7) for line in table.splitlines()[1:]]
    found = [row[7][1:] for row in rows if len(row) == 8 and row[7].startswith(f"@{prefix}") and row[3] == _LISTENS]
    return tuple(sorted(found))


def run_within(pid: int, action: Callable[[], _T]) -> _T:
    """Run `action` in the network namespace of process `pid` and return what it does, or raise its OSError.

    A namespace belongs to a thread, so a short-lived one enters it. Raises NotFound when the process is gone.
    """
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} is gone") from None
    try:
        return _visit(namespace, action)
    finally:
        os.close(namespace)


def _visit(namespace: int, action: Callable[[], _T]) -> _T:
    results: list[_T] = []
    failures: list[OSError] = []

    def enter_and_act() -> None:
        try:
            _enter(namespace)
            results.append(action())
        except OSError as error:
            failures.append(error)

    visitor = threading.Thread(target=enter_and_act, name="thawbox-reach")
    visitor.start()
    visitor.join()
    if failures:
        raise failures[0]
    return results[0]


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
