"""The bytes between the host and a sandbox's init: frames, the config file, log records. Pure; see PROTOCOL.md.

What comes from a sandbox is untrusted: everything here is bounded, and raises WireError on what makes no sense.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from thawbox.errors import InvalidRequest, Unsupported

SessionId = NewType("SessionId", int)
"""What a command started by `exec` is known by, from 1 up; never used twice in one sandbox. 0 is the main program."""

HEADER = struct.Struct("<BI")
MAX_PAYLOAD = 256 << 10
WINDOW = 64 << 10
"""Bytes of standard input that may be on their way, and bytes of output that init keeps per stream."""
OLDEST = (1 << 64) - 1
"""As an output offset: from the oldest byte that is kept."""
DEFAULT_LOG_BYTES = 4 << 20
DEFAULT_LOG_FILES = 3
_MAX_STRINGS = 16384
_MAX_GROUPS = 64
_CONFIG_MAGIC = b"thawbox1"


class WireError(Unsupported):
    """Init sent what the protocol does not know: another version, or something in the sandbox poses as init."""

    code = "unsupported.init"
    default_remediation = "restart the sandbox with this version of thawbox"


class Frame(enum.IntEnum):
    """Frame types; those from 0x80 on come from init."""

    HELLO = 0x01
    EXEC = 0x02
    ATTACH = 0x03
    LIST = 0x04
    SIGNAL = 0x05
    QUIESCE = 0x06
    END_SESSIONS = 0x07
    STDIN = 0x10
    STDIN_END = 0x11
    RESIZE = 0x12
    ACK = 0x13
    STATE = 0x81
    STARTED = 0x82
    ATTACHED = 0x83
    SESSIONS = 0x84
    DONE = 0x85
    OUTPUT = 0x90
    STDIN_ACK = 0x91
    EXIT = 0x92
    DETACHED = 0x93
    FAILED = 0xFF


class Stream(enum.IntEnum):
    """Where bytes of output came from. NOTE is init's own word in the log."""

    NOTE = 0
    STDOUT = 1
    STDERR = 2


class ProgramState(enum.IntEnum):
    """How far a program of the sandbox has come: ENDING means ended with output still to be read."""

    RUNNING = 0
    ENDING = 1
    ENDED = 2


@dataclass(frozen=True, slots=True)
class Terminal:
    """The size of a pseudo-terminal, in characters."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A program to start inside a sandbox. Ids are numbers: names are looked up by the caller.

    `env` is laid over the main program's environment. With a `terminal` the program gets a pty as its controlling
    terminal and everything it prints is stdout. `detach`: nobody will attach, output goes to the sandbox's log.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    cwd: str = "/"
    terminal: Terminal | None = None
    stdin: bool = False
    detach: bool = False


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A resource limit of every program of the sandbox: a number of `resource.RLIMIT_*`, and two values."""

    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class InitState:
    """What init answers to a ping. `log_end` is the offset at which the next log record will stand."""

    protocol: int
    main_pid: int
    main_state: ProgramState
    sessions: int
    last_session: SessionId
    log_end: int


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One line of the list of sessions. `pid` is the number inside the sandbox; `name` is argv[0], at most 47 bytes."""

    id: SessionId
    pid: int
    name: str
    terminal: bool
    detached: bool
    attached: bool
    state: ProgramState
    status: int
    signal: int


def _strings(texts: Sequence[str], what: str) -> bytes:
    if len(texts) > _MAX_STRINGS:
        raise InvalidRequest(f"{what} has {len(texts)} entries, more than {_MAX_STRINGS}")
    for text in texts:
        if "\0" in text:
            raise InvalidRequest(f"{what} holds a NUL byte")
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in texts)


def encode_exec(request: ExecRequest) -> bytes:
    """The payload of an EXEC frame; raises InvalidRequest for what cannot be sent (NUL bytes, more than 256 KiB)."""
    if not request.argv or not request.argv[0]:
        raise InvalidRequest("there is no command to run")
    if len(request.groups) > _MAX_GROUPS:
        raise InvalidRequest(f"{len(request.groups)} supplementary groups are more than {_MAX_GROUPS}")
    if any(not name or "=" in name for name in request.env):
        raise InvalidRequest("the name of an environment entry is empty or holds '='")
    size = request.terminal or Terminal(0, 0)
    flags = (request.terminal is not None) | request.detach << 1 | request.stdin << 2
    head = _packed("<BHHIII", flags, size.rows, size.columns, request.uid, request.gid, len(request.groups))
    groups = _packed(f"<{len(request.groups)}I", *request.groups)
    counts = _packed("<II", len(request.argv), len(request.env))
    env = [f"{name}={value}" for name, value in request.env.items()]
    texts = _strings([request.cwd], "cwd") + _strings(request.argv, "argv") + _strings(env, "env")
    payload = head + groups + counts + texts
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(
            f"the command and its environment take {len(payload)} bytes, more than {MAX_PAYLOAD}",
            remediation="pass large values through a file or standard input",
        )
    return payload


def _packed(layout: str, *values: int) -> bytes:
    try:
        return struct.pack(layout, *values)
    except struct.error as error:
        raise InvalidRequest(f"a number is out of its range: {error}") from None


def encode_config(
    main: ExecRequest,
    *,
    rlimits: Sequence[Rlimit] = (),
    log_bytes: int = DEFAULT_LOG_BYTES,
    log_files: int = DEFAULT_LOG_FILES,
) -> bytes:
    """The content of `/.thawbox/config`: the main program (`env` is its whole environment) and the log's size.

    The log is kept in at most `log_files` files of about `log_bytes` each. Raises InvalidRequest as `encode_exec`.
    """
    if not 1 <= log_files <= 99:
        raise InvalidRequest(f"log_files={log_files} is outside 1 to 99")
    head = _packed("<III", log_bytes, log_files, len(rlimits))
    limits = b"".join(_packed("<IQQ", limit.resource, limit.soft, limit.hard) for limit in rlimits)
    return _CONFIG_MAGIC + head + limits + encode_exec(main)


def unpack(layout: str, payload: bytes) -> tuple[int, ...]:
    """`struct.unpack` of a whole payload; raises WireError where it does not fit."""
    try:
        return struct.unpack(layout, payload)
    except struct.error:
        raise WireError(f"init sent a frame of {len(payload)} bytes that makes no sense") from None


def decode_state(payload: bytes) -> InitState:
    protocol, pid, state, sessions, last, log_end = unpack("<IIBIIQ", payload)
    return InitState(protocol, pid, _state(state), sessions, SessionId(last), log_end)


def _state(number: int) -> ProgramState:
    try:
        return ProgramState(number)
    except ValueError:
        raise WireError(f"init names a state {number}") from None


_SUMMARY = struct.Struct("<IIBBBBB48s")


def decode_sessions(payload: bytes) -> tuple[SessionSummary, ...]:
    if len(payload) % _SUMMARY.size:
        raise WireError("init sent half a list of sessions")
    return tuple(_summary(record) for record in _SUMMARY.iter_unpack(payload))


def _summary(record: tuple[int, int, int, int, int, int, int, bytes]) -> SessionSummary:
    number, pid, flags, state, attached, status, signal, name = record
    shown = name.split(b"\0")[0].decode("utf-8", "replace")
    return SessionSummary(
        SessionId(number), pid, shown, bool(flags & 1), bool(flags & 2), bool(attached), _state(state), status, signal
    )
