"""Captured once: of many that see a template without a snapshot, one makes it, the others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from thawbox.cluster.backends import Backend, Golden, golden_name
from thawbox.cluster.crds import Json
from thawbox.cluster.kube import TEMPLATES, Conflict, Kube
from thawbox.cluster.times import condition, with_condition, written
from thawbox.errors import NotFound, ThawboxError, Unavailable

MARGIN = 1.2
"""How much longer than the longest legal capture its hold lasts: whoever is late gives up before it is taken over."""


class HeldElsewhere(Unavailable):
    """Somebody else captures this template now; wait for its snapshot."""

    code = "unavailable.capture"


class Holds:
    """Holds of others as one watcher sees them, by its own monotonic clock; it trusts no other machine's (`holding`).

    One has run out when it has not changed for as long as it lasts.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Json, float]] = {}

    def has_run_out(self, template: str, hold: Json, *, seconds: float) -> bool:
        seen, since = self._seen.get(template, ({}, 0.0))
        if seen != hold:
            self._seen[template] = hold, self._clock()
            return False
        return self._clock() - since > seconds


def is_ready(template: Json) -> bool:
    """Whether a template has the golden snapshot of its present version."""
    status = template.get("status", {})
    version = template["metadata"]["generation"]
    return bool(status.get("phase") == "Ready" and status.get("observedGeneration") == version)


async def ensure_golden(
    kube: Kube, name: str, backend_of: Callable[[Json], Backend], *,
    holder: str, holds: Holds, now: Callable[[], float],
) -> Json:  # fmt: skip
    """The template, with a golden snapshot of its present version; made here unless somebody else is at it.

    Raises HeldElsewhere, NotFound, and what the capture raised (written into the status, too).
    """
    template = await kube.get(TEMPLATES, name)
    if is_ready(template):
        return template
    seconds = float(template["spec"]["captureSeconds"])
    capture = template.get("status", {}).get("capture")
    if capture and capture["holder"] != holder:
        lasts = float(capture.get("seconds", MARGIN * seconds))
        if not holds.has_run_out(name, capture, seconds=lasts):
            raise HeldElsewhere(f"{capture['holder']} captures the template {name} until {capture['until']}")
    mine = {"holder": holder, "seconds": MARGIN * seconds, "until": written(now() + MARGIN * seconds)}
    try:
        template = await kube.patch(
            TEMPLATES, name, {"status": {"phase": "Capturing", "capture": mine}},
            version=template["metadata"]["resourceVersion"], sub="status",
        )  # fmt: skip
    except Conflict as lost:
        raise HeldElsewhere(f"somebody else was quicker to capture the template {name}") from lost
    mine = template["status"]["capture"]  # as the API server keeps it: an older CRD drops what it does not know
    try:
        async with asyncio.timeout(seconds):
            golden = await backend_of(template).capture(template)
    except Exception as error:
        late = f"it took longer than {seconds:g} s" if isinstance(error, TimeoutError) else ""
        why = late or (str(error) if isinstance(error, ThawboxError) else repr(error))
        await _finish(kube, template, mine, _failed(template, why, now()))
        raise
    return await _finish(kube, template, mine, _done(template, golden, now()))


def _done(template: Json, golden: Golden, now: float) -> Json:
    version = template["metadata"]["generation"]
    history = [
        *template.get("status", {}).get("history", []),
        {"id": golden.id, "node": golden_name(template), "at": written(now)},
    ]
    ready = condition("Ready", status=True, reason="Captured", message=golden.id, now=now)
    return {
        "phase": "Ready", "snapshot": golden.id, "url": golden.url, "machine": golden.machine or {},
        "observedGeneration": version, "history": history,
        "conditions": with_condition(template.get("status", {}), ready),
    }  # fmt: skip


def _failed(template: Json, why: str, now: float) -> Json:
    not_ready = condition("Ready", status=False, reason="CaptureFailed", message=why, now=now)
    kept = template.get("status", {}).get("snapshot")
    return {
        "phase": "Ready" if kept else "Failed",  # clones of the version before are better than none
        "conditions": with_condition(template.get("status", {}), not_ready),
    }  # fmt: skip


async def _finish(kube: Kube, template: Json, mine: Json, status: Json) -> Json:
    """Write what came of the capture, unless the hold was taken over; others may have changed the object otherwise."""
    name = template["metadata"]["name"]
    while True:
        found = await kube.get(TEMPLATES, name)
        if found.get("status", {}).get("capture") != mine:
            raise HeldElsewhere(f"the capture of {name} was taken over: its result is dropped")
        change = {"status": {**status, "capture": None}}
        version = found["metadata"]["resourceVersion"]
        try:
            return await kube.patch(TEMPLATES, name, change, version=version, sub="status")
        except Conflict:
            continue


def superseded(template: Json) -> list[Json]:
    """The golden snapshots that retention lets go, oldest first; never the present one."""
    status = template.get("status", {})
    history: list[Json] = status.get("history", [])
    kept = max(1, int(template["spec"]["keep"]))
    return [one for one in history[:-kept] if one["id"] != status.get("snapshot")]


__all__ = ["HeldElsewhere", "Holds", "NotFound", "ensure_golden", "is_ready", "superseded"]
