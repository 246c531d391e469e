"""Sockets inside another network namespace, for callers that stay outside it."""

from __future__ import annotations

import ctypes
import os
import socket
import threading

from thawbox.errors import NotFound
from thawbox.host.namespaces import CLONE_NEWNET

_libc = ctypes.CDLL(None, use_errno=True)


def connect_within(pid: int, port: int, *, host: str = "127.0.0.1", timeout: float) -> socket.socket:
    """A TCP connection made inside the network namespace of process `pid`; usable from anywhere.

    A namespace belongs to a thread, so a short-lived one enters it and makes the socket. `timeout` is seconds.
    Raises NotFound when the process is gone, OSError (refused, timed out) when nobody answers.
    """
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} is gone") from None
    result: list[socket.socket | OSError] = []

    def enter_and_connect() -> None:
        try:
            _enter(namespace)
            result.append(socket.create_connection((host, port), timeout=timeout))
        except OSError as error:
            result.append(error)

    try:
        visitor = threading.Thread(target=enter_and_connect, name="thawbox-reach")
        visitor.start()
        visitor.join()
    finally:
        os.close(namespace)
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
