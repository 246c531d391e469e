"""What happens to replicas behind everybody's back, as log lines: to stderr, unless a service has put logs elsewhere.

By the standard library's logging: a command that prints JSON must not find a log line on its stdout, and nobody has to
set anything up for that.
"""

from __future__ import annotations

import logging

_log = logging.getLogger("thawbox.replicas")


def log_error(event: str, **fields: object) -> None:
    """Something failed that nobody waits for."""
    _log.error("%s %s", event, _fields(fields), extra={"event": event, "fields": fields})


def log_notice(event: str, **fields: object) -> None:
    """Something was mended or done that whoever saw an error will want to know."""
    _log.warning("%s %s", event, _fields(fields), extra={"event": event, "fields": fields})


def log_done(event: str, **fields: object) -> None:
    """Something was done as it should be: shown only where somebody asked for it."""
    _log.info("%s %s", event, _fields(fields), extra={"event": event, "fields": fields})


def _fields(fields: dict[str, object]) -> str:
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(value: str) -> str:
    return value if value and not set(value) & set(" \"'=") else '"' + value.replace('"', "'") + '"'
