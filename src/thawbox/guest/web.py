"""The hooks of this process as HTTP routes of a Starlette or FastAPI application.

    from thawbox.guest.web import mount_hooks

    app = FastAPI()
    mount_hooks(app)

    GET  /internal/checkpoint-ready    200, or 503 and what is missing: good as a readiness probe too
    POST /internal/before-checkpoint   /internal/after-checkpoint   /internal/after-restore
    POST /internal/given

Run the sandbox with `--hooks http://127.0.0.1:PORT`. With `--hooks auto` the host calls this process directly, and only
the first route is of use. Hooks that are coroutine functions run on the server's own loop.

No secrets come this way: the server, its HTTP parser and JSON all copy what they read, and nobody could overwrite that
before a snapshot. With `--hooks auto` they come without a copy.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from .environment import environment
from .registry import HookFailed, attach_loop, registry
from .waking import wake

_LOCAL = frozenset({"127.0.0.1", "::1", "testclient"})


def mount_hooks(app: Any, *, prefix: str = "/internal") -> None:
    """Add the routes to `app`; only programs of the sandbox and the host itself are answered."""
    from starlette.routing import Route

    app.router.routes += [
        Route(f"{prefix}/checkpoint-ready", _ready, methods=["GET"]),
        Route(f"{prefix}/before-checkpoint", _before, methods=["POST"]),
        Route(f"{prefix}/after-checkpoint", _after, methods=["POST"]),
        Route(f"{prefix}/after-restore", _after, methods=["POST"]),
        Route(f"{prefix}/given", _after, methods=["POST"]),
    ]


async def _ready(_request: Any) -> Any:
    from starlette.responses import JSONResponse

    answer = {"missing": list(registry.missing), "secrets": False}
    return JSONResponse(answer, 200 if registry.is_ready else 503)


async def _before(request: Any) -> Any:
    return await _told(request, _run_before)


async def _after(request: Any) -> Any:
    return await _told(request, _wake)


def _run_before(_told: dict[str, Any]) -> dict[str, Any]:
    registry.run_before()
    held = {name: os.fsdecode(value) for name, value in environment.held().items()}
    environment.give_up()
    return {"environment": held}


def _wake(told: dict[str, Any]) -> dict[str, Any]:
    if told.get("secrets"):
        raise HookFailed("secrets are not taken by HTTP, which leaves copies in memory: run it with --hooks auto")
    wake(told, {name: os.fsencode(value) for name, value in told["environment"].items()}, {}, registry)
    return {}


async def _told(request: Any, action: Any) -> Any:
    from starlette.responses import JSONResponse

    if request.client is None or request.client.host not in _LOCAL:
        return JSONResponse({"error": "hooks are called from inside the sandbox only"}, 403)
    told = await request.json()
    attach_loop(asyncio.get_running_loop())
    try:
        done = await asyncio.to_thread(action, told)
    except HookFailed as failed:
        return JSONResponse({"error": str(failed)}, 500)
    return JSONResponse({"nonce": told["nonce"], "sandbox": told["identity"]["id"], **done})
