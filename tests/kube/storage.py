"""What an API server stores, with the semantics that clients count on; no HTTP."""

from __future__ import annotations

import copy
import json
import secrets
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kube.schema import admit

Json = dict[str, Any]


class Refusal(Exception):
    """An answer other than 2xx, as a `Status` object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code,
        }  # fmt: skip


@dataclass
class Resource:
    """One kind: where it lies, whether its status is a subresource, and its schema where it has one."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = True
    short: tuple[str, ...] = ()
    schema: Json | None = None
    objects: dict[tuple[str, str], Json] = field(default_factory=dict)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


BUILT_IN = (
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("", "v1", "pods", "Pod", short=("po",)),
    Resource("", "v1", "events", "Event", status=False),
    Resource("events.k8s.io", "v1", "events", "Event", status=False),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", status=False),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
)
WINDOW = 1000
"""Changes that a watch can go back; further back it is told 410."""


def moment() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Storage:
    """Every object of the cluster, one after the other versioned; watchers are called with each change."""

    def __init__(self) -> None:
        self.version = 100
        self.history: deque[tuple[int, Resource, str, Json, Json | None]] = deque(maxlen=WINDOW)
        self.oldest = self.version
        self.resources = {(one.group, one.plural): copy.deepcopy(one) for one in BUILT_IN}
        self.watchers: list[Callable[[], None]] = []
        self.creations: list[tuple[str, str]] = []
        self.most_pods = 1_000_000

    def resource(self, group: str, version: str, plural: str) -> Resource:
        found = self.resources.get((group, plural))
        if found is None or found.version != version:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return found

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        try:
            return resource.objects[namespace, name]
        except KeyError:
            raise Refusal(404, "NotFound", f'{resource.plural} "{name}" not found') from None

    def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        new = copy.deepcopy(body)
        meta = new.setdefault("metadata", {})
        self._check_kind(resource, new)
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise Refusal(422, "Invalid", "metadata.name: Required value: name or generateName is required")
            meta["name"] = meta["generateName"] + secrets.token_hex(3)[:5]
        if resource.kind == "Pod" and len(resource.objects) >= self.most_pods:
            raise Refusal(
                403, "Forbidden", f'pods "{meta["name"]}" is forbidden: exceeded quota: pods={self.most_pods}'
            )
        if (namespace, meta["name"]) in resource.objects:
            raise Refusal(409, "AlreadyExists", f'{resource.plural} "{meta["name"]}" already exists')
        if resource.namespaced:
            if meta.get("namespace", namespace) != namespace:
                raise Refusal(400, "BadRequest", "the namespace of the object does not match that of the request")
            meta["namespace"] = namespace
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": moment(), "generation": 1}
        meta.pop("resourceVersion", None)
        if resource.status and resource.schema is not None:
            new.pop("status", None)
        if resource.kind == "Pod":
            new.setdefault("status", {"phase": "Pending"})
        new = self._admitted(resource, new, None)
        if resource.kind == "CustomResourceDefinition":
            self._define(new)
        self.creations.append((resource.plural, meta["name"]))
        return self._store(resource, new, None)

    def update(self, resource: Resource, namespace: str, name: str, new: Json, sub: str) -> Json:
        old = self.get(resource, namespace, name)
        wanted = new.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", f'Operation cannot be fulfilled on {resource.plural} "{name}": the object '
                          "has been modified; please apply your changes to the latest version")  # fmt: skip
        new = copy.deepcopy(new)
        self._check_kind(resource, new)
        kept = {key: old["metadata"][key] for key in ("uid", "creationTimestamp", "generation", "name")}
        kept |= {key: old["metadata"][key] for key in ("namespace", "deletionTimestamp") if key in old["metadata"]}
        if sub == "status":
            new = {**copy.deepcopy(old), "status": new.get("status", {})}
        elif resource.status:
            new["status"] = old.get("status", {})
            if not new["status"]:
                new.pop("status")
        if new.get("metadata", {}).get("uid", kept["uid"]) != kept["uid"]:
            raise Refusal(409, "Conflict", "Precondition failed: UID in precondition")
        new["metadata"] = {**new.get("metadata", {}), **kept}
        new = self._admitted(resource, new, old)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers") and resource.kind != "Pod":
            return self._remove(resource, namespace, name)
        return self._store(resource, new, old)

    def delete(self, resource: Resource, namespace: str, name: str, options: Json) -> Json:
        old = self.get(resource, namespace, name)
        given = options.get("preconditions") or {}
        for key in ("resourceVersion", "uid"):
            if key in given and given[key] != old["metadata"][key]:
                raise Refusal(409, "Conflict", f"Precondition failed: {key} in precondition: {given[key]}")
        running = resource.kind == "Pod" and old.get("spec", {}).get("nodeName")
        graceful = running and options.get("gracePeriodSeconds", 30) != 0
        if old["metadata"].get("finalizers") or graceful:
            if "deletionTimestamp" in old["metadata"]:
                return old
            new = copy.deepcopy(old)
            new["metadata"]["deletionTimestamp"] = moment()
            return self._store(resource, new, old)
        return self._remove(resource, namespace, name)

    def compact(self) -> None:
        """Forget every change, as etcd does after five minutes."""
        self.history.clear()
        self.oldest = self.version

    # --- inside -------------------------------------------------------------------------------------------------

    def _check_kind(self, resource: Resource, new: Json) -> None:
        if (new.get("apiVersion", resource.api_version), new.get("kind", resource.kind)) != (
            resource.api_version,
            resource.kind,
        ):
            raise Refusal(
                400,
                "BadRequest",
                f"{new.get('kind')} in version {new.get('apiVersion')} cannot be handled as a {resource.kind}",
            )
        new |= {"apiVersion": resource.api_version, "kind": resource.kind}

    def _admitted(self, resource: Resource, new: Json, old: Json | None) -> Json:
        if resource.schema is not None:
            new, problems = admit(resource.schema, new, old)
            if problems:
                name = new["metadata"]["name"]
                raise Refusal(
                    422, "Invalid", f'{resource.kind}.{resource.group} "{name}" is invalid: {"; ".join(problems)}'
                )
        elif resource.kind in ("Pod", "Lease") and old is None:
            import kubernetes_validate

            try:
                kubernetes_validate.validate(new, "1.32", strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Refusal(422, "Invalid", f"{resource.kind} is invalid: {error.message}") from None
        return new

    def _define(self, definition: Json) -> None:
        spec, names = definition["spec"], definition["spec"]["names"]
        for version in spec["versions"]:
            self.resources[spec["group"], names["plural"]] = Resource(
                spec["group"], version["name"], names["plural"], names["kind"], spec["scope"] == "Namespaced",
                "status" in version.get("subresources", {}), tuple(names.get("shortNames", ())),
                version["schema"]["openAPIV3Schema"],
            )  # fmt: skip
        definition["status"] = {"conditions": [
            {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "lastTransitionTime": moment()}
        ], "acceptedNames": names, "storedVersions": [spec["versions"][0]["name"]]}  # fmt: skip

    def _store(self, resource: Resource, new: Json, old: Json | None) -> Json:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        key = new["metadata"].get("namespace", ""), new["metadata"]["name"]
        resource.objects[key] = new
        self._tell(resource, "MODIFIED" if old else "ADDED", new, old)
        return new

    def _remove(self, resource: Resource, namespace: str, name: str) -> Json:
        old = resource.objects.pop((namespace, name))
        self.version += 1
        gone = copy.deepcopy(old)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell(resource, "DELETED", gone, old)
        return gone

    def _tell(self, resource: Resource, kind: str, new: Json, old: Json | None) -> None:
        if len(self.history) == WINDOW:
            self.oldest = self.history[0][0]
        self.history.append((self.version, resource, kind, new, old))
        for wake in self.watchers:
            wake()


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def selected(one: Json, labels: str, fields: str) -> bool:
    """Whether an object matches `labelSelector` and `fieldSelector`."""
    there = one["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        name, separator, value = term.replace("==", "=").partition("=")
        if not separator and (name not in there if not name.startswith("!") else name[1:] in there):
            return False
        if separator and name.endswith("!") and there.get(name[:-1]) == value:
            return False
        if separator and not name.endswith("!") and there.get(name) != value:
            return False
    for term in filter(None, fields.split(",")):
        name, _, value = term.partition("=")
        found: Any = one
        for part in name.split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        if (found or "") != value:
            return False
    return True


def as_line(kind: str, one: Json) -> bytes:
    return json.dumps({"type": kind, "object": one}).encode() + b"\n"
