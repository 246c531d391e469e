"""`run_code`: Python that runs in an interpreter which lives in the sandbox (guest/interpreter.py).

The interpreter is started by a detached exec, so it belongs to the sandbox and to its snapshots. It is reached by a
relay, exec'd for each run (`init relay`): what connects them lies inside, and what we hold is an ordinary session,
which lets go for a checkpoint and finds back. Nothing of ours is connected between runs.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from thawbox.errors import CommandInterrupted, InvalidRequest, StartFailed, Unavailable, Unsupported
from thawbox.host.init_client import ExecRefused, ExecSession, Output
from thawbox.host.init_wire import ExecRequest, ProgramState, SessionId, Stream, WireError
from thawbox.host.reach import listeners
from thawbox.sandbox.commands import Command, Ended
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link

CODE_LIMIT = 8 << 20
_PREFIX = "thawbox-code/"
_SOURCE = Path(__file__).parents[1] / "guest" / "interpreter.py"
_BOOT = "import os; exec(compile(os.environ.pop('THAWBOX_INTERPRETER'), 'thawbox-interpreter', 'exec'))"
_RELAY = "/.thawbox/init"
_NOBODY = 111
_HEADER = struct.Struct("<BI")
_RUN, _INTERRUPT, _CLOSE, _STDOUT, _STDERR, _DONE = 1, 2, 3, 17, 18, 19
_FRAME_LIMIT = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_START_SECONDS = 30.0
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02)
_LATE_SECONDS = 30.0
"""How much later than the timeout the interpreter may answer, before we take it for dead."""

Exec = Callable[..., ExecSession | SessionId | ExecRefused]


@dataclass(frozen=True, slots=True)
class CodeError:
    """What the code raised."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that the code made; `data` is base64."""

    mime: str
    data: str


@dataclass(frozen=True, slots=True)
class CodeResult:
    """What came of one run. `text` is the repr of the last expression; `count` is 1 in a fresh interpreter."""

    text: str | None = None
    error: CodeError | None = None
    images: tuple[Image, ...] = ()
    timed_out: bool = False
    count: int = 0
    stdout: str = ""
    stderr: str = ""
    duration_ms: float = 0.0


class CodeRun:
    """One run that is under way. A context manager; closed before its end it is interrupted."""

    def __init__(self, command: Command, request: bytes) -> None:
        self.command = command
        self._begun = time.perf_counter()
        self._request = request

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.command.close()

    def abandon(self) -> None:
        """From another thread: nobody wants the result any more; the code is interrupted."""
        self.command.abandon()

    def events(self) -> Generator[Output | CodeResult]:
        """What it prints, as it comes, and last the result, without what was printed.

        Raises CommandInterrupted when the sandbox stopped, Unavailable when the interpreter does not answer.
        """
        held = bytearray()
        offsets = {Stream.STDOUT: 0, Stream.STDERR: 0}
        following = self.command.events()
        try:
            self.command.feed_nowait(self._request)
            for event in following:
                if isinstance(event, Ended):
                    raise _unanswered(event)
                held += event.content if event.stream is Stream.STDOUT else b""
                for kind, content in _frames(held):
                    if kind == _DONE:
                        self.command.last_words = b""
                        yield self._result(content)
                        return
                    stream = Stream.STDOUT if kind == _STDOUT else Stream.STDERR
                    yield Output(stream, offsets[stream], content)
                    offsets[stream] += len(content)
        finally:
            following.close()

    def result(self, *, limit: int = 8 << 20) -> CodeResult:
        """The result with all that was printed, of each stream at most `limit` bytes."""
        printed = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        for event in self.events():
            if isinstance(event, CodeResult):
                out, err = (bytes(printed[stream]).decode(errors="replace") for stream in printed)
                return replace(event, stdout=out, stderr=err)
            kept = printed[event.stream]
            kept += event.content[: max(0, limit - len(kept))]
        raise CommandInterrupted("the run was abandoned by its caller")

    def _result(self, content: bytes) -> CodeResult:
        try:
            result = msgspec.json.decode(content, type=CodeResult)
        except (msgspec.DecodeError, RecursionError) as error:
            raise WireError(f"the interpreter in the sandbox gave no result that can be read: {error}") from None
        return replace(result, stdout="", stderr="", duration_ms=round((time.perf_counter() - self._begun) * 1000, 3))


