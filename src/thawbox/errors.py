"""What can go wrong, sorted by what whoever catches it should do next.

Every error carries a stable dotted `code`, the `cause` in words, and a `remediation`; the edges (CLI, HTTP)
own one table each from class to exit status or HTTP status. The core knows neither.
"""

from __future__ import annotations

from typing import ClassVar


class ThawboxError(Exception):
    """Base of every error thawbox raises on purpose.

    `cause` says what is true now; `remediation` says what to do next; `retryable` is true when the same call may
    succeed later with nothing changed by the caller; `log` is the tail of the failing program's own log, if any.
    """

    code: ClassVar[str] = "thawbox"
    retryable: ClassVar[bool] = False
    default_remediation: ClassVar[str] = ""

    def __init__(self, cause: str, *, remediation: str = "", log: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remediation = remediation or self.default_remediation
        self.log = log

    def __str__(self) -> str:
        return f"{self.cause}; {self.remediation}" if self.remediation else self.cause


class InvalidRequest(ThawboxError):
    """The request itself is wrong: fix it."""

    code = "invalid"
    default_remediation = "correct the request"


class InvalidSpec(InvalidRequest):
    """A sandbox spec that cannot be run."""

    code = "invalid.spec"
    default_remediation = "correct the spec; `thawbox run --help` lists every option"


class InvalidTransition(InvalidRequest):
    """The sandbox is in a phase in which this cannot be done."""

    code = "invalid.transition"
    default_remediation = "look at the sandbox's state with `thawbox inspect`"


class CommandInterrupted(InvalidTransition):
    """A command can be heard no more: its sandbox stopped, or went back to a time before it."""

    code = "invalid.interrupted"
    default_remediation = "look at the sandbox; the command may have done a part of its work"


class InvalidPath(InvalidRequest):
    """What is at that path in the sandbox does not allow this: a directory in the way, a link in a circle."""

    code = "invalid.path"
    default_remediation = "correct the path, or look at what is there"


class IdempotencyConflict(InvalidRequest):
    """An idempotency key that was used for another request, or whose answer cannot be given again."""

    code = "invalid.idempotency"
    default_remediation = "use a new key for a new request"


class TooLarge(InvalidRequest):
    """A body that is longer than any request needs."""

    code = "invalid.too_large"
    default_remediation = "send large content as a file: PUT …/files"


class Refused(ThawboxError):
    """Whoever asks may not: ask with another token."""

    code = "refused"


class Unauthenticated(Refused):
    code = "unauthenticated"
    default_remediation = "send `Authorization: Bearer TOKEN`; `thawbox token create` makes one"


class Forbidden(Refused):
    code = "forbidden"
    default_remediation = "use a token of a wider scope"


class NotFound(ThawboxError):
    """What was named does not exist here: look elsewhere."""

    code = "not_found"


class SandboxNotFound(NotFound):
    code = "not_found.sandbox"
    default_remediation = "`thawbox ps --all` lists the sandboxes of this node"


class SnapshotNotFound(NotFound):
    code = "not_found.snapshot"
    default_remediation = "`thawbox snapshots ls` lists the snapshots of this node"


class PathNotFound(NotFound):
    code = "not_found.path"
    default_remediation = "list its directory to see what is there"


class Unsupported(ThawboxError):
    """This host or engine cannot do it; another may. Names the process, the descriptor and the remedy."""

    code = "unsupported"
    default_remediation = "run `thawbox doctor`"


class Incompatible(ThawboxError):
    """The snapshot needs another CPU, kernel, CRIU or rootfs than this node has: try another node."""

    code = "incompatible"
    default_remediation = "restore on a node like the one that made the snapshot"


class Unavailable(ThawboxError):
    """Not now: wait, then retry."""

    code = "unavailable"
    retryable = True
    default_remediation = "wait, then retry"


class PoolExhausted(Unavailable):
    code = "unavailable.pool"


class LockTimeout(Unavailable):
    code = "unavailable.lock"


class BackendUnavailable(Unavailable):
    code = "unavailable.backend"


class NoSpace(Unavailable):
    """There is no room to write to."""

    code = "unavailable.space"
    default_remediation = "free some space, then retry"


class LimitReached(Unavailable):
    """A token has as much as it may have."""

    code = "unavailable.limit"
    default_remediation = "remove what is no longer needed, or ask for a token with wider limits"


class Busy(Unavailable):
    """The node has as much work as it takes on, or is stopping."""

    code = "unavailable.busy"


class Cancelled(Unavailable):
    """An operation that was cancelled before it was done; what it had begun was undone."""

    code = "unavailable.cancelled"
    default_remediation = "begin it anew"


class EngineError(ThawboxError):
    """The engine failed: `.log` holds its own last words."""

    code = "engine"


class DumpFailed(EngineError):
    code = "engine.dump"


class CopyLost(DumpFailed):
    """What a short freeze left to be read was gone before it was read; a plain dump needs no such thing."""

    code = "engine.copy"


class RestoreFailed(EngineError):
    code = "engine.restore"


class StartFailed(EngineError):
    """A new sandbox could not be brought to its program's first instruction."""

    code = "engine.start"


class HookFailed(EngineError):
    """A program's own hook failed, hung or did not answer as it must: a clone of it is gone, an original runs on."""

    code = "engine.hook"
    default_remediation = "mend the hook, or leave hooks out with --hooks none"


class IntegrityError(ThawboxError):
    """Stored bytes are not what they should be: stop, never retry."""

    code = "integrity"


class CorruptSnapshot(IntegrityError):
    code = "integrity.corrupt"
    default_remediation = "`thawbox snapshots verify` names what is damaged; restore an older snapshot or pull it again"


class BrokenChain(IntegrityError):
    code = "integrity.chain"
    default_remediation = "import or pull the missing parent, or restore a snapshot whose chain is whole"


class UntrustedSnapshot(IntegrityError):
    code = "integrity.untrusted"
    default_remediation = "use a snapshot signed by a trusted key"
