"""Vertex AI Context Caching, with the google-genai SDK: created once, reused by every clone, prolonged, made anew.

The cache's display name is the context's digest, so an agent that starts or is cloned elsewhere finds the one that is
there. Google lets a cache expire by its own clock: a restored agent cannot know whether its handle still lives, so it
asks, with new credentials, and caches the context anew if it does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from app.context import CacheUnavailable, Context, Handle

_MARGIN = 0.25
"""Share of its time that a handle must have left; with less it is prolonged."""
_GONE = frozenset({400, 403, 404})
"""How Vertex AI answers for a cache that has expired or was deleted: not found, or not allowed to know."""

MakeClient = Callable[[], Any]
"""A new google.genai.Client with the credentials of now."""


class VertexCache:
    """One cached context of a project. `ttl` is seconds."""

    kind = "vertex"

    def __init__(
        self, make_client: MakeClient, *, model: str, ttl: float, now: Callable[[], float] = time.time
    ) -> None:
        self._make_client = make_client
        self._model = model
        self._ttl = ttl
        self._now = now
        self._lock = threading.RLock()
        self._client: Any = None
        self._context: Context | None = None
        self._handle: Handle | None = None
        self._is_trusted = False

    def warm(self, context: Context) -> Handle:
        with self._lock:
            self._context = context
            self._handle = self._find(context) or self._create(context)
            self._is_trusted = True
            return self._handle

    def handle(self) -> Handle:
        with self._lock:
            if self._context is None:
                raise CacheUnavailable("nothing was cached yet")
            known = self._handle
            if known is None or known.expires_at <= self._now():
                return self.warm(self._context)
            if not self._is_trusted or known.expires_at - self._now() < _MARGIN * self._ttl:
                self._handle = self._prolong(known) or self._find(self._context) or self._create(self._context)
                self._is_trusted = True
            return self._handle or known

    def suspend(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def wake(self) -> None:
        with self._lock:
            self._client = None
            self._is_trusted = False

    def complete(self, question: str, passages: Sequence[str]) -> str:
        from google.genai import types

        known = "\n".join(f"- {passage}" for passage in passages)
        prompt = f"Passages found for this question:\n{known}\n\nQuestion: {question}"
        handle = self.handle()

        def ask(name: str) -> Any:
            wanted = types.GenerateContentConfig(cached_content=name)
            return self._client_now().models.generate_content(model=self._model, contents=prompt, config=wanted)

        answer = self._said(lambda: ask(handle.name), or_none=_GONE)
        if answer is None:  # it expired between our look and its use
            with self._lock:
                self._handle = None
                renewed = self.handle()
            answer = self._said(lambda: ask(renewed.name))
        text: str = answer.text or ""
        return text.strip()

    def _find(self, context: Context) -> Handle | None:
        """A cache of this very context that somebody has made, prolonged."""

        def look() -> Any:
            listed = self._client_now().caches.list()
            return next((one for one in listed if one.display_name == context.digest), None)

        found = self._said(look)
        if found is None or not str(found.model).endswith(self._model):
            return None
        return self._prolong(Handle(found.name, context.digest, 0))

    def _create(self, context: Context) -> Handle:
        from google.genai import types

        contents = [types.Content(role="user", parts=[types.Part(text=text)]) for text in context.passages]
        wanted = types.CreateCachedContentConfig(
            display_name=context.digest, ttl=self._ttl_text(), system_instruction=context.instruction,
            contents=list(contents),
        )  # fmt: skip
        made = self._said(lambda: self._client_now().caches.create(model=self._model, config=wanted))
        return self._handle_of(made, context.digest)

    def _prolong(self, handle: Handle) -> Handle | None:
        """The same cache with its full time before it; None if it is no more."""
        from google.genai import types

        wanted = types.UpdateCachedContentConfig(ttl=self._ttl_text())
        updated = self._said(lambda: self._client_now().caches.update(name=handle.name, config=wanted), or_none=_GONE)
        return None if updated is None else self._handle_of(updated, handle.digest)

    def _handle_of(self, cached: Any, digest: str) -> Handle:
        expires = cached.expire_time.timestamp() if cached.expire_time else self._now() + self._ttl
        return Handle(cached.name, digest, expires)

    def _ttl_text(self) -> str:
        return f"{self._ttl:g}s"

    def _client_now(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _said(self, ask: Callable[[], Any], *, or_none: frozenset[int] = frozenset()) -> Any:
        """What Vertex AI says; None for a status in `or_none`; raises CacheUnavailable for any other."""
        import httpx
        from google.auth.exceptions import GoogleAuthError
        from google.genai import errors

        try:
            return ask()
        except errors.APIError as error:
            if error.code in or_none:
                return None
            raise CacheUnavailable(f"Vertex AI answered {error.code}: {error.message}") from error
        except (httpx.HTTPError, GoogleAuthError) as error:
            raise CacheUnavailable(f"Vertex AI cannot be reached: {error}") from error
