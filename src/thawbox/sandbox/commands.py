"""A command in a sandbox that one thread follows to its end while others talk to it: what a service needs of `exec`.

Rule 1: only the thread in `events` touches the session; what others want is queued, and a descriptor wakes that thread.
Rule 2: whoever stops following early (closes `events`, calls `abandon`) takes the command along, and init forgets it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from thawbox.errors import CommandInterrupted
from thawbox.host.cgroup import Cgroup
from thawbox.host.init_client import ExecSession, Exited, Interrupted, Output
from thawbox.host.init_wire import WINDOW, Stream, Terminal
from thawbox.host.proc import kill_session

_END_SECONDS = 5.0
"""How long a command that nobody follows any more may take to die of SIGKILL."""
_FAREWELL_SECONDS = 5.0
"""How long it may take to end by itself after its last words."""
_HANGUP_SECONDS = 0.5
"""How long it may take to leave by itself when its terminal hangs up."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `exit_status` is as a shell says it, `signal` 0 unless one killed it."""

    exit_status: int
    signal: int
    timed_out: bool
    duration_ms: float


class Command:
    """One attached session. A context manager: at its end the command is over, one way or another.

    `timeout` is seconds from now, after which the command and what belongs to its session are killed. `last_words` are
    written to its input if it is abandoned; it then has some seconds to end by itself.
    """

    def __init__(
        self, session: ExecSession, cgroup: Cgroup, *, timeout: float | None = None, last_words: bytes = b""
    ) -> None:
        self.pid = session.pid
        self.id = session.id
        self._session = session
        self._cgroup = cgroup
        self._begun = time.perf_counter()
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.last_words = last_words
        self._timed_out = False
        self._over = False
        self._heard_end = False
        self._abandoned = False
        self._wishes: deque[Callable[[], None]] = deque()
        self._input = bytearray()
        self._input_ended = False
        self._room = threading.Condition()
        self._wakeup, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- for other threads ------------------------------------------------------------------------------------

    def feed_nowait(self, content: bytes) -> bool:
        """Pass input on; False, and nothing is taken, while as much waits as the command may have ahead."""
        with self._room:
            if len(self._input) >= WINDOW and not self._over:
                return False
            self._input += content
        self._stir()
        return True

    def feed(self, content: bytes) -> None:
        """The same, after waiting for room; returns at once when the command is over."""
        with self._room:
            self._room.wait_for(lambda: len(self._input) < WINDOW or self._over)
        self.feed_nowait(content)

    def close_stdin(self) -> None:
        self._input_ended = True
        self._stir()

    def resize(self, terminal: Terminal) -> None:
        self._wish(lambda: self._session.resize(terminal))

    def signal(self, number: signal.Signals) -> None:
        self._wish(lambda: self._session.signal(number))

    def abandon(self) -> None:
        """Nobody follows any more: `events` kills the command and comes to its end soon."""
        self._abandoned = True
        self._session.give_up()
        self._stir()
        with self._room:
            self._room.notify_all()

    def _wish(self, wish: Callable[[], None]) -> None:
        self._wishes.append(wish)
        self._stir()

    def _stir(self) -> None:
        with self._room, contextlib.suppress(BlockingIOError):  # full: it is awake already
            if not self._over:  # once closed, the number is another file's
                os.write(self._wake, b"!")

    # --- for the one that follows -----------------------------------------------------------------------------

    def events(self) -> Generator[Output | Ended]:
        """What it prints, as it comes, and last how it ended.

        Raises CommandInterrupted. Closed before its end, it kills the command.
        """
        try:
            yield from self._events()
        finally:
            self.close()

    def _events(self) -> Generator[Output | Ended]:
        while not self._abandoned:
            self._act()
            events = self._session.poll(0)
            for event in events:
                if isinstance(event, Output):
                    yield event
                    continue
                self._heard_end = not self._abandoned
                if isinstance(event, Interrupted) and not self._abandoned:
                    raise CommandInterrupted(f"the command was interrupted: {event.cause}")
                if isinstance(event, Exited):
                    yield Ended(event.exit_status, event.signal, self._timed_out, self._elapsed_ms())
                return
            if not events and not self._may_offer:  # what was polled may have made room for input
                self._wait()

    def _elapsed_ms(self) -> float:
        return round((time.perf_counter() - self._begun) * 1000, 3)

    def _act(self) -> None:
        while self._wishes:
            self._wishes.popleft()()
        if self._may_offer:
            with self._room:
                taken = self._session.offer_stdin(bytes(self._input[:WINDOW]))
                del self._input[:taken]
                self._room.notify_all()
        if self._input_ended and not self._input:
            self._session.close_stdin()

    @property
    def _may_offer(self) -> bool:
        return bool(self._input) and self._session.stdin_room > 0

    def _wait(self) -> None:
        rest = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        watched: list[ExecSession | int] = [self._session, self._wakeup]
        ready, _, _ = select.select(watched, [], [], rest)
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        elif not ready:
            self._deadline = None
            self._timed_out = True
            self._kill()

    def _kill(self) -> None:
        """The process group by init, and whatever else is in the session: jobs of a shell have groups of their own."""
        self._session.signal(signal.SIGKILL)
        kill_session(self._cgroup.pids(), self.pid)

    def close(self) -> None:
        """End the command if it runs, and let go of everything. Any number of times."""
        if self._over:
            return
        with self._room:
            self._over = True
            self._room.notify_all()
        try:
            if not self._heard_end:
                self._end()
        finally:
            self._session.close()
            os.close(self._wakeup)
            os.close(self._wake)

    def _end(self) -> None:
        self._session.give_up()
        spoken = not self._input and bool(self._session.offer_stdin(self.last_words))
        if spoken and self._last_event(_FAREWELL_SECONDS) is not None:
            return
        self._session.signal(signal.SIGHUP)
        last = self._last_event(_HANGUP_SECONDS)
        if not isinstance(last, Exited):
            self._kill()
        if last is None:
            self._last_event(_END_SECONDS)

    def _last_event(self, seconds: float) -> Exited | Interrupted | None:
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            events = self._session.poll(rest)
            if events and not isinstance(events[-1], Output):
                return events[-1]
        return None


@dataclass(frozen=True, slots=True)
class Collected:
    """A whole command: how it ended and what it printed, of each stream at most as much as was asked for."""

    ended: Ended
    stdout: bytes
    stderr: bytes
    truncated: bool


def collect(command: Command, *, limit: int) -> Collected:
    """Follow a command to its end; what it prints beyond `limit` bytes of a stream is read and dropped."""
    printed = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    truncated = False
    for event in command.events():
        if isinstance(event, Ended):
            return Collected(event, bytes(printed[Stream.STDOUT]), bytes(printed[Stream.STDERR]), truncated)
        kept = printed[event.stream]
        truncated = truncated or len(kept) + len(event.content) > limit
        kept += event.content[: max(0, limit - len(kept))]
    raise CommandInterrupted("the command was abandoned by its caller")
