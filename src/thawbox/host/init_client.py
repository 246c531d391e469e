"""Talking to the init of a sandbox over its control socket: commands, their streams, signals, and letting go.

Synchronous, one connection per `InitLink`; an exec that is not detached takes its link over. Nothing is lost with a
connection: init keeps output until it was acknowledged, and says how much input it has taken.
"""

from __future__ import annotations

import contextlib
import errno
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from thawbox.errors import NotFound, Unavailable
from thawbox.host.init_wire import (
    HEADER,
    MAX_PAYLOAD,
    OLDEST,
    WINDOW,
    ExecRequest,
    Frame,
    InitState,
    SessionId,
    SessionSummary,
    Stream,
    Terminal,
    WireError,
    decode_sessions,
    decode_state,
    encode_exec,
    unpack,
)
from thawbox.host.inside import connect_inside
from thawbox.host.proc import start_time

CONTROL_SOCKET = "/.thawbox/control.sock"
_BY_QUIESCE, _BY_OTHER_CLIENT = 1, 2
_FROM_INIT = frozenset(int(kind) for kind in Frame if kind >= Frame.STATE)
_RETRY_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05)  # the last one repeats; a restore answers within 20 ms

Dial = Callable[[], socket.socket]
"""Makes a new connection to the sandbox's init; raises NotFound, Unavailable or OSError while that is not possible,
SessionGone when it never will be. Whoever dumps the sandbox must be able to hold it off: a connection that reaches a
frozen init fails the dump."""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a command printed; `offset` counts from the beginning of that stream."""

    stream: Stream
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """How a command ended; nothing comes after it. `signal` is 0 unless it was killed by one."""

    status: int
    signal: int = 0

    @property
    def exit_status(self) -> int:
        """As a shell would say it: 128 + signal for a killed program."""
        return 128 + self.signal if self.signal else self.status


@dataclass(frozen=True, slots=True)
class ExecRefused:
    """The command was not started. `exit_status` is 127 when the program is missing, 126 for any other cause."""

    exit_status: int
    errno_name: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The command cannot be heard any more: the sandbox stopped, or went back to a time before it."""

    cause: str


Event = Output | Exited | Interrupted


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole command: how it ended and everything it printed."""

    outcome: Exited | Interrupted
    stdout: bytes
    stderr: bytes


class SessionGone(NotFound):
    """Init knows no such session, or no longer keeps what this client has not seen."""

    code = "not_found.session"
    default_remediation = "the command's end was fetched already, or the sandbox went back to a time before it"


class LinkLost(Unavailable):
    """The connection to init was closed, by a dump or by the sandbox's end."""

    code = "unavailable.init"


class _Wire:
    """Whole frames over one socket."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._held = bytearray()

    def fileno(self) -> int:
        return self._link.fileno()

    def close(self) -> None:
        self._link.close()

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        try:
            self._link.sendall(HEADER.pack(kind, len(payload)) + payload)
        except (BrokenPipeError, ConnectionResetError):
            raise LinkLost("the sandbox's init closed the connection") from None

    def take(self) -> tuple[Frame, bytes] | None:
        """A frame that has come whole; None if more bytes are needed."""
        if len(self._held) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self._held)
        if length > MAX_PAYLOAD or kind not in _FROM_INIT:
            raise WireError(f"init sent a frame of type {kind} and {length} bytes")
        if len(self._held) < HEADER.size + length:
            return None
        payload = bytes(self._held[HEADER.size : HEADER.size + length])
        del self._held[: HEADER.size + length]
        return Frame(kind), payload

    def fill(self, at_most: int = 128 << 10) -> None:
        """Read what has come; raises LinkLost at the end, Unavailable if nothing comes in the socket's time."""
        try:
            piece = self._link.recv(at_most)
        except ConnectionResetError:
            piece = b""
        except TimeoutError:
            raise Unavailable(
                f"the sandbox's init did not answer within {self._link.gettimeout():g} s",
                remediation="look whether the sandbox is frozen, then retry",
            ) from None
        if not piece:
            raise LinkLost("the sandbox's init closed the connection")
        self._held += piece

    def receive(self) -> tuple[Frame, bytes]:
        """One frame and not a byte beyond it: what follows an answer must leave the socket readable for `select`."""
        while (frame := self.take()) is None:
            held = len(self._held)
            size = HEADER.size if held < HEADER.size else HEADER.size + HEADER.unpack_from(self._held)[1]
            self.fill(size - held)
        return frame


