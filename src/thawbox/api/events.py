"""What happened, as a numbered stream: kept in a ring, so that whoever was away goes on where he was.

Rule 1: an event is in the book before anybody hears of it, so a number never means two events. One that the disk has
no room for waits in memory: whoever does something is not told that it failed because it could not be told of.
Rule 2: a listener holds only its place. One that is slow, or gone, costs nobody anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import structlog

from thawbox.api.book import Book
from thawbox.errors import LockTimeout
from thawbox.views import timestamp

RING = 10_000
"""Events kept: at a busy node's 200 a second a listener may be away for most of a minute, at a quiet one's for days."""
_RECENT = 500
"""Of these, kept in memory: what listeners who are there ask for."""
_SWEEP_EVERY = 500
HEARTBEAT_SECONDS = 15.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `content` is its JSON."""

    id: int
    kind: str
    content: str


class Bell:
    """Wakes coroutines of one loop from any thread; rings that come close together are heard as one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()
        self._is_ringing = False

    def hang_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def ring(self) -> None:
        loop = self._loop
        if loop is None or self._is_ringing or loop.is_closed():
            return
        self._is_ringing = True
        loop.call_soon_threadsafe(self._sound)

    def next_ring(self) -> asyncio.Event:
        """Set at the next ring: take it first, look then, wait last."""
        return self._next

    def _sound(self) -> None:
        self._is_ringing = False
        heard, self._next = self._next, asyncio.Event()
        heard.set()


class Events:
    """The stream of one node."""

    def __init__(self, book: Book, *, now: Callable[[], float] = time.time) -> None:
        self._book = book
        self._now = now
        self._lock = threading.Lock()
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._waiting: deque[tuple[str, dict[str, object]]] = deque(maxlen=RING)
        """What the disk has refused, oldest first."""
        self._heard: list[Callable[[str, Mapping[str, object]], None]] = []
        self.bell = Bell()
        self._last = int(book.rows("SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)")[0][0])

    def emit(self, kind: str, subject: Mapping[str, object] | None = None, **details: object) -> None:
        """Write one event down and tell everybody who listens. `subject` is `{type, id, name}`."""
        told: dict[str, object] = {"id": 0, "at": timestamp(self._now()), "kind": kind, "subject": subject, **details}
        self._write_down((kind, told))

    def go_on(self) -> None:
        """Try again what the disk has refused, if anything."""
        if self._waiting:
            self._write_down()

    def _write_down(self, *new: tuple[str, dict[str, object]]) -> None:
        with self._lock:
            written = (*self._waiting, *new)
            events: list[Event] = []
            for number, (kind, told) in enumerate(written, self._last + 1):
                told["id"] = number
                events.append(Event(number, kind, msgspec.json.encode(told).decode()))
            try:
                self._keep(events)
            except (OSError, LockTimeout) as error:
                if not self._waiting:
                    _log.error("events.wait", error=repr(error))
                self._waiting.extend(new)
                return
            self._waiting.clear()
            self._last += len(events)
            self._recent.extend(events)
        self.bell.ring()
        for kind, told in written:
            for hear in self._heard:
                hear(kind, told)

    def _keep(self, events: Iterable[Event]) -> None:
        with self._book.change() as sql:
            for event in events:
                sql.execute("INSERT INTO events (id, content) VALUES (?, ?)", (event.id, event.content))
                if event.id % _SWEEP_EVERY == 0:
                    sql.execute("DELETE FROM events WHERE id <= ?", (event.id - RING,))

    def on_event(self, hear: Callable[[str, Mapping[str, object]], None]) -> None:
        """Have `hear` called with every event's kind and fields, in whatever thread it happens; it must not raise."""
        self._heard.append(hear)

    @property
    def last(self) -> int:
        """The newest event's number."""
        return self._last

    def after(self, number: int, *, most: int = _RECENT) -> list[Event]:
        """What is kept of the events after this number, oldest first. A number not given yet means: all."""
        if number > self._last:
            number = 0
        with self._lock:
            recent = list(self._recent)
        if recent and number >= recent[0].id - 1:
            return [event for event in recent if event.id > number][:most]
        rows = self._book.rows("SELECT id, content FROM events WHERE id > ? ORDER BY id LIMIT ?", number, most)
        return [Event(one, msgspec.json.decode(content)["kind"], content) for one, content in rows]

    async def follow(
        self, *, after: int | None = None, wanted: Iterable[str] = (), until: asyncio.Event | None = None
    ) -> AsyncGenerator[Event | None]:
        """Events from `after` on (default: from now), for ever or `until`; None where nothing wanted happened for long.

        `wanted` are kinds, or beginnings of kinds that end with a dot; empty: all.
        """
        kinds = tuple(wanted)
        place = self._last if after is None else after
        clock = asyncio.get_running_loop().time
        told_at = clock()
        while until is None or not until.is_set():
            rung = self.bell.next_ring()
            found = self.after(place)
            for event in found:
                place = event.id
                if not kinds or event.kind in kinds or event.kind.startswith(tuple(k for k in kinds if k[-1] == ".")):
                    yield event
                    told_at = clock()
            if not found:
                place = min(place, self._last)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), max(0.0, told_at + HEARTBEAT_SECONDS - clock()))
            if clock() - told_at >= HEARTBEAT_SECONDS:
                yield None
                told_at = clock()
