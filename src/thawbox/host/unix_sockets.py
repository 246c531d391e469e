"""Who is at the other end of a unix socket, as the kernel tells over netlink (linux/unix_diag.h).

By hand, because the import of pyroute2 alone takes 0.25 s, for which a checkpoint would wait.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from thawbox.host.reach import run_within

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_SHOW_PEER, _SHOW_ICONS = 4, 8
_PEER, _ICONS, _SHUTDOWN = 2, 3, 6
_ESTABLISHED = 1
_SHUT = 3  # both ways
UNKNOWN = -1
"""An inode that no socket has."""
_ALL_STATES = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBHIIIII")  # family, protocol, -, states, inode, show, cookie
_TOLD = struct.Struct("=BBBBIII")  # family, type, state, -, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class _Told:
    kind: int
    state: int
    peer: int
    waiting: tuple[int, ...]
    """Who has connected to this socket and was not accepted yet."""
    shutdown: int


def unix_peers(pid: int) -> dict[int, int]:
    """The inode of every unix socket of a process's network namespace, and that of its peer, 0 for none.

    A connection that was not accepted yet has the listening socket as peer, or UNKNOWN for one of another namespace. A
    socket is of the namespace of whoever connected it, wherever the other end is. Raises NotFound when the process is
    gone, OSError where the kernel does not tell.
    """
    told = run_within(pid, _ask)
    listening = {one: inode for inode, listener in told.items() for one in listener.waiting}
    return {inode: one.peer or listening.get(inode, _without_peer(one)) for inode, one in told.items()}


def _without_peer(told: _Told) -> int:
    """A stream whose peer has closed it is shut; else somebody has yet to accept it."""
    waits = told.state == _ESTABLISHED and told.kind != socket.SOCK_DGRAM and told.shutdown != _SHUT
    return UNKNOWN if waits else 0


def _ask() -> dict[int, _Told]:
    found: dict[int, _Told] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as link:
        asked = _ASKED.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_PEER | _SHOW_ICONS, 0, 0)
        link.send(_HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + asked)
        while _read(link.recv(1 << 16), found):
            pass
    return found


def _read(answer: bytes, found: dict[int, _Told]) -> bool:
    """Add what one datagram tells; False at the end of all."""
    at = 0
    while at + _HEADER.size <= len(answer):
        length, kind, _, _, _ = _HEADER.unpack_from(answer, at)
        body = answer[at + _HEADER.size : at + length]
        if kind == _DONE:
            return False
        if kind == _ERROR:
            number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            raise OSError(number, os.strerror(number))
        _, type_, state, _, inode, _, _ = _TOLD.unpack_from(body)
        about = dict(_attributes(body[_TOLD.size :]))
        found[inode] = _Told(
            type_, state, _number(about.get(_PEER, b"")),
            tuple(one for (one,) in struct.iter_unpack("=I", about.get(_ICONS, b""))),
            _number(about.get(_SHUTDOWN, b"")),
        )  # fmt: skip
        at += _aligned(length)
    return True


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        yield kind, content[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)


def _number(content: bytes) -> int:
    return int.from_bytes(content, sys.byteorder)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
