"""One command in a sandbox and our own standard streams, joined until the command ends.

Rule 1: one thread, one `select`: on the session, on our input while there is room for it, and on signals.
Rule 2: signal handlers only note what came; the loop acts, so that no frame is ever written in the middle of another.
The second signal of a kind ends us wherever we are, also while we wait for a frozen sandbox.
Rule 3: the terminal is put back as it was on every path out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections import Counter, deque
from collections.abc import Callable, Generator
from types import FrameType

from thawbox.host.init_client import Event, ExecSession, Exited, Interrupted, Output
from thawbox.host.init_wire import Stream, Terminal

STDIN, STDOUT, STDERR = range(3)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PIECE = 64 << 10
_LAST_WORDS = 2.0
"""Seconds for a command whose output nobody reads any more to end by SIGPIPE."""


def size_of(fd: int) -> Terminal | None:
    """The size of the terminal behind a descriptor; None if it is none, or one that has no size."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return Terminal(rows, columns) if rows and columns else None


def stream(session: ExecSession, *, stdin: bool, raw: bool) -> int | Interrupted:
    """Join a session and our streams; the command's exit status, or why it can be heard no more.

    With `stdin` our input is passed on until it ends; with `raw` our terminal sends every key as it is.
    """
    with contextlib.ExitStack() as undo:
        if raw and os.isatty(STDIN):
            undo.enter_context(_raw_terminal(STDIN))
        came, wakeup = undo.enter_context(_signals(*_PASSED_ON, signal.SIGWINCH))
        over = _join(session, STDIN if stdin else None, came, wakeup)
    if isinstance(over, Exited):
        return over.exit_status
    if isinstance(over, int):
        return 128 + over
    return over


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Generator[None]:
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is for the command
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(*numbers: signal.Signals) -> Generator[tuple[deque[signal.Signals], int]]:
    """The signals that come during the block, noted in order, and a descriptor that wakes `select` for each."""
    came: deque[signal.Signals] = deque()
    times: Counter[int] = Counter()

    def note(number: int, _: FrameType | None) -> None:
        times[number] += 1
        if number in _PASSED_ON and times[number] > 1:
            raise SystemExit(128 + number)
        came.append(signal.Signals(number))

    wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, note) for number in numbers}
    woken_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield came, wakeup
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wakeup)
        os.close(wake)


def _join(
    session: ExecSession, source: int | None, came: deque[signal.Signals], wakeup: int
) -> Exited | Interrupted | int:
    """How the command ended, or SIGPIPE's number when nobody reads us any more."""
    writers = {Stream.STDOUT: _writer(STDOUT), Stream.STDERR: _writer(STDERR)}
    while True:
        for event in (events := session.poll(0)):
            if not isinstance(event, Output):
                return event
            if not writers[event.stream](event.content):
                return _end_unread(session)
        if events:
            continue  # the next poll tells init that they were written; only then does it send more
        readable: list[ExecSession | int] = [session, wakeup]
        if source is not None and session.stdin_room:
            readable.append(source)
        ready = select.select(readable, [], [])[0]
        if source is not None and source in ready:
            source = _pass_input(session, source)
        if wakeup in ready:
            os.read(wakeup, 512)
        while came:
            number = came.popleft()
            if number is signal.SIGWINCH:
                _pass_size(session)
            else:
                session.signal(number)


def _pass_input(session: ExecSession, source: int) -> int | None:
    """Read once and pass it on; None when there is no more to come."""
    try:
        content = os.read(source, min(session.stdin_room, _PIECE))
    except BlockingIOError:
        return source
    except OSError:
        content = b""  # a terminal that hung up
    if not content:
        session.close_stdin()
        return None
    session.offer_stdin(content)
    return source


def _pass_size(session: ExecSession) -> None:
    size = size_of(STDIN)
    if size is not None:
        session.resize(size)


def _writer(fd: int) -> Callable[[bytes], bool]:
    """A function that writes all of it, and is false once nobody reads any more."""

    def write(content: bytes) -> bool:
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                select.select([], [fd], [])
            except BrokenPipeError:
                return False
        return True

    return write


def _end_unread(session: ExecSession) -> int:
    """Our reader went away: so does the command's, as in any pipeline."""
    session.signal(signal.SIGPIPE)
    event: Event | None = None
    while not isinstance(event, Exited):
        events = session.poll(_LAST_WORDS)
        if not events:
            break
        event = events[-1]
        if not isinstance(event, (Output, Exited)):
            break
    return int(signal.SIGPIPE)