def begin(context: Context, record: Record, execute: Exec, code: str, *, name: str, timeout: float | None) -> CodeRun:
    """Send code to the interpreter of that name, which is started if it is not there."""
    _check_name(name)
    if len(code) > CODE_LIMIT:
        raise InvalidRequest(f"the code is {len(code)} characters long, more than {CODE_LIMIT}")
    if timeout is not None and not 0 < timeout < 1e9:
        raise InvalidRequest(f"a timeout of {timeout:g} s makes no sense")
    _ensure_listens(context, record, execute, name)
    question = {"code": code, "timeout": timeout, "identity": f"{record.id}/{record.generation}"}
    late = None if timeout is None else timeout + _LATE_SECONDS
    command = Command(_relay(context, record, name), context.cgroup(record.id), timeout=late, last_words=_INTERRUPTION)
    return CodeRun(command, _frame(_RUN, json.dumps(question).encode()))


def end(context: Context, record: Record, *, name: str) -> None:
    """End an interpreter; nothing happens if there is none."""
    _check_name(name)
    if not _listens(record, name):
        return
    with Command(_relay(context, record, name), context.cgroup(record.id), timeout=_LATE_SECONDS) as command:
        command.feed_nowait(_frame(_CLOSE))
        for _ in command.events():
            continue


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "the name of a context is 1 to 64 letters, digits, dots, underscores and dashes, a letter or digit first"
        )


def _listens(record: Record, name: str) -> bool:
    return f"{_PREFIX}{name}" in listeners(record.keeper_pid, f"{_PREFIX}{name}")


@cache
def _source() -> str:
    return _SOURCE.read_text()


def _ensure_listens(context: Context, record: Record, execute: Exec, name: str) -> None:
    if _listens(record, name):
        return
    session = execute(("python3", "-c", _BOOT, name), env={"THAWBOX_INTERPRETER": _source()}, detach=True)
    if isinstance(session, ExecRefused):
        raise Unsupported(
            f"{record.name}: python3 cannot be started in it: {session.message}",
            remediation="use a rootfs that has python3 in its PATH",
        )
    deadline = time.monotonic() + _START_SECONDS
    for tries in range(1 << 30):
        if _listens(record, name):
            return
        if time.monotonic() >= deadline:
            raise Unavailable(f"{record.name}: its interpreter did not begin to listen within {_START_SECONDS:g} s")
        if tries % 10 == 9 and not _runs(context, record, session) and not _listens(record, name):
            raise StartFailed(
                f"{record.name}: its interpreter ended before it listened",
                remediation=f"`thawbox logs {record.name}` shows what it said",
            )
        time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])  # there is nothing to wait on


def _runs(context: Context, record: Record, session: object) -> bool:
    with open_link(context, record) as link:
        return any(one.id == session and one.state is ProgramState.RUNNING for one in link.sessions())


def _relay(context: Context, record: Record, name: str) -> ExecSession:
    request = ExecRequest((_RELAY, "relay", f"{_PREFIX}{name}"), stdin=True)
    with open_link(context, record) as link:
        session = link.exec(request)
    if not isinstance(session, ExecSession):
        raise Unsupported(f"{record.name}: its interpreter cannot be reached: {session}")
    return session


def _unanswered(ended: Ended) -> Unavailable:
    if ended.exit_status == _NOBODY:
        return Unavailable("the interpreter ended just now", remediation="run the code again, in a fresh one")
    what = "did not answer in time" if ended.timed_out else "went away before it answered"
    return Unavailable(f"the interpreter {what}", remediation="end the context, then run the code in a fresh one")


def _frame(kind: int, content: bytes = b"") -> bytes:
    return _HEADER.pack(kind, len(content)) + content


_INTERRUPTION = _frame(_INTERRUPT)


def _frames(held: bytearray) -> Generator[tuple[int, bytes]]:
    """The whole frames at the beginning of `held`, which they leave."""
    while len(held) >= _HEADER.size:
        kind, length = _HEADER.unpack_from(held)
        if length > _FRAME_LIMIT or kind not in (_STDOUT, _STDERR, _DONE):
            raise WireError("what answers as the interpreter in the sandbox is none")
        end = _HEADER.size + length
        if len(held) < end:
            return
        content = bytes(held[_HEADER.size : end])
        del held[:end]
        yield kind, content
