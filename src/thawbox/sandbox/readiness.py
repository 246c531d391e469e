"""When a sandbox is ready: its init answers, and then whatever the spec's `ready` asks for."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from thawbox.errors import NotFound, StartFailed
from thawbox.host.init_client import LinkLost
from thawbox.host.init_log import read_log
from thawbox.lifecycle import ALIVE
from thawbox.model import Health
from thawbox.sandbox.context import Context
from thawbox.sandbox.health import ask_health
from thawbox.sandbox.hooks import programs_ready
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link
from thawbox.sandbox.observe import ending_of, observe
from thawbox.sandbox.shells import open_log

FIRST_PAUSE = 0.0005
LONGEST_PAUSE = 0.05
PROBE_TIMEOUT = 5.0
LEAST_TIMEOUT = 0.001
"""Seconds for the last asking, however late it begins."""
LAST_WORDS = 4096
"""Bytes of a failed program's output that its error carries."""


def wait_ready(context: Context, record: Record) -> None:
    """Return once the sandbox is ready; raises StartFailed when it ends, or is not ready after `ready_timeout`."""
    deadline = time.monotonic() + record.spec.ready_timeout
    probe = _probe(context, record, deadline)
    pause = FIRST_PAUSE
    while not probe():
        seen = observe(context, record)
        if seen.phase not in ALIVE:
            ending = ending_of(context, seen)
            if not record.spec.ready and ending.status is not None and not ending.never_began:
                return  # a short program: it ran, and is over
            raise StartFailed(
                f"{record.name} ended before it was ready: {ending.why}",
                remediation="correct the command" if ending.never_began else "--verbose shows what it printed",
                log=_last_words(context, record),
            )
        if time.monotonic() > deadline:
            what = f"its probe {record.spec.ready!r}" if record.spec.ready else "its init"
            raise StartFailed(
                f"{record.name} runs, but {what} did not answer within {record.spec.ready_timeout:g} s",
                remediation="--verbose shows what it printed; or raise --ready-timeout",
                log=_last_words(context, record),
            )
        time.sleep(pause)  # nothing to wait on: the program may become ready in any way
        pause = min(2 * pause, LONGEST_PAUSE)


def _last_words(context: Context, record: Record) -> str:
    """The end of what the main program printed."""
    directory = open_log(context, record)
    try:
        printed = b"".join(entry.content for entry in read_log(directory))
    finally:
        os.close(directory)
    return printed[-LAST_WORDS:].decode("utf-8", "replace")


def _probe(context: Context, record: Record, deadline: float) -> Callable[[], bool]:
    """One asking, which ends at the deadline also when nobody answers."""

    def left(most: float = PROBE_TIMEOUT) -> float:
        return min(most, max(deadline - time.monotonic(), LEAST_TIMEOUT))

    kind, _, rest = record.spec.ready.partition(":")
    if kind == "log":
        return lambda: _log_holds(context, record, rest.encode())
    if kind == "guest":
        return lambda: programs_ready(context, record, timeout=left())
    if not kind:
        return lambda: init_answers(context, record, timeout=left())
    most = math.inf if kind == "cmd" else PROBE_TIMEOUT  # a command may itself wait for the program
    return lambda: not ask_health(context, record, Health(record.spec.ready, timeout=left(most)), reconnect=False)


def init_answers(context: Context, record: Record, *, timeout: float = PROBE_TIMEOUT) -> bool:
    """Whether the sandbox's init answers a ping within `timeout` seconds."""
    try:
        with open_link(context, record, timeout=timeout) as link:
            link.ping()
    except (NotFound, OSError, LinkLost):
        return False
    return True


def _log_holds(context: Context, record: Record, text: bytes) -> bool:
    directory = open_log(context, record)
    seen = b""
    try:
        for entry in read_log(directory):
            seen = seen[-len(text) :] + entry.content
            if text in seen:
                return True
    finally:
        os.close(directory)
    return False
