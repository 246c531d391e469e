"""Server-sent events out of lines. Pure; https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import json
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
    """Give it line by line, without their ends; an event is complete with the empty line after it."""

    _name: str = "message"
    _id: str = ""
    _content: list[str] = field(default_factory=list[str])

    def take(self, line: str) -> ServerEvent | None:
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._content.append(value)
        return None

    def _complete(self) -> ServerEvent | None:
        name, content = self._name, self._content
        self._name, self._content = "message", []
        return ServerEvent(name, json.loads("\n".join(content)), self._id) if content else None
