"""Who is at the other end of a unix socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from thawbox.host.unix_sockets import unix_peers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="entering a namespace needs root")


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def test_a_pair_has_each_other_until_one_is_closed() -> None:
    here, there = socket.socketpair()
    with here:
        with there:
            peers = unix_peers(os.getpid())
            assert (peers[inode(here)], peers[inode(there)]) == (inode(there), inode(here))
        assert unix_peers(os.getpid())[inode(here)] == 0


def test_who_was_not_accepted_yet_has_the_listener(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(str(tmp_path / "listens"))
        listening.listen()
        waiting.connect(str(tmp_path / "listens"))
        peers = unix_peers(os.getpid())
        assert (peers[inode(listening)], peers[inode(waiting)]) == (0, inode(listening))
