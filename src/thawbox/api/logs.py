"""Structured logs on stderr: one event for each fact, as JSON or for people, from our steps and from the libraries.

Rule 1: a step's fields are safe to write (see `telemetry`); an error is told by its code, and by its cause only where
that is the machine's and not the caller's or a program's.
Rule 2: a traceback shows lines of code, never the values of variables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from thawbox.errors import DumpFailed, IntegrityError, InvalidRequest, NotFound, Refused, RestoreFailed, Unavailable
from thawbox.telemetry import Step

if TYPE_CHECKING:
    from structlog.typing import Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_OF_THE_CALLER = (InvalidRequest, NotFound, Refused)
_OF_THE_MACHINE = (DumpFailed, RestoreFailed, IntegrityError, Unavailable, OSError)
_WORTH_INFO = frozenset({
    "run", "checkpoint", "checkpoint.begin", "checkpoint.finish", "restore", "clone", "freeze", "thaw", "stop",
    "remove", "flatten", "template.create", "template.rebuild", "recovery", "pool.acquire", "push", "pull",
})  # fmt: skip
LEASE_ROUTE = "/v1/placeholders/lease"
"""The route that a node's agent asks every few seconds: it would drown all else, here and in the audit log."""
_ALARMING = frozenset({"snapshot.damaged", "audit.failed", "recover.gave_up", "fence.failed"})


def set_up_logs(*, level: str, as_json: bool, stream: TextIO | None = None) -> None:
    """Send every log of this process, structlog's and the standard library's, to `stream` (default: stderr)."""
    target = sys.stderr if stream is None else stream
    shared: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    )
    plain = structlog.dev.plain_traceback  # rich's would show the values of variables
    renderer: Any = structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain)
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if as_json else [renderer]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])


class StepLog:
    """An observer of steps: each is one event when it has ended, `NAME.complete` or `NAME.failed`."""

    def __init__(self) -> None:
        self._log: Any = structlog.get_logger()

    def __call__(self, step: Step) -> Callable[[], None]:
        return partial(self._ended, step)

    def _ended(self, step: Step) -> None:
        if step.is_fact:
            tell = self._log.error if step.name in _ALARMING else self._log.info
            tell(step.name, **step.fields)
            return
        ms = round(step.seconds * 1000, 3)
        if step.error is None:
            tell = self._log.info if _is_worth_info(step) else self._log.debug
            tell(f"{step.name}.complete", **step.fields, ms=ms)
            return
        tell = self._log.info if isinstance(step.error, _OF_THE_CALLER) else self._log.warning
        cause = {"cause": str(step.error)} if isinstance(step.error, _OF_THE_MACHINE) else {}
        tell(f"{step.name}.failed", **step.fields, ms=ms, code=step.failure, **cause)


def _is_worth_info(step: Step) -> bool:
    if step.name == "http.request":
        return step.fields.get("method") not in ("GET", "HEAD") and step.fields.get("route") != LEASE_ROUTE
    return step.name in _WORTH_INFO
