"""The agent itself: loaded in steps, then asked. Its conversations exist in this memory and nowhere else.

Loading takes seconds, and everything that it makes is in a snapshot. What a snapshot must not hold, and what is no
longer true after one, is let go of in `before_checkpoint` and made anew in `after_restore`.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from app.context import CacheUnavailable, Context, ContextCache
from app.context.local import LocalCache
from app.context.vertex import VertexCache
from app.credentials import vertex_client
from app.matrix.dna_loader import DnaError, Loaded, load_dna
from app.matrix.files import MatrixError
from app.matrix.knowledge import Matrix, load_matrix
from app.settings import Settings
from app.skills import Router, Tools, Turn, tool_of
from thawbox import guest

_log = logging.getLogger("agent")
_TURNS_KEPT, _CONVERSATIONS_KEPT = 200, 1000
_PRIMER = 40
"""Passages that go into the cached context."""


@dataclass(frozen=True)
class Known:
    """What the agent has loaded: all of it, or it is not ready."""

    dna: Loaded
    matrix: Matrix
    cache: ContextCache
    tools: Tools
    router: Router


class Agent:
    """One agent: `load` makes it ready, `ask` asks it. `nonce` is made here and written nowhere."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nonce = secrets.token_hex(16)
        self.known: Known | None = None
        self.failure = ""
        self.missing: dict[str, str] = {"dna": "waiting", "matrix": "waiting", "context cache": "waiting"}
        host = socket.gethostname()
        self.identity = guest.Identity(name=host, hostname=host, machine_id=_machine_id())  # until we are told
        self.started = time.monotonic()
        self.woken = self.started
        self.wakings = 0
        self.slept = 0.0
        self._conversations: OrderedDict[str, list[Turn]] = OrderedDict()
        self._lock = threading.Lock()

    # --- loading ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load everything, in order, and say that we are ready. Raises DnaError, MatrixError, CacheUnavailable."""
        guest.not_ready(*self.missing)
        try:
            dna = load_dna(self.settings.dna)
            self._have("dna")
            matrix = load_matrix(self.settings.matrix, progress=self._say_matrix)
            self._have("matrix")
            cache = self._make_cache()
            cache.warm(_context(dna, matrix))
            self._have("context cache")
        except (DnaError, MatrixError, CacheUnavailable) as error:
            self.failure = str(error)
            raise
        self.known = Known(dna, matrix, cache, Tools(dna.dna, matrix, cache), Router(dna.dna, matrix))
        guest.ready()

    def _have(self, what: str) -> None:
        self.missing = {name: state for name, state in self.missing.items() if name != what}

    def _say_matrix(self, what: str, part: float) -> None:
        self.missing = {**self.missing, "matrix": f"{what}, {part:.0%}"}

    def _make_cache(self) -> ContextCache:
        wanted = self.settings
        if wanted.cache == "vertex":
            return VertexCache(lambda: vertex_client(wanted), model=wanted.model, ttl=wanted.cache_ttl)
        return LocalCache(ttl=wanted.cache_ttl)

    # --- asking -----------------------------------------------------------------------------------------------

    def ask(self, question: str, *, conversation: str) -> tuple[Turn, int]:
        """The answer, and how many turns the conversation has now. Raises LookupError before it is loaded."""
        known = self.known
        if known is None:
            raise LookupError("still loading")
        before = self.turns(conversation)
        skill = known.router.skill(question)
        answer, passages = tool_of(known.tools, skill)(question, before)
        turn = Turn(question, answer, skill.name, passages)
        with self._lock:
            turns = self._conversations.setdefault(conversation, [])
            self._conversations.move_to_end(conversation)
            turns.append(turn)
            del turns[:-_TURNS_KEPT]
            while len(self._conversations) > _CONVERSATIONS_KEPT:
                self._conversations.popitem(last=False)
            return turn, len(turns)

    def turns(self, conversation: str) -> tuple[Turn, ...]:
        """What was said in a conversation, oldest first."""
        with self._lock:
            return tuple(self._conversations.get(conversation, ()))

    # --- being frozen and brought back ------------------------------------------------------------------------

    def before_checkpoint(self) -> None:
        """Let go of connections and credentials: no snapshot holds them."""
        if self.known is not None:
            self.known.cache.suspend()

    def after_restore(self, event: guest.Event) -> None:
        """Become who we are now, and trust neither handles nor credentials. Raises MatrixError: then we are no agent.

        The cache is refreshed beside us: whoever asks first waits for it if it must, and no restore does.
        """
        self.identity = event.identity
        self.woken, self.slept, self.wakings = time.monotonic(), event.slept, self.wakings + 1
        if self.known is not None:
            self.known.matrix.check_still_there()
            self.known.cache.wake()
            threading.Thread(target=_refresh, args=(self.known.cache,), name="refresh", daemon=True).start()

    def when_given(self) -> None:
        """New credentials came to a clone that waited in a pool."""
        if self.known is not None:
            self.known.cache.suspend()
            self.known.cache.wake()

    def hook_in(self) -> None:
        """Register with whoever freezes us; without thawbox around us, nobody calls."""
        guest.before_checkpoint(self.before_checkpoint)
        guest.after_restore(self.after_restore)
        guest.when_given(self.when_given)


def _refresh(cache: ContextCache) -> None:
    try:
        cache.handle()
    except CacheUnavailable as error:
        _log.warning("the context cache was not refreshed; the next question tries again: %s", error)


def _context(dna: Loaded, matrix: Matrix) -> Context:
    who, voice = dna.dna.identity, dna.dna.persona
    skills = "; ".join(f"{skill.name}: for instance “{skill.examples[0]}”" for skill in dna.dna.skills)
    instruction = (
        f"You are {who.name}, {who.role}. Your home: {who.home}. {voice.voice} Your skills: {skills}. "
        f"Answer from the passages alone; if they do not answer, say: {voice.unsure}"
    )
    step = max(1, matrix.rows // _PRIMER)
    return Context(instruction, tuple(matrix.passage(row) for row in range(0, matrix.rows, step)))


def _machine_id() -> str:
    path = Path("/etc/machine-id")
    return path.read_text().strip() if path.exists() else ""
