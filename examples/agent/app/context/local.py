"""The local context cache: the context stays in this process, and the best passage is the answer. No network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from app.context import CacheUnavailable, Context, Handle


class LocalCache:
    """Keeps the context for `ttl` seconds and caches it anew when it has expired, like the one in the cloud."""

    kind = "local"

    def __init__(self, *, ttl: float, now: Callable[[], float] = time.time) -> None:
        self._ttl = ttl
        self._now = now
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._handle: Handle | None = None

    def warm(self, context: Context) -> Handle:
        with self._lock:
            self._context = context
            return self._renew(context)

    def handle(self) -> Handle:
        with self._lock:
            if self._context is None:
                raise CacheUnavailable("nothing was cached yet")
            if self._handle is None or self._handle.expires_at <= self._now():
                return self._renew(self._context)
            return self._handle

    def _renew(self, context: Context) -> Handle:
        self._handle = Handle(f"local/{context.digest[:16]}", context.digest, self._now() + self._ttl)
        return self._handle

    def suspend(self) -> None:
        """Nothing that is held here is secret or ends with a process."""

    def wake(self) -> None:
        with self._lock:
            self._handle = None

    def complete(self, question: str, passages: Sequence[str]) -> str:  # noqa: ARG002 - the protocol has it
        self.handle()
        return passages[0]
