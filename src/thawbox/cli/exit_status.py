"""The one table from what went wrong to the exit status of `thawbox`.

From 100 up, because `exec` and `run --attach` pass on the status of the command inside, which is rarely in that range.
"""

from __future__ import annotations

from thawbox.errors import (
    EngineError,
    Incompatible,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Refused,
    ThawboxError,
    Unavailable,
    Unsupported,
)

EXIT_STATUSES: dict[type[ThawboxError], int] = {
    InvalidRequest: 102,
    NotFound: 103,
    Unsupported: 104,
    Incompatible: 105,
    Unavailable: 106,
    EngineError: 107,
    IntegrityError: 108,
    Refused: 111,
}
"""One per family: a class that stands here answers for all below it."""

USAGE = EXIT_STATUSES[InvalidRequest]
UNFIT = EXIT_STATUSES[Unsupported]
UNAVAILABLE = EXIT_STATUSES[Unavailable]
DAMAGED = EXIT_STATUSES[IntegrityError]
HOST = 109
SESSION_INTERRUPTED = 110
DEFECT = 120
INTERRUPTED = 130
BROKEN_PIPE = 141

MEANINGS: dict[int, str] = {
    0: "it was done",
    102: "the request is wrong: an option, a spec, or a state in which this cannot be done",
    103: "no such sandbox, snapshot or file here",
    104: "this host cannot do it; `doctor`: the main job cannot run here",
    105: "the snapshot needs another CPU, kernel, CRIU or rootfs than this node has",
    106: "not now: busy, or no answer in time; the same call may succeed later",
    107: "CRIU, or the start of the sandbox, failed; `--verbose` shows the engine's own last words",
    108: "stored bytes are not what they should be; never retry",
    109: "the host's system refused: disk full, no permission, a file that is not there",
    110: "`exec`: the command cannot be heard any more, because its sandbox stopped or went back to an earlier time",
    111: "the node's service refused: no token, or one that may not do this",
    120: "a defect of thawbox itself; `--verbose` shows where",
    130: "interrupted from the keyboard (128 + the signal's number for others)",
    141: "whoever read the output went away",
}
"""Every status of thawbox's own, for the help and the docs."""


def exit_status_of(error: ThawboxError) -> int:
    """The exit status for an error: that of the nearest of its classes in the table."""
    for kind in type(error).__mro__:
        if kind in EXIT_STATUSES:
            return EXIT_STATUSES[kind]
    return DEFECT
