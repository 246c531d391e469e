"""Tokens: made, listed, removed. Their text is shown once."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from thawbox.api import shown
from thawbox.api.access import Admin
from thawbox.api.answers import Answer, Body, Pages, Reference, resource
from thawbox.api.service import Service
from thawbox.api.tokens import Limits, token_shown

_Limit = Annotated[int, Field(ge=0)] | None


class GivenLimits(Body):
    sandboxes: _Limit = None
    memory: _Limit = None
    snapshot_bytes: _Limit = None


class Create(Body):
    name: str
    scope: Literal["read", "use", "admin"]
    limits: GivenLimits = GivenLimits()
    ttl: Annotated[float, Field(gt=0, le=10 * 366 * 86_400)] | None = None


def router(service: Service) -> APIRouter:
    routes = resource("/v1/tokens", "tokens")

    @routes.post("", status_code=201)
    def create_token(wish: Create, _: Admin) -> Answer[shown.NewToken]:
        """Make a token. This answer is the only place where its text is ever shown."""
        limits = Limits(**wish.limits.model_dump())
        token, text = service.tokens.create(wish.name, scope=wish.scope, limits=limits, ttl=wish.ttl)
        return Answer({**token_shown(token), "token": text}, status_code=201, headers={"Cache-Control": "no-store"})

    @routes.get("")
    def list_tokens(page: Pages, _: Admin) -> Answer[shown.TokenPage]:
        """Every token, oldest first; never its text."""
        tokens, more = page.of(service.tokens.all(), lambda one: (one.created_at, one.id))
        return Answer({"tokens": [token_shown(token) for token in tokens], "next": more})

    @routes.delete("/{token}", status_code=204)
    def remove_token(token: Reference, _: Admin) -> None:
        """Let a token, by id or name, open nothing from now on."""
        service.tokens.remove(token)

    return routes
