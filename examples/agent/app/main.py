"""The golden agent over HTTP.

| route | answers |
|---|---|
| `GET /` | a page: who it is, what it knows, what was said, for how long it has been up |
| `GET /internal/checkpoint-ready` | 503 with what is missing; once it is fully loaded, 200 with the digests of both |
| `POST /ask` | `{"question", "conversation"}`: the answer and the passages that it comes from |
| `GET /state` | everything the page shows, as JSON |
| `POST /internal/before-checkpoint` and its like | hooks, for hosts that tell by HTTP (docs/guest.md) |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.agent import Agent
from app.context import CacheUnavailable
from app.page import render
from app.settings import Settings, read_settings
from thawbox.guest.web import mount_hooks

_log = logging.getLogger("agent")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Question(BaseModel):
    """What is asked; a conversation is made by its first question."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=2000)]
    conversation: Name = "main"


def create_app(settings: Settings, *, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """The agent as an application. It answers from the start and loads beside that; `on_failure` hears if it cannot."""
    agent = Agent(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        agent.hook_in()
        loading = asyncio.create_task(_load(agent, on_failure))
        yield
        await loading

    app = FastAPI(title="The golden agent", lifespan=lifespan)
    app.state.agent = agent

    @app.get("/internal/checkpoint-ready")
    async def checkpoint_ready() -> JSONResponse:
        known = agent.known
        if known is None:
            missing = [f"{name}: {state}" for name, state in agent.missing.items()]
            return JSONResponse({"missing": missing, "failure": agent.failure}, 503)
        dna = {"digest": known.dna.digest, "version": known.dna.dna.version, "name": known.dna.dna.identity.name}
        matrix = {"digest": known.matrix.digest, "rows": known.matrix.rows}
        return JSONResponse({"missing": [], "dna": dna, "matrix": matrix, "cache": known.cache.kind})

    mount_hooks(app)

    @app.post("/ask")
    def ask(asked: Question) -> dict[str, Any]:
        try:
            turn, turns = agent.ask(asked.question, conversation=asked.conversation)
        except LookupError:
            raise HTTPException(503, "still loading: see /internal/checkpoint-ready") from None
        except CacheUnavailable as error:
            raise HTTPException(502, str(error)) from None
        passages = [{"row": one.row, "text": one.text, "score": round(one.score, 4)} for one in turn.passages]
        return {
            "answer": turn.answer, "skill": turn.skill, "passages": passages, "turn": turns,
            "conversation": asked.conversation, "sandbox": agent.identity.name, "nonce": agent.nonce,
        }  # fmt: skip

    @app.get("/state")
    def state(conversation: Annotated[str, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "main") -> dict[str, Any]:
        return state_of(agent, conversation)

    @app.get("/", response_class=HTMLResponse)
    def page(conversation: Annotated[str, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "main") -> str:
        return render(state_of(agent, conversation))

    return app


async def _load(agent: Agent, on_failure: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(agent.load)
    except Exception:  # noqa: BLE001 - whatever it is, it is logged, shown, and ends the server
        _log.exception("the agent cannot be loaded")
        agent.failure = agent.failure or "the agent cannot be loaded: its log says why"
        on_failure()


def state_of(agent: Agent, conversation: str) -> dict[str, Any]:
    """What the page shows. All that changes by itself stands under `clock`."""
    known, identity, now = agent.known, agent.identity, time.monotonic()
    return {
        "ready": known is not None,
        "missing": agent.missing,
        "failure": agent.failure,
        "identity": {
            "sandbox": identity.name, "id": identity.id, "hostname": identity.hostname,
            "machine_id": identity.machine_id, "address": identity.address,
        },
        "dna": {} if known is None else {
            "digest": known.dna.digest, "version": known.dna.dna.version,
            "name": known.dna.dna.identity.name, "role": known.dna.dna.identity.role,
            "home": known.dna.dna.identity.home, "greeting": known.dna.dna.persona.greeting,
            "skills": [skill.name for skill in known.dna.dna.skills],
        },
        "matrix": {} if known is None else {
            "digest": known.matrix.digest, "rows": known.matrix.rows, "dimensions": known.matrix.manifest.dimensions,
        },
        "cache": "" if known is None else known.cache.kind,
        "nonce": agent.nonce,
        "conversation": conversation,
        "turns": [
            {"question": turn.question, "answer": turn.answer, "skill": turn.skill,
             "score": round(turn.passages[0].score, 2) if turn.passages else None}
            for turn in agent.turns(conversation)
        ],
        "clock": {
            "uptime": now - agent.started, "awake": now - agent.woken, "wakings": agent.wakings, "slept": agent.slept,
        },
    }  # fmt: skip


def app() -> FastAPI:
    """For `uvicorn --factory app.main:app`."""
    return create_app(read_settings())
