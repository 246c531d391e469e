"""Reading the output log that a sandbox's init keeps in `/.thawbox/log`, across rotations and restores.

The files are written by the sandbox and so are untrusted: opened without following links, read in bounded pieces.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NewType

from thawbox.host.init_wire import SessionId, Stream

LogOffset = NewType("LogOffset", int)
"""Bytes of records, headers included, since the sandbox's log began: names the place of a record for good."""

_RECORD = struct.Struct("<IBBHIIQQ")
_MAGIC = 0x474C4254  # "TBLG"
_MAX_LENGTH = 64 << 10
_NAME = "main.log"
_MAX_FILES = 99
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A piece of output. `session` 0 is the main program; `time_ns` is wall time, nanoseconds since 1970.

    `content` ends with a line break unless `partial`: then its last line goes on in the next record of the same
    session and stream. Within one sandbox `time_ns` strictly rises from record to record.
    """

    offset: LogOffset
    time_ns: int
    session: SessionId
    stream: Stream
    partial: bool
    content: bytes


@dataclass(frozen=True, slots=True)
class LogCursor:
    """The record that was read last. Reading goes on after it, even in a sandbox restored to an earlier time."""

    offset: LogOffset
    time_ns: int


def cursor_after(record: LogRecord) -> LogCursor:
    """The place to go on from once `record` was dealt with."""
    return LogCursor(record.offset, record.time_ns)


def read_log(directory_fd: int, *, after: LogCursor | None = None) -> Iterator[LogRecord]:
    """The records that are there now, oldest first, from `after` on.

    `directory_fd` is an open descriptor of the log directory (see `inside.open_inside`). After a restore to an
    earlier time the record named by `after` is gone: what was printed since then is found by its wall time, so
    nothing is repeated and nothing new is missed. Records that were rotated away are passed over.
    """
    with contextlib.ExitStack() as stack:
        files: list[int] = []
        rewound = after is not None
        for number in range(_MAX_FILES):
            fd = _open_file(directory_fd, number)
            if fd is None:
                break
            stack.callback(os.close, fd)
            files.insert(0, fd)
            if after is not None and (place := _place_of(fd, after)) is not None:
                seen = _record_at(fd, place)
                rewound = seen is None or seen.time_ns != after.time_ns
                if not rewound:
                    break
        yield from _new_records(files, after, rewound=rewound)


def _place_of(fd: int, cursor: LogCursor) -> int | None:
    """Where in this file the cursor's record stands; None if the file begins behind it."""
    first = _record_at(fd, 0)
    return cursor.offset - first.offset if first is not None and first.offset <= cursor.offset else None


def _new_records(files: list[int], after: LogCursor | None, *, rewound: bool) -> Iterator[LogRecord]:
    newest = after.time_ns if after is not None else -1
    for fd in files:
        place = _place_of(fd, after) if after is not None and not rewound else None
        for record in _records(fd, place or 0):
            if record.time_ns > newest:  # times strictly rise; a rotation between two opens shows one file twice
                newest = record.time_ns
                yield record


def follow_log(
    directory_fd: int, *, after: LogCursor | None = None, stop: Callable[[], bool], poll_seconds: float = POLL_SECONDS
) -> Iterator[LogRecord]:
    """`read_log`, then whatever is added, until `stop()` is true and nothing more is there."""
    while True:
        ending = stop()
        moved = False
        for record in read_log(directory_fd, after=after):
            after, moved = cursor_after(record), True
            yield record
        if ending and not moved:
            return
        if not moved:
            time.sleep(poll_seconds)


def _open_file(directory_fd: int, number: int) -> int | None:
    name = _NAME if number == 0 else f"{_NAME}.{number}"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=directory_fd)
    except OSError:
        return None  # not there, or a link or socket that the sandbox put in its place
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _record_at(fd: int, position: int) -> LogRecord | None:
    """The record at a file position; None at the end, in front of one half written, or of what is no record."""
    header = os.pread(fd, _RECORD.size, position)
    if len(header) < _RECORD.size:
        return None
    magic, stream, partial, _, session, length, offset, time_ns = _RECORD.unpack(header)
    if magic != _MAGIC or length > _MAX_LENGTH or stream > Stream.STDERR:
        return None
    content = os.pread(fd, length, position + _RECORD.size)
    if len(content) < length:
        return None
    return LogRecord(LogOffset(offset), time_ns, SessionId(session), Stream(stream), bool(partial), content)


def _records(fd: int, position: int) -> Iterator[LogRecord]:
    while record := _record_at(fd, position):
        position += _RECORD.size + len(record.content)
        yield record
