"""TCP connections in a dump: those with both ends inside stay whole, the others are closed in the images.

The other end of a connection to the outside forgets it, or goes on with the original; a restored end would wait for
answers that never come. CRIU's own `--tcp-close` closes every connection, loopback too, so the images are changed: a
closed one becomes a socket that was never connected. A program that reads from it gets ENOTCONN at once, one that
writes EPIPE, one that polls EPOLLHUP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from thawbox.engines.criu_images import COMMON_MAGIC, ImageKind, read_entries, write_entries
from thawbox.engines.proto import fdinfo_pb2, sk_inet_pb2

FILES = ImageKind(struct.pack("<II", COMMON_MAGIC, 0x56303138), fdinfo_pb2.file_entry)

_IPPROTO_TCP = 6
# enum in include/net/tcp_states.h
_CLOSE, _CLOSE_WAIT, _LAST_ACK, _LISTEN, _CLOSING = 7, 8, 9, 10, 11
_PEER_GONE = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING})
"""The peer has sent its end: what it sent before is all there is, and needs no peer to be read."""

_MAPPED = (0, 0, 0xFFFF0000)
_LOOPBACK_6 = (0, 0, 0, 0x01000000)

Endpoint = tuple[tuple[int, ...], int]


def close_outside(images: Path) -> int:
    """Close, in the images of a fresh dump, each TCP connection whose other end is not in them; returns how many.

    Raises CorruptSnapshot when the images cannot be read.
    """
    path = images / "files.img"
    entries = read_entries(path, FILES)
    connections = [entry.isk for entry in entries if entry.HasField("isk") and _is_connection(entry.isk)]
    inside = {(_local(isk), _remote(isk)) for isk in connections}
    outside = [isk for isk in connections if not _stays(isk, inside)]
    if not outside:
        return 0
    for isk in outside:
        (images / f"tcp-stream-{isk.ino:x}.img").unlink(missing_ok=True)
        _close(isk)
    write_entries(path, FILES, entries)
    return len(outside)


def _is_connection(isk: sk_inet_pb2.inet_sk_entry) -> bool:
    return isk.proto == _IPPROTO_TCP and isk.dst_port != 0 and isk.state != _LISTEN


def _stays(isk: sk_inet_pb2.inet_sk_entry, inside: set[tuple[Endpoint, Endpoint]]) -> bool:
    # A clone has another address of its own: only loopback means the same in each.
    if not (_is_loopback(isk.src_addr) and _is_loopback(isk.dst_addr)):
        return False
    return isk.state in _PEER_GONE or (_remote(isk), _local(isk)) in inside


def _close(isk: sk_inet_pb2.inet_sk_entry) -> None:
    isk.state = _CLOSE
    isk.src_port = isk.dst_port = 0
    for address in (isk.src_addr, isk.dst_addr):
        words = len(address)
        del address[:]
        address.extend([0] * words)
    isk.ClearField("shutdown")


def _local(isk: sk_inet_pb2.inet_sk_entry) -> Endpoint:
    return _plain(isk.src_addr), isk.src_port


def _remote(isk: sk_inet_pb2.inet_sk_entry) -> Endpoint:
    return _plain(isk.dst_addr), isk.dst_port


def _plain(address: Iterable[int]) -> tuple[int, ...]:
    """The address in network order, an IPv4 one in IPv6 clothes as what it is: the two ends may differ in that."""
    words = tuple(address)
    return words[3:] if len(words) == 4 and words[:3] == _MAPPED else words


def _is_loopback(address: Iterable[int]) -> bool:
    words = _plain(address)
    return words == _LOOPBACK_6 or (len(words) == 1 and words[0] & 0xFF == 127)