class InitLink:
    """One connection to the init of a sandbox. A context manager; not for two threads at once."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._wire = _Wire(dial())
        self._handed_over = False

    @classmethod
    def connect(cls, pid: int, *, started: int | None = None, timeout: float = 10.0) -> Self:
        """Connect to the init whose pid on the host is `pid`; `timeout` (seconds) bounds every later answer too.

        Raises NotFound when it is gone or does not listen.
        """

        def dial() -> socket.socket:
            try:
                return connect_inside(pid, CONTROL_SOCKET, started=started, timeout=timeout)
            except NotFound as error:
                if start_time(pid) is not None:
                    raise
                raise SessionGone(error.cause) from None

        return cls(dial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a session that has taken it over is not touched."""
        if not self._handed_over:
            self._wire.close()

    def _ask(self, kind: Frame, payload: bytes, expected: Frame) -> tuple[Frame, bytes]:
        self._wire.send(kind, payload)
        answer, content = self._wire.receive()
        if answer is Frame.DETACHED and expected is not Frame.DETACHED:
            raise LinkLost("the sandbox ended, or is about to be dumped")
        if answer not in (expected, Frame.FAILED):
            raise WireError(f"init answered {kind.name} with {answer.name}")
        return answer, content

    def ping(self) -> InitState:
        """What init is doing."""
        return decode_state(self._ask(Frame.HELLO, b"", Frame.STATE)[1])

    def sessions(self) -> tuple[SessionSummary, ...]:
        """The commands that were started by exec and whose end was not yet fetched."""
        return decode_sessions(self._ask(Frame.LIST, b"", Frame.SESSIONS)[1])

    def exec(self, request: ExecRequest) -> ExecSession | SessionId | ExecRefused:
        """Start a program. An ExecSession takes this link over; a detached one gives its id and the link lives on.

        A program that cannot be started is an ordinary outcome, with the conventional exit status; raises
        InvalidRequest for what cannot even be asked.
        """
        answer, content = self._ask(Frame.EXEC, encode_exec(request), Frame.STARTED)
        if answer is Frame.FAILED:
            return _refusal(content)
        number, pid = unpack("<II", content)
        if request.detach:
            return SessionId(number)
        self._handed_over = True
        return ExecSession(self._dial, self._wire, SessionId(number), pid=pid)

    def attach(self, session: SessionId, *, stdout: int = OLDEST, stderr: int = OLDEST) -> ExecSession:
        """Take a session over, from the given offsets of its output on; another client that had it loses it.

        Raises SessionGone when the session is not known or that output is not kept any more.
        """
        attached = ExecSession(self._dial, self._wire, session, offsets={Stream.STDOUT: stdout, Stream.STDERR: stderr})
        attached.take_over()
        self._handed_over = True
        return attached

    def signal(self, number: int, *, session: SessionId | None = None) -> bool:
        """Signal the main program, or the process group of a session; False if it has ended."""
        payload = (session or 0).to_bytes(4, "little") + int(number).to_bytes(4, "little")
        return self._ask(Frame.SIGNAL, payload, Frame.DONE)[0] is Frame.DONE

    def end_sessions(self) -> None:
        """Kill every session that was not detached and forget it: for a clone, whose callers are elsewhere."""
        self._ask(Frame.END_SESSIONS, b"", Frame.DONE)

    def quiesce(self) -> None:
        """Make init close every connection, this one too, after which the sandbox can be dumped.

        The caller keeps others from connecting until the sandbox is thawed.
        """
        self._ask(Frame.QUIESCE, b"", Frame.DETACHED)
        with contextlib.suppress(LinkLost):
            while True:
                self._wire.fill()
        self.close()


def _refusal(content: bytes) -> ExecRefused:
    cause, code = unpack("<II", content[:8])
    name = errno.errorcode.get(cause, str(cause))
    return ExecRefused(code or 126, name, content[8:].decode("utf-8", "replace"))


