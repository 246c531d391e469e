"""Listening to a supervisor: tests wait for what it says, never for time to pass."""

from __future__ import annotations

import contextlib
import queue

from thawbox.supervisor import Event


class Heard:
    """Give it to a Supervisor as `tell`; `until` waits for an event and keeps all that came before it in `all`."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.all: list[Event] = []

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def until(self, what: str, *, sandbox: str = "") -> Event:
        """The next event of this kind; raises queue.Empty, with what was heard shown, after a minute of silence."""
        while True:
            try:
                event = self._events.get(timeout=60)
            except queue.Empty:
                raise AssertionError(
                    f"no {what}; heard {[(one.what, dict(one.details)) for one in self.all]}"
                ) from None
            self.all.append(event)
            if event.what == what and sandbox in ("", event.sandbox):
                return event

    def forget(self) -> None:
        """Let go of what came and was not waited for."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.all.append(self._events.get_nowait())

    def kinds(self) -> list[str]:
        return [event.what for event in self.all]
