"""Senseless frames cost their sender its connection, and nobody anything else. init runs under sanitizers here."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest

from thawbox.host.init_client import CONTROL_SOCKET, Exited
from thawbox.host.init_wire import ExecRequest, Frame, encode_exec
from thawbox.host.inside import connect_inside

HEADER = struct.Struct("<BI")


@pytest.fixture
def shell(start_shell, sanitized_binary):
    return start_shell(binary=sanitized_binary)


def frame(kind, payload=b""):
    return HEADER.pack(kind, len(payload)) + payload


def answer_of(shell, *frames):
    """What init answers before it closes the connection; TimeoutError if it leaves it open."""
    with connect_inside(shell.init, CONTROL_SOCKET, timeout=5) as link:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(b"".join(frames))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := link.recv(65536):
                answer += piece
        return answer


def still_works(shell):
    with shell.link() as link, link.exec(ExecRequest(argv=["echo", "fine"])) as session:
        assert session.communicate().outcome == Exited(0)


@pytest.mark.parametrize(
    "frames",
    [
        [frame(0x00)],
        [frame(0x77, b"x")],
        [frame(Frame.HELLO, b"more than nothing")],
        [HEADER.pack(Frame.EXEC, (256 << 10) + 1)],
        [HEADER.pack(Frame.EXEC, 0xFFFFFFFF)],
        [frame(Frame.EXEC, b"\0" * 20)],
        [frame(Frame.EXEC, encode_exec(ExecRequest(argv=["true"])) + b"x")],
        [frame(Frame.EXEC, encode_exec(ExecRequest(argv=["true"]))[:-1])],
        [frame(Frame.ATTACH, b"\1")],
        [frame(Frame.SIGNAL, struct.pack("<II", 0, 65))],
        [frame(Frame.STDIN, bytes(9))],
        [frame(Frame.ACK, bytes(9))],
        [frame(Frame.RESIZE, bytes(4))],
    ],
)
def test_a_senseless_frame_closes_its_connection_and_nothing_else(shell, frames):
    assert answer_of(shell, *frames) == b""
    still_works(shell)


@pytest.mark.parametrize(
    "frames",
    [
        [frame(Frame.STDIN, (1).to_bytes(8, "little") + b"ahead")],
        [frame(Frame.STDIN, bytes(8) + bytes(65537))],
        [frame(Frame.STDIN_END, (5).to_bytes(8, "little"))],
        [frame(Frame.STDIN_END, bytes(8)), frame(Frame.STDIN, bytes(9))],
        [frame(Frame.ACK, b"\1" + (1).to_bytes(8, "little"))],
        [frame(Frame.ACK, b"\3" + bytes(8))],
        [frame(Frame.RESIZE, b"\1")],
    ],
)
def test_an_attached_client_that_breaks_the_rules_is_cut_off(shell, frames):
    start = frame(Frame.EXEC, encode_exec(ExecRequest(argv=["sleep", "100"], stdin=True)))
    assert answer_of(shell, start, *frames)[0] == Frame.STARTED
    still_works(shell)


def test_random_frames_never_hurt_init(shell):
    rng = random.Random(20240607)
    ask = frame(Frame.EXEC, encode_exec(ExecRequest(argv=["cat"], stdin=True)))
    kinds = [int(kind) for kind in Frame if kind not in (Frame.SIGNAL, Frame.EXEC)] + [rng.randrange(256)]
    for _ in range(400):
        with (
            connect_inside(shell.init, CONTROL_SOCKET) as link,
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            for _ in range(rng.randrange(1, 6)):
                payload = bytes(rng.choice((0, 0, 0, 1, 255, rng.randrange(256))) for _ in range(rng.randrange(24)))
                link.sendall(rng.choice((ask, frame(rng.choice(kinds), payload), payload)))
            link.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                link.recv(65536)
    with shell.link() as link:
        link.end_sessions()
    still_works(shell)


def test_everything_ordinary_is_clean_under_the_sanitizers(shell):
    still_works(shell)
    with shell.link() as link, link.exec(ExecRequest(argv=["cat"], stdin=True)) as session:
        assert len(session.communicate(bytes(300_000)).stdout) == 300_000
    with shell.link() as link:
        link.quiesce()
    with shell.link() as link:
        link.signal(15)
    assert shell.wait() == 128 + 15
