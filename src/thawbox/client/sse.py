"""Server-sent events out of bytes. Pure; https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: `content` is the JSON object in its data."""

    name: str
    content: dict[str, Any]
    id: str


@dataclass(slots=True)
class EventLines:
    """Give it what came, piece by piece; an event is complete with the empty line after it.

    Lines end with a line feed, alone or after a carriage return, and with nothing that only Unicode calls a line's end:
    what programs printed is full of that.
    """

    id: str = ""
    """Of the last event, or where the stream began: what to go on after."""
    _begun: list[bytes] = field(default_factory=list[bytes])
    _name: str = "message"
    _content: list[str] = field(default_factory=list[str])

    def take(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that this piece completes."""
        if b"\n" not in piece:
            self._begun.append(piece)
            return
        *lines, rest = b"".join((*self._begun, piece)).split(b"\n")
        self._begun = [rest]
        for line in lines:
            event = self._take_line(line.removesuffix(b"\r").decode())
            if event is not None:
                yield event

    def _take_line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "id":
            self.id = value
        elif name == "data":
            self._content.append(value)
        return None

    def _complete(self) -> ServerEvent | None:
        name, content = self._name, self._content
        self._name, self._content = "message", []
        return ServerEvent(name, json.loads("\n".join(content)), self.id) if content else None
