"""The context cache: what every answer needs to have been read before, kept where answers are made.

Two implementations of one protocol: `local` (no network; the default) and `vertex` (Vertex AI Context Caching).
A cache outlives neither its time nor a snapshot by itself: `suspend` before a checkpoint lets go of connections and
credentials, and `wake` after a restore trusts nothing that was held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Context:
    """What is cached: the persona as an instruction, and passages that are worth knowing for any answer."""

    instruction: str
    passages: tuple[str, ...]

    @property
    def digest(self) -> str:
        text = "\0".join((self.instruction, *self.passages))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Handle:
    """A cached context: its name where it is cached, and until when it lives there (seconds since the epoch)."""

    name: str
    digest: str
    expires_at: float


class CacheUnavailable(Exception):
    """The cache cannot be reached or refuses us; the text says why. Later it may not."""


class ContextCache(Protocol):
    """One context, cached. Safe to use from several threads."""

    @property
    def kind(self) -> str: ...

    def warm(self, context: Context) -> Handle:
        """Cache a context, or find it cached already; raises CacheUnavailable."""
        ...

    def handle(self) -> Handle:
        """A handle that is good for a while: its time is prolonged, or the context cached anew, where it must be."""
        ...

    def suspend(self) -> None:
        """Let go of everything that must not be in a snapshot."""
        ...

    def wake(self) -> None:
        """Trust nothing that was held: the next `handle` asks anew, with new credentials. Returns at once."""
        ...

    def complete(self, question: str, passages: Sequence[str]) -> str:
        """An answer to the question from the passages, best first, in the persona's voice."""
        ...
