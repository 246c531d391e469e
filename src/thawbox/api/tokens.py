"""Bearer tokens: `tbx_<id>_<secret>`, shown once, kept as a hash.

The secret is 256 random bits, so one plain SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from thawbox.api.book import Book
from thawbox.errors import InvalidRequest, NotFound, Unauthenticated
from thawbox.model import checked_name
from thawbox.views import timestamp

if TYPE_CHECKING:
    from thawbox.api import shown

_FORM = re.compile(r"tbx_([0-9a-f]{12})_([0-9A-Za-z_-]{43})")
_SECRET = re.compile(r"[!-~]{32,512}")
LONGEST_TTL = 10 * 366 * 86_400.0


class Scope(enum.IntEnum):
    """What a caller may do; each includes those before it."""

    READ = 1
    USE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


SCOPES = tuple(scope.word for scope in Scope)


def scope_named(word: str) -> Scope:
    """The scope of this name; raises InvalidRequest."""
    try:
        return Scope[word.upper()] if word in SCOPES else Scope(0)
    except ValueError:
        raise InvalidRequest(f"{word[:40]!r} is no scope", remediation="use read, use or admin") from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one token's sandboxes and snapshots may take together; None: no limit. Sizes are bytes."""

    sandboxes: int | None = None
    memory: int | None = None
    snapshot_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept. Times are seconds since the epoch; `expires_at` None: never."""

    id: str
    name: str
    scope: str
    digest: str = field(repr=False)
    created_at: float
    expires_at: float | None = None
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `token_id` is empty for root on this machine, who came over the node's own socket."""

    token_id: str
    name: str
    scope: Scope
    limits: Limits = NO_LIMITS

    @property
    def key(self) -> str:
        """What tells callers apart, where a token's name might be another's."""
        return self.token_id or "local"


LOCAL = Caller("", "local", Scope.ADMIN)
GIVEN = Caller("file", "token-file", Scope.ADMIN)
"""Who brings the token that the service was given in a file: no id of a token of its own is that short."""


class Tokens:
    """The tokens of one node."""

    def __init__(self, book: Book, *, now: Callable[[], float] = time.time) -> None:
        self._book = book
        self._now = now
        self._given = ""

    def give(self, secret: str) -> None:
        """Have this text (of `read_secret`) open everything too, for as long as this object lives: it is not kept."""
        self._given = _digest(secret)

    def create(
        self, name: str, *, scope: str, limits: Limits = NO_LIMITS, ttl: float | None = None
    ) -> tuple[Token, str]:
        """Make a token and return it with its text, which is kept nowhere. `ttl` is seconds. Raises InvalidRequest."""
        checked_name(name, "token name")
        if any(limit is not None and limit < 0 for limit in (limits.sandboxes, limits.memory, limits.snapshot_bytes)):
            raise InvalidRequest("a limit is negative", remediation="leave it out for no limit")
        if ttl is not None and not 0 < ttl <= LONGEST_TTL:
            raise InvalidRequest(f"ttl={ttl:g} is outside 0 to {LONGEST_TTL:g} seconds")
        secret = secrets.token_urlsafe(32)
        now = self._now()
        token = Token(
            id=secrets.token_hex(6), name=name, scope=scope_named(scope).word, digest=_digest(secret), created_at=now,
            expires_at=None if ttl is None else now + ttl, limits=limits,
        )  # fmt: skip
        with self._book.change() as sql:
            if any(one.name == name for one in _decoded(sql.execute("SELECT content FROM tokens").fetchall())):
                raise InvalidRequest(f"there is a token {name!r} already", remediation="choose another name")
            sql.execute("INSERT INTO tokens VALUES (?, ?)", (token.id, msgspec.json.encode(token).decode()))
        return token, f"tbx_{token.id}_{secret}"

    def all(self) -> list[Token]:
        """Every token, oldest first, those that expired too."""
        found = _decoded(self._book.rows("SELECT content FROM tokens"))
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def find(self, reference: str) -> Token:
        """The token of this id or name; raises NotFound."""
        for token in self.all():
            if reference in (token.id, token.name):
                return token
        raise NotFound(f"there is no token {reference[:80]!r} on this node", remediation="see `thawbox token ls`")

    def caller_of(self, identity: str) -> Caller | None:
        """Who comes with the token of this id; None where it was removed."""
        found = _decoded(self._book.rows("SELECT content FROM tokens WHERE id = ?", identity))
        return next((_caller(token) for token in found), None)

    def remove(self, reference: str) -> Token:
        """Let a token open nothing from now on; raises NotFound."""
        token = self.find(reference)
        with self._book.change() as sql:
            sql.execute("DELETE FROM tokens WHERE id = ?", (token.id,))
        return token

    def check(self, text: str) -> Caller:
        """Who comes with this token; raises Unauthenticated, which never says what was wrong with it."""
        if self._given and hmac.compare_digest(_digest(text), self._given):
            return GIVEN
        match = _FORM.fullmatch(text)
        found = _decoded(self._book.rows("SELECT content FROM tokens WHERE id = ?", match[1])) if match else []
        expected = found[0].digest if found else _digest("")
        is_right = hmac.compare_digest(_digest(match[2] if match else ""), expected)
        if not match or not found or not is_right or self._is_over(found[0]):
            raise Unauthenticated("the token opens nothing here: it is unknown, expired or was removed")
        return _caller(found[0])

    def _is_over(self, token: Token) -> bool:
        return token.expires_at is not None and token.expires_at <= self._now()


def read_secret(path: Path) -> str:
    """The one token in a file, which others hold, too. Raises InvalidRequest, also for one that might be guessed."""
    try:
        secret = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the token file {path} cannot be read: {error}") from error
    if not _SECRET.fullmatch(secret):
        remedy = "put one token of 32 to 512 printable characters into it: `openssl rand -hex 32` makes one"
        raise InvalidRequest(f"{path} does not hold a token that is safe to use", remediation=remedy)
    return secret


def _caller(token: Token) -> Caller:
    return Caller(token.id, token.name, scope_named(token.scope), token.limits)


def _decoded(rows: list[tuple[str]]) -> list[Token]:
    return [msgspec.json.decode(content, type=Token) for (content,) in rows]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def token_shown(token: Token) -> shown.Token:
    """A token as JSON: all but its text, which nobody has."""
    return {
        "id": token.id, "name": token.name, "scope": token.scope, "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at), "limits": cast("Limits", asdict(token.limits)),
    }  # fmt: skip
