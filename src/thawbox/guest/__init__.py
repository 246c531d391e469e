"""What a program inside a sandbox imports to take part in checkpoints. Standard library only; nothing of thawbox.

    from thawbox import guest

    @guest.before_checkpoint
    def drain() -> None: ...

    @guest.after_restore
    def reconnect(event: guest.Event) -> None: ...

    guest.ready()

The folder works alone, under any name: copy it, or mount it into the sandbox (docs/guest.md). Outside a sandbox all of
this is harmless: nobody calls.
"""

from .registry import (
    Event,
    Identity,
    after_checkpoint,
    after_restore,
    attach_loop,
    before_checkpoint,
    not_ready,
    ready,
    start,
    when_given,
)
from .secrets import Secret, secrets

__all__ = [
    "Event",
    "Identity",
    "Secret",
    "after_checkpoint",
    "after_restore",
    "attach_loop",
    "before_checkpoint",
    "not_ready",
    "ready",
    "secrets",
    "start",
    "when_given",
]
