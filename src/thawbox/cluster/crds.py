"""The kinds of `thawbox.dev/v1alpha1` as CustomResourceDefinitions, and our labels and annotations."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

GROUP = "thawbox.dev"
VERSION = "v1alpha1"

POOL_LABEL = f"{GROUP}/pool"
STATE_LABEL = f"{GROUP}/state"
NODE_LABEL = f"{GROUP}/node-lease"
SNAPSHOT = f"{GROUP}/snapshot"
"""Annotation of a placeholder: the snapshot that what is in it was made of."""
WANTED = f"{GROUP}/wanted-snapshot"
"""Annotation of a leased placeholder: the snapshot that its claim is to be recovered from, and where it lies."""
SANDBOX = f"{GROUP}/sandbox"
SANDBOX_NAME = f"{GROUP}/sandbox-name"
CLAIM = f"{GROUP}/claim"
CLAIM_NAME = f"{GROUP}/claim-name"
WHY = f"{GROUP}/why"
"""Annotation of a placeholder: why nothing could be parked in it, last time."""
URL = f"{GROUP}/url"
MACHINE = f"{GROUP}/machine"
REGION = "topology.kubernetes.io/region"
READINESS_GATE = f"{GROUP}/acquired"
PLACEHOLDER = "placeholder"
"""The container of a placeholder pod that is parked."""


def crds() -> list[Json]:
    """The three definitions, in the order in which they are applied."""
    return [
        _crd("Template", "templates", "tbt", _template(), _TEMPLATE_COLUMNS),
        _crd("Pool", "pools", "tbp", _pool(), _POOL_COLUMNS),
        _crd("Claim", "claims", "tbc", _claim(), _CLAIM_COLUMNS),
    ]


def _crd(kind: str, plural: str, short: str, schema: Json, columns: list[Json]) -> Json:
    version: Json = {
        "name": VERSION, "served": True, "storage": True, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema}, "additionalPrinterColumns": [*columns, _AGE],
    }  # fmt: skip
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "shortNames": [short]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }  # fmt: skip


def _column(name: str, path: str, kind: str = "string", **more: Any) -> Json:
    return {"name": name, "type": kind, "jsonPath": path, **more}


_AGE = _column("Age", ".metadata.creationTimestamp", "date")
_TEMPLATE_COLUMNS = [
    _column("Backend", ".spec.backend"), _column("Phase", ".status.phase"),
    _column("Snapshot", ".status.snapshot", priority=1),
]  # fmt: skip
_POOL_COLUMNS = [
    _column("Template", ".spec.template"), _column("Parked", ".status.parked", "integer"),
    _column("Leased", ".status.leased", "integer"), _column("Waiting", ".status.waiting", "integer"),
    _column("Limit", ".spec.limit", "integer"),
]  # fmt: skip
_CLAIM_COLUMNS = [
    _column("Pool", ".spec.pool"), _column("Phase", ".status.phase"), _column("Node", ".status.node"),
    _column("Sandbox", ".status.sandbox.name"), _column("Reason", ".status.reason", priority=1),
]  # fmt: skip

_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_SECONDS: Json = {"type": "number", "minimum": 0}
_NAME: Json = {"type": "string", "minLength": 1, "maxLength": 63}
_CONDITIONS: Json = {
    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object", "required": ["type", "status", "reason", "lastTransitionTime"],
        "properties": {
            "type": {**_TEXT, "maxLength": 316}, "status": {**_TEXT, "enum": ["True", "False", "Unknown"]},
            "reason": {**_TEXT, "minLength": 1, "maxLength": 1024}, "message": {**_TEXT, "maxLength": 32768},
            "lastTransitionTime": {**_TEXT, "format": "date-time"}, "observedGeneration": {"type": "integer"},
        },
    },
}  # fmt: skip


def _object(properties: Json, *, required: tuple[str, ...] = (), about: str = "") -> Json:
    needed: Json = {"required": list(required)} if required else {}
    return {"type": "object", **({"description": about} if about else {}), **needed, "properties": properties}


def _kind(spec: Json, status: Json, about: str) -> Json:
    status = {**status, "conditions": _CONDITIONS, "observedGeneration": {"type": "integer"}}
    return _object({"spec": spec, "status": _object(status)}, required=("spec",), about=about)


def _free(about: str) -> Json:
    return {"type": "object", "description": about, "x-kubernetes-preserve-unknown-fields": True}


def _template() -> Json:
    spec = _object(
        {
            "backend": {**_TEXT, "enum": ["node", "gke"], "default": "node"},
            "sandbox": _free("node: what to run, a sandbox spec as `thawbox inspect --json` shows it"),
            "pod": _free("gke: the pod template of the golden pod and its clones"),
            "policy": {**_TEXT, "description": "gke: the PodSnapshotPolicy that has to cover the golden pod"},
            "store": {**_TEXT, "description": "where the golden snapshot is pushed: s3://, gs://, az:// or file://"},
            "captureSeconds": {
                **_SECONDS, "minimum": 1, "maximum": 86400, "default": 600,
                "description": "the longest a capture may take; its lease is a fifth longer",
            },
            "keep": {**_COUNT, "minimum": 1, "default": 2, "description": "golden snapshots kept per template"},
        },
        about="What clones are made from.",
    )  # fmt: skip
    capture = _object(
        {"holder": _TEXT, "seconds": _SECONDS, "until": {**_TEXT, "format": "date-time"}}, required=("holder", "until")
    )
    golden = _object({"id": _TEXT, "node": _TEXT, "at": {**_TEXT, "format": "date-time"}}, required=("id",))
    status: Json = {
        "phase": {**_TEXT, "enum": ["Pending", "Capturing", "Ready", "Failed"]}, "snapshot": _TEXT, "url": _TEXT,
        "machine": _free("the machine that made the snapshot: architecture, kernel, engine, CPU features"),
        "capture": capture, "history": {"type": "array", "items": golden},
    }  # fmt: skip
    return _kind(spec, status, "A program that is expensive to start, captured once, and cloned from then on.")


def _pool() -> Json:
    spec = _object(
        {
            "template": _NAME, "low": {**_COUNT, "default": 1}, "high": {**_COUNT, "default": 4},
            "limit": {**_COUNT, "default": 16, "description": "parked and leased clones together, at most"},
            "mostWaiting": {**_COUNT, "default": 1000, "description": "claims that may wait; one more is refused"},
            "drained": {"type": "boolean", "default": False},
            "placeholder": _free(
                "merged into the spec of the pool's pods, containers by name (node: the one called placeholder); "
                "null takes away"
            ),
        },
        required=("template",),
    )  # fmt: skip
    spec["x-kubernetes-validations"] = [
        {"rule": "self.low <= self.high && self.high <= self.limit", "message": "low <= high <= limit must hold"}
    ]
    status: Json = {name: _COUNT for name in ("parked", "leased", "coming", "waiting", "desired")}
    return _kind(spec, status, "Clones of one template that wait for claims.")


def _claim() -> Json:
    spec = _object(
        {
            "pool": _NAME, "region": _TEXT,
            "regionRequired": {"type": "boolean", "default": False},
            "timeout": {**_SECONDS, "default": 30, "description": "seconds it may wait to be bound"},
            "ttl": {**_SECONDS, "description": "seconds after which it ends by itself; absent: never"},
            "checkpointEvery": {**_SECONDS, "description": "seconds between replicated snapshots; absent: none"},
            "environment": {"type": "object", "additionalProperties": _TEXT},
        },
        required=("pool",),
    )  # fmt: skip
    spec["x-kubernetes-validations"] = [{"rule": "self.pool == oldSelf.pool", "message": "the pool cannot be changed"}]
    sandbox = _object({"id": _TEXT, "name": _TEXT})
    snapshot = _object({"id": _TEXT, "url": _TEXT, "at": {**_TEXT, "format": "date-time"}}, required=("id",))
    status: Json = {
        "phase": {**_TEXT, "enum": ["Pending", "Bound", "Recovering", "Lost", "Failed"]},
        "reason": _TEXT, "message": _TEXT, "retryAfter": _SECONDS,
        "node": _TEXT, "pod": _TEXT, "address": _TEXT, "url": _TEXT, "sandbox": sandbox, "snapshot": snapshot,
        "boundAt": {**_TEXT, "format": "date-time"}, "until": {**_TEXT, "format": "date-time"},
        "acquireMs": _SECONDS, "recoveries": _COUNT,
    }  # fmt: skip
    return _kind(spec, status, "Somebody's request for one clone, and the record of which one it is.")