class ExecSession:
    """A command that runs in a sandbox, and this client attached to it.

    One thread drives it: wait for `fileno()` to become readable, then `poll`. Lost connections are made anew by
    themselves within `reconnect_seconds`, with nothing lost and nothing twice. Closing it leaves the command running.
    """

    def __init__(
        self, dial: Dial, wire: _Wire, session: SessionId, *, pid: int = 0, offsets: dict[Stream, int] | None = None
    ) -> None:
        self.id = session
        self.pid = pid
        self.reconnect_seconds = 30.0
        self._dial = dial
        self._wire = wire
        self._next = offsets or {Stream.STDOUT: 0, Stream.STDERR: 0}
        self._unacknowledged: set[Stream] = set()
        self._unaccepted = bytearray()
        self._accepted = self._written = 0
        self._stdin_ended = False
        self._over: Exited | Interrupted | None = None
        self._given_up = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach. If the end was seen, init forgets the session."""
        with contextlib.suppress(LinkLost, OSError):
            if isinstance(self._over, Exited):
                self._wire.send(Frame.ACK, b"\0" + bytes(8))
        self._wire.close()

    def give_up(self) -> None:
        """End any wait for a lost connection, from another thread: the session then counts as interrupted."""
        self._given_up.set()

    def fileno(self) -> int:
        """Readable when `poll` has something to do; changes with a reconnect."""
        return self._wire.fileno()

    @property
    def offsets(self) -> dict[Stream, int]:
        """How much of each stream was handed out; enough for another client to attach without loss."""
        return dict(self._next)

    @property
    def stdin_room(self) -> int:
        """Bytes that `offer_stdin` would take now."""
        return 0 if self._stdin_ended else max(0, WINDOW - (self._accepted + len(self._unaccepted) - self._written))

    def offer_stdin(self, content: bytes) -> int:
        """Send as much as there is room for, without waiting; returns how many bytes were taken."""
        taken = content[: self.stdin_room]
        if taken:
            start = self._accepted + len(self._unaccepted)
            self._unaccepted += taken
            self._try_send(Frame.STDIN, start.to_bytes(8, "little") + taken)
        return len(taken)

    def close_stdin(self) -> None:
        """End the command's input after what was taken; on a terminal its end-of-file character is typed."""
        if not self._stdin_ended:
            self._stdin_ended = True
            self._try_send(Frame.STDIN_END, (self._accepted + len(self._unaccepted)).to_bytes(8, "little"))

    def resize(self, terminal: Terminal) -> None:
        """Tell the command's terminal its new size."""
        size = terminal.rows.to_bytes(2, "little") + terminal.columns.to_bytes(2, "little")
        self._try_send(Frame.RESIZE, size)

    def signal(self, number: signal.Signals) -> None:
        """Signal the command's process group; nothing happens if it has ended."""
        self._try_send(Frame.SIGNAL, self.id.to_bytes(4, "little") + int(number).to_bytes(4, "little"))

    def _try_send(self, kind: Frame, payload: bytes) -> None:
        if self._over is None:
            with contextlib.suppress(LinkLost):  # what must not be lost is sent again by `take_over`
                self._wire.send(kind, payload)

    def poll(self, timeout: float | None = None) -> tuple[Event, ...]:
        """What has happened, after waiting at most `timeout` seconds (None: as long as it takes).

        May be empty before that: input was taken, or a connection was made anew. Asking again acknowledges what the
        last call gave: whoever dies in between has lost nothing. The last event is Exited or Interrupted; it is given
        again by every later call.
        """
        if self._over is not None:
            return (self._over,)
        with contextlib.suppress(LinkLost):  # init's last words may still wait to be read
            self._acknowledge()
        try:
            if not select.select([self._wire], [], [], timeout)[0]:
                return ()
            self._wire.fill()
        except LinkLost:
            self._reconnect()
        events = self._taken()
        return (self._over,) if self._over is not None and not events else events

    def events(self) -> Iterator[Event]:
        """Every event until the last one, which is Exited or Interrupted."""
        while self._over is None:
            yield from self.poll()

    def communicate(self, stdin: bytes = b"") -> Completed:
        """Give the command its whole input, collect all it prints, and wait for its end."""
        printed = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        rest = memoryview(stdin)
        while self._over is None:
            rest = rest[self.offer_stdin(bytes(rest[:WINDOW])) :]
            if not rest:
                self.close_stdin()
            for event in self.poll():
                if isinstance(event, Output):
                    printed[event.stream] += event.content
        return Completed(self._over, bytes(printed[Stream.STDOUT]), bytes(printed[Stream.STDERR]))

    def _acknowledge(self) -> None:
        while self._unacknowledged:
            stream = self._unacknowledged.pop()
            self._wire.send(Frame.ACK, bytes([stream]) + self._next[stream].to_bytes(8, "little"))

    def _taken(self) -> tuple[Event, ...]:
        events: list[Event] = []
        while self._over is None and (frame := self._wire.take()) is not None:
            event = self._understand(*frame)
            if event is not None:
                events.append(event)
        return tuple(events)

    def _understand(self, kind: Frame, content: bytes) -> Event | None:
        if kind is Frame.OUTPUT:
            return self._output(content)
        if kind is Frame.STDIN_ACK:
            self._stdin_taken(*unpack("<QQ", content))
        elif kind is Frame.EXIT:
            self._over = Exited(*unpack("<II", content))
            return self._over
        elif kind is Frame.DETACHED:
            reason, _accepted = unpack("<BQ", content)
            if reason == _BY_QUIESCE:
                return None  # the end of the connection follows, and with it the reconnect
            cause = "another client took this command over" if reason == _BY_OTHER_CLIENT else "the sandbox stopped"
            self._over = Interrupted(cause)
            return self._over
        elif kind not in (Frame.DONE, Frame.FAILED):  # answers to `signal`, which asks for none
            raise WireError(f"init sent {kind.name} to a session")
        return None

    def _output(self, content: bytes) -> Output:
        if len(content) < 10 or content[0] not in (Stream.STDOUT, Stream.STDERR):
            raise WireError("init sent output of no stream")
        stream, offset = Stream(content[0]), int.from_bytes(content[1:9], "little")
        if self._next[stream] not in (offset, OLDEST):
            raise WireError(f"init sent output at {offset}, not at {self._next[stream]}")
        self._next[stream] = offset + len(content) - 9
        self._unacknowledged.add(stream)
        return Output(stream, offset, content[9:])

    def _stdin_taken(self, accepted: int, written: int) -> None:
        known = accepted - self._accepted
        if not 0 <= known <= len(self._unaccepted) or written > accepted:
            raise WireError(f"init took {accepted} bytes of input, of which it was not sent all")
        del self._unaccepted[:known]
        self._accepted, self._written = accepted, written

    def take_over(self) -> None:
        """Attach over the present connection, from the offsets reached; raises SessionGone when init cannot."""
        self._unacknowledged.clear()
        offsets = b"".join(self._next[stream].to_bytes(8, "little") for stream in (Stream.STDOUT, Stream.STDERR))
        self._wire.send(Frame.ATTACH, self.id.to_bytes(4, "little") + offsets)
        kind, content = self._wire.receive()
        if kind is not Frame.ATTACHED:
            raise SessionGone(f"session {self.id}: {_refusal(content).message}")
        accepted, written, self.pid = unpack("<QQI", content)
        if self._accepted == 0 and not self._unaccepted:
            self._accepted = accepted  # another client's input, not ours
        if not self._accepted <= accepted <= self._accepted + len(self._unaccepted):
            raise SessionGone(f"session {self.id} is at another place of its input than this client")
        self._stdin_taken(accepted, written)
        if self._unaccepted:
            self._wire.send(Frame.STDIN, accepted.to_bytes(8, "little") + bytes(self._unaccepted))
        if self._stdin_ended:
            self._wire.send(Frame.STDIN_END, (accepted + len(self._unaccepted)).to_bytes(8, "little"))

    def _reconnect(self) -> None:
        self._wire.close()
        deadline = time.monotonic() + self.reconnect_seconds
        for tries in range(1 << 30):
            try:
                self._wire = _Wire(self._dial())
                self.take_over()
            except (Unavailable, NotFound, OSError) as error:
                self._wire.close()
                if isinstance(error, BlockingIOError):  # frozen: it goes on when it is thawed, however long that is
                    deadline = time.monotonic() + self.reconnect_seconds
                if isinstance(error, SessionGone) or self._given_up.is_set() or time.monotonic() >= deadline:
                    self._over = Interrupted(str(error))
                    return
            else:
                return
            self._given_up.wait(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
