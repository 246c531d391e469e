"""How a failure is told: one sentence of cause, one of remedy, on stderr; with `--json` as one object."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import click

from thawbox.cli import exit_status
from thawbox.errors import ThawboxError, Unavailable

_REMEDIES = {
    errno.ENOSPC: "free some space, or remove snapshots with `thawbox snapshots gc` or `thawbox snapshots rm`",
    errno.EDQUOT: "free some space within the quota",
    errno.EACCES: "run as root (sudo), or give a path that can be used",
    errno.EPERM: "run as root (sudo); in a container: --privileged",
    errno.EROFS: "set THAWBOX_HOME to a directory on a writable filesystem",
    errno.ENOENT: "give a path that exists",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free some memory: stop or remove sandboxes",
    errno.EIO: "look into the kernel's log (dmesg): the disk failed",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure as the command line tells it. `code` is stable; `log` is the last words of a failed program."""

    status: int
    code: str
    cause: str
    remediation: str
    log: str = ""


class SeveralFailed(Exception):
    """A command that acts on many things failed for more than one of them; each `errors` is told."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__(f"{len(errors)} failures")
        self.errors = errors


def failure_of(error: BaseException) -> Failure:
    """What to say about an exception, and the status to exit with."""
    if isinstance(error, ThawboxError):
        return Failure(exit_status.exit_status_of(error), error.code, error.cause, error.remediation, error.log)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        remedy = f"`{context.command_path} --help` shows how" if context is not None else "`thawbox --help` shows how"
        return Failure(exit_status.USAGE, "invalid.usage", error.format_message().rstrip("."), remedy)
    if isinstance(error, sqlite3.Error):
        cause = f"the node's records could not be read or written: {error}"
        return Failure(exit_status.HOST, "host.records", cause, "the files below THAWBOX_HOME may be damaged")
    if isinstance(error, OSError):
        return _of_system(error.errno or 0, os.strerror(error.errno) if error.errno else str(error), error.filename)
    if isinstance(error, subprocess.TimeoutExpired):
        return Failure(exit_status.EXIT_STATUSES[Unavailable], "unavailable.program", str(error), "retry")
    cause = f"unexpected {type(error).__name__}: {error}".rstrip(": ")
    return Failure(exit_status.DEFECT, "defect", cause, "a defect of thawbox: report it with what --verbose shows")


def _of_system(number: int, words: str, path: object) -> Failure:
    name = errno.errorcode.get(number, "other").lower()
    where = f": {path}" if path is not None else ""
    return Failure(exit_status.HOST, f"host.{name}", words + where, _REMEDIES.get(number, "run `thawbox doctor`"))


def tell(errors: Sequence[BaseException], *, as_json: bool, verbose: bool) -> int:
    """Tell every failure on stderr and return the exit status, which is the first one's."""
    failures = [failure_of(error) for error in errors]
    if as_json:
        return _tell_as_json(failures, verbose=verbose)
    for failure, error in zip(failures, errors, strict=True):
        print(f"thawbox: {failure.cause}", file=sys.stderr)
        if failure.remediation:
            print(f"         {failure.remediation}", file=sys.stderr)
        if verbose and failure.log:
            print(failure.log.rstrip(), file=sys.stderr)
        if verbose:
            traceback.print_exception(error, file=sys.stderr)
        elif failure.log:
            print("         --verbose shows the engine's own last words", file=sys.stderr)
    return failures[0].status


def tell_of_command(failure: Failure, *, as_json: bool) -> int:
    """Tell on stderr, in a shell's words, why a command in a sandbox did not run or can be heard no more."""
    if as_json:
        return _tell_as_json([failure], verbose=False)
    print(f"thawbox: {failure.cause}", file=sys.stderr)
    return failure.status


def _tell_as_json(failures: Sequence[Failure], *, verbose: bool) -> int:
    told = [_as_object(failure, verbose=verbose) for failure in failures]
    also = {"also": told[1:]} if len(told) > 1 else {}
    print(json.dumps({"error": told[0], **also}), file=sys.stderr)
    return failures[0].status


def _as_object(failure: Failure, *, verbose: bool) -> dict[str, object]:
    told: dict[str, object] = {"code": failure.code, "cause": failure.cause, "remediation": failure.remediation}
    if verbose and failure.log:
        told["log"] = failure.log
    return told
