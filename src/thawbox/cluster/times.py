"""Moments as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime

from thawbox.cluster.crds import Json


def written(moment: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, with microseconds (Lease's MicroTime; date-time takes them too)."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read(text: str) -> float:
    """RFC 3339 as seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def condition(kind: str, *, status: bool, reason: str, message: str = "", now: float) -> Json:
    """One status condition."""
    return {
        "type": kind, "status": "True" if status else "False", "reason": reason, "message": message[:32768],
        "lastTransitionTime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def with_condition(before: Json, new: Json) -> list[Json]:
    """The conditions of a status with one set; its time stays when its status does."""
    found: list[Json] = [dict(one) for one in before.get("conditions", [])]
    for one in found:
        if one["type"] == new["type"]:
            moved = one["status"] != new["status"]
            one.update(new if moved else {**new, "lastTransitionTime": one["lastTransitionTime"]})
            return found
    return [*found, new]
