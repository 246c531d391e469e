"""What the client gives: plain values, the same for both kinds of client."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

JSON = dict[str, Any]
"""A JSON object as the service sent it; docs/api.md says what is in it."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command that ended. `exit_code` is as a shell says it; `truncated`: more was printed than an answer holds."""

    stdout: str
    stderr: str
    exit_code: int
    signal: int = 0
    timed_out: bool = False
    truncated: bool = False
    duration_ms: float = 0.0

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class CodeError:
    """What code raised."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that code made."""

    mime: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of code. `text` is the repr of the last expression, `count` 1 in a fresh interpreter."""

    text: str | None
    stdout: str
    stderr: str
    error: CodeError | None
    images: tuple[Image, ...]
    timed_out: bool
    count: int
    duration_ms: float

    @classmethod
    def of(cls, told: Mapping[str, Any], *, stdout: str | None = None, stderr: str | None = None) -> Execution:
        """The execution that a JSON answer tells of; what was streamed before it is given beside."""
        error = told.get("error")
        images = cast("list[dict[str, str]]", told.get("images") or [])
        return cls(
            text=told.get("text"),
            stdout=str(told.get("stdout", "")) if stdout is None else stdout,
            stderr=str(told.get("stderr", "")) if stderr is None else stderr,
            error=CodeError(error["name"], error["value"], error["traceback"]) if error else None,
            images=tuple(Image(one["mime"], base64.b64decode(one["data"])) for one in images),
            timed_out=bool(told.get("timed_out", False)),
            count=int(told.get("count", 0)),
            duration_ms=float(told.get("duration_ms", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, link or other thing in a sandbox; `type` is one of `file, directory, symlink, …`."""

    name: str
    path: str
    type: str
    size: int
    mode: int
    mtime: str
    target: str | None
    uid: int
    gid: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Entry:
        return cls(
            told["name"], told["path"], told["type"], told["size"], int(told["mode"], 8), told["mtime"],
            told["target"], told["uid"], told["gid"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on the node; `details` is all that was told of it."""

    id: int
    kind: str
    at: str
    subject: Mapping[str, Any]
    details: Mapping[str, Any]


def encoded(secrets: Mapping[str, bytes | str] | None) -> dict[str, str]:
    """Secrets as a request carries them."""
    raw = {name: value.encode() if isinstance(value, str) else value for name, value in (secrets or {}).items()}
    return {name: base64.b64encode(value).decode() for name, value in raw.items()}


def command_of(command: str | list[str] | tuple[str, ...]) -> list[str]:
    """An argument vector: text is for the shell."""
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)


def given(**fields: object) -> JSON:
    """The fields that are not None: what is not said is left to the service."""
    return {name: value for name, value in fields.items() if value is not None}
