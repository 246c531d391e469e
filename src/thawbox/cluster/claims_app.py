"""Claims over HTTP: the same shapes as a node's `/v1/claims`; the record is the Claim object."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Request
from fastapi.responses import JSONResponse

from thawbox.cluster.binding import phase_of
from thawbox.cluster.crds import Json
from thawbox.cluster.dispatcher import Dispatcher
from thawbox.cluster.kube import CLAIMS, Exists
from thawbox.cluster.times import written
from thawbox.errors import InvalidRequest, NotFound, ThawboxError

PATIENCE_BEYOND = 10.0
"""Seconds that an answer may take beyond the claim's own time-out."""


def create_app(dispatcher: Dispatcher, *, token: str) -> FastAPI:
    """The application over a dispatcher that runs; with `token`, whoever asks has to bring it."""
    app = FastAPI(title="thawbox dispatcher", version="1", docs_url=None, redoc_url=None)
    app.add_exception_handler(ThawboxError, _tell)
    state, kube = dispatcher.state, dispatcher.kube

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if (
            token
            and request.url.path not in ("/healthz", "/readyz")
            and not hmac.compare_digest(given.encode(), token.encode())
        ):
            return JSONResponse(_problem(401, "unauthenticated", "the request brings no valid token"), status_code=401)
        return await call_next(request)

    @app.get("/healthz")
    async def health() -> Json:
        """Alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readiness() -> Any:
        """Ready: it has seen the whole cluster once."""
        if not dispatcher.ready.is_set():
            return JSONResponse({"status": "listing"}, status_code=503)
        return {"status": "ready"}

    @app.post("/v1/claims", status_code=201)
    async def make_claim(  # noqa: PLR0917 - FastAPI's way to name the fields of a body
        pool: Annotated[str, Body()], timeout: Annotated[float, Body(ge=0, le=86_400)] = 30.0,
        ttl: Annotated[float | None, Body(gt=0)] = None, region: Annotated[str, Body()] = "",
        region_required: Annotated[bool, Body()] = False, checkpoint_every: Annotated[float | None, Body(gt=0)] = None,
        environment: Annotated[dict[str, str] | None, Body()] = None,
        idempotency_key: Annotated[str, Header()] = "",
    ) -> Any:  # fmt: skip
        """A clone of this pool; answered when it runs, or when there is none for it."""
        spec: Json = {"pool": pool, "timeout": timeout, "region": region, "regionRequired": region_required}
        spec |= {"ttl": ttl} if ttl else {}
        spec |= {"checkpointEvery": checkpoint_every} if checkpoint_every else {}
        spec |= {"environment": environment} if environment else {}
        name = _name_for(pool, idempotency_key)
        try:
            made = await kube.create(CLAIMS, {"metadata": name, "spec": spec})
        except Exists:
            made = await kube.get(CLAIMS, name["name"])
        name = made["metadata"]["name"]
        state.claims.seen(made)
        await state.claims.wait(lambda: phase_of(state.claims.objects.get(name, {"status": {"phase": "Failed"}}))
                                in ("Bound", "Failed", "Lost"), timeout=timeout + PATIENCE_BEYOND)  # fmt: skip
        found = state.claims.objects.get(name)
        if found is None:
            raise NotFound(f"the claim {name} was deleted while it waited")
        if phase_of(found) == "Bound":
            return _shown(found)
        status = found.get("status", {})
        code = 429 if status.get("reason") in ("PoolExhausted", "TooManyWaiting") else 503
        code = 404 if status.get("reason") == "NoSuchPool" else code
        if phase_of(found) not in ("Recovering", "Lost"):  # else it was bound once, under the same key
            await kube.delete(CLAIMS, name)
        told = _problem(code, f"unavailable.{_snake(status.get('reason', 'TimedOut'))}", status.get("message", ""))
        again = {"Retry-After": str(max(1, round(status["retryAfter"])))} if status.get("retryAfter") else {}
        return JSONResponse(told, status_code=code, headers=again, media_type="application/problem+json")

    @app.get("/v1/claims")
    async def list_claims() -> Json:
        """Every claim, oldest first."""
        found = sorted(state.claims.objects.values(), key=lambda one: one["metadata"]["creationTimestamp"])
        return {"claims": [_shown(one) for one in found], "next": None}

    @app.get("/v1/claims/{claim}")
    async def show_claim(claim: str) -> Json:
        """One claim."""
        return _shown(await kube.get(CLAIMS, claim))

    @app.patch("/v1/claims/{claim}")
    async def renew_claim(claim: str, ttl: Annotated[float, Body(embed=True, gt=0)]) -> Json:
        """Let the claim end `ttl` seconds from now."""
        await kube.patch(CLAIMS, claim, {"spec": {"ttl": ttl}})
        until = {"status": {"until": written(time.time() + ttl)}}
        return _shown(await kube.patch(CLAIMS, claim, until, sub="status"))

    @app.delete("/v1/claims/{claim}", status_code=204)
    async def end_claim(claim: str) -> None:
        """Give the clone back; it is destroyed."""
        await kube.get(CLAIMS, claim)
        await kube.delete(CLAIMS, claim)

    return app


def _name_for(pool: str, key: str) -> Json:
    """The same request under the same key is the same claim."""
    if not key:
        return {"generateName": f"{pool[:40]}-"}
    return {"name": f"{pool[:40]}-{hashlib.sha256(f'{pool} {key}'.encode()).hexdigest()[:16]}"}


def _shown(claim: Json) -> Json:
    status = claim.get("status", {})
    return {
        "id": claim["metadata"]["name"], "state": (phase_of(claim) or "Pending").lower(), "pool": claim["spec"]["pool"],
        "sandbox": status.get("sandbox"), "node": status.get("node"), "pod": status.get("pod"),
        "address": status.get("address"), "url": status.get("url"), "acquire_ms": status.get("acquireMs"),
        "until": status.get("until"), "snapshot": status.get("snapshot"), "recoveries": status.get("recoveries", 0),
        "reason": status.get("reason"),
    }  # fmt: skip


async def _tell(_: Request, error: Exception) -> JSONResponse:
    """One of our own errors as a problem; all but the caller's own are the cluster's, and worth a retry."""
    assert isinstance(error, ThawboxError)  # noqa: S101 - registered for these alone
    status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, InvalidRequest) else 503
    told = {**_problem(status, error.code, error.cause), "remediation": error.remediation}
    return JSONResponse(told, status_code=status, media_type="application/problem+json")


def _problem(status: int, code: str, cause: str) -> Json:
    return {"type": "about:blank", "title": code, "status": status, "detail": cause, "code": code, "cause": cause}


def _snake(reason: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in reason).lstrip("_")
