"""Which TCP connections of a dump stay, and what the others become."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from thawbox.engines.criu_connections import FILES, close_outside
from thawbox.engines.criu_images import read_entries, write_entries
from thawbox.engines.proto import fdinfo_pb2, sk_inet_pb2

ESTABLISHED, CLOSED, CLOSE_WAIT, LISTEN = 1, 7, 8, 10
LOOPBACK, OTHER_LOOPBACK, OUTSIDE, OWN = "127.0.0.1", "127.0.0.2", "93.184.216.34", "10.231.0.7"


def words(address: str) -> list[int]:
    if ":" in address:
        return list(struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, address)))
    return list(struct.unpack("=I", socket.inet_aton(address)))


def entry(number: int, local: tuple[str, int], remote: tuple[str, int], state: int) -> fdinfo_pb2.file_entry:
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    found = fdinfo_pb2.file_entry(type=fdinfo_pb2.INETSK, id=number)
    isk = found.isk
    isk.id, isk.ino, isk.family, isk.type, isk.proto, isk.state = number, number, family, 1, 6, state
    isk.src_port, isk.dst_port, isk.flags, isk.backlog = local[1], remote[1], 2, 0
    isk.src_addr.extend(words(local[0]))
    isk.dst_addr.extend(words(remote[0]))
    isk.fown.uid = isk.fown.euid = isk.fown.signum = isk.fown.pid_type = isk.fown.pid = 0
    isk.opts.so_sndbuf = isk.opts.so_rcvbuf = 4096
    isk.opts.so_snd_tmo_sec = isk.opts.so_snd_tmo_usec = isk.opts.so_rcv_tmo_sec = isk.opts.so_rcv_tmo_usec = 0
    return found


def states(tmp_path: Path, *entries: fdinfo_pb2.file_entry) -> list[int]:
    write_entries(tmp_path / "files.img", FILES, entries)
    for one in entries:
        (tmp_path / f"tcp-stream-{one.isk.ino:x}.img").touch()
    close_outside(tmp_path)
    found = [one.isk for one in read_entries(tmp_path / "files.img", FILES)]
    for isk in found:
        assert (tmp_path / f"tcp-stream-{isk.ino:x}.img").exists() == (isk.state != CLOSED)
        if isk.state == CLOSED:
            assert (isk.src_port, isk.dst_port, set(isk.src_addr), set(isk.dst_addr)) == (0, 0, {0}, {0})
    return [isk.state for isk in found]


@pytest.mark.parametrize("here", [LOOPBACK, OTHER_LOOPBACK, "::1", "::ffff:127.0.0.1"])
def test_a_loopback_connection_with_both_ends_inside_stays(tmp_path: Path, here: str) -> None:
    pair = [entry(1, (here, 80), (here, 999), ESTABLISHED), entry(2, (here, 999), (here, 80), ESTABLISHED)]
    assert states(tmp_path, *pair) == [ESTABLISHED, ESTABLISHED]


def test_two_ends_of_different_families_are_one_connection(tmp_path: Path) -> None:
    mapped = "::ffff:127.0.0.1"
    pair = [entry(1, (mapped, 80), (mapped, 9), ESTABLISHED), entry(2, (LOOPBACK, 9), (LOOPBACK, 80), ESTABLISHED)]
    assert states(tmp_path, *pair) == [ESTABLISHED, ESTABLISHED]


def test_a_connection_with_one_end_inside_is_closed(tmp_path: Path) -> None:
    assert states(tmp_path, entry(1, (LOOPBACK, 80), (LOOPBACK, 999), ESTABLISHED)) == [CLOSED]
    assert states(tmp_path, entry(1, (OWN, 4000), (OUTSIDE, 443), ESTABLISHED)) == [CLOSED]
    assert states(tmp_path, entry(1, (OWN, 4000), (OUTSIDE, 443), CLOSE_WAIT)) == [CLOSED]


def test_a_connection_over_an_address_that_a_clone_does_not_have_is_closed(tmp_path: Path) -> None:
    pair = [entry(1, (OWN, 80), (OWN, 999), ESTABLISHED), entry(2, (OWN, 999), (OWN, 80), ESTABLISHED)]
    assert states(tmp_path, *pair) == [CLOSED, CLOSED]


def test_what_a_peer_sent_before_it_closed_can_still_be_read(tmp_path: Path) -> None:
    assert states(tmp_path, entry(1, (LOOPBACK, 80), (LOOPBACK, 999), CLOSE_WAIT)) == [CLOSE_WAIT]


def test_listening_and_unconnected_sockets_are_left_alone(tmp_path: Path) -> None:
    entries = [entry(1, (LOOPBACK, 80), (LOOPBACK, 0), LISTEN), entry(2, (LOOPBACK, 81), (LOOPBACK, 0), LISTEN)]
    before = [one.SerializeToString() for one in entries]
    assert states(tmp_path, *entries) == [LISTEN, LISTEN]
    assert [one.SerializeToString() for one in read_entries(tmp_path / "files.img", FILES)] == before
    assert isinstance(entries[0].isk, sk_inet_pb2.inet_sk_entry)
