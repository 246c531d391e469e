"""The API server, as plain JSON: get, list, watch, create, patch, delete of any kind.

The official asyncio client does connections, credentials and TLS; objects stay the JSON that came, because building its
typed models costs more than the request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from thawbox.cluster.crds import GROUP, VERSION, Json
from thawbox.errors import InvalidRequest, NotFound, ThawboxError, Unavailable, Unsupported


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object by its place in the API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """The URL path of one object, or of all of a namespace; of all namespaces with none."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        parts += ["namespaces", namespace] if self.namespaced and namespace else []
        return "/" + "/".join([*parts, self.plural, *([name] if name else []), *([sub] if sub else [])])


TEMPLATES = Kind(GROUP, VERSION, "templates", "Template")
POOLS = Kind(GROUP, VERSION, "pools", "Pool")
CLAIMS = Kind(GROUP, VERSION, "claims", "Claim")
PODS = Kind("", "v1", "pods", "Pod")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
DEFINITIONS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
TRIGGERS = Kind("podsnapshot.gke.io", "v1", "podsnapshotmanualtriggers", "PodSnapshotManualTrigger")
SNAPSHOTS = Kind("podsnapshot.gke.io", "v1", "podsnapshots", "PodSnapshot")


class Conflict(Unavailable):
    """Somebody else changed the object first: look again, then decide again."""

    code = "unavailable.conflict"


class Exists(InvalidRequest):
    """There is an object of this name already."""

    code = "invalid.exists"


class Expired(Unavailable):
    """The API server no longer has the versions that a watch asked for: list anew."""

    code = "unavailable.expired"


class Kube:
    """One API server. `namespace` is where our objects live."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    async def get(self, kind: Kind, name: str) -> Json:
        """The object; raises NotFound."""
        return await self._ask("GET", kind.path(self.namespace, name))

    async def list(self, kind: Kind, *, labels: str = "", fields: str = "") -> Json:
        """The list object: `items`, and `metadata.resourceVersion` to watch from."""
        return await self._ask("GET", kind.path(self.namespace) + _query(labelSelector=labels, fieldSelector=fields))

    async def create(self, kind: Kind, body: Json) -> Json:
        """Create it; raises Exists, InvalidRequest."""
        whole = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return await self._ask("POST", kind.path(self.namespace), whole)

    async def replace(self, kind: Kind, body: Json, *, sub: str = "") -> Json:
        """Replace it where its `resourceVersion` still is the newest; raises Conflict."""
        return await self._ask("PUT", kind.path(self.namespace, body["metadata"]["name"], sub), body)

    async def patch(self, kind: Kind, name: str, patch: Json, *, version: str = "", sub: str = "") -> Json:
        """Merge a change into it; with `version` only while that is its resourceVersion, else raises Conflict."""
        if version:
            patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}
        path = kind.path(self.namespace, name, sub)
        return await self._ask("PATCH", path, patch, content="application/merge-patch+json")

    async def delete(self, kind: Kind, name: str, *, version: str = "", grace: int | None = None) -> None:
        """Delete it; with `version` only while that is its resourceVersion, else raises Conflict. Gone is no error."""
        options: Json = {"preconditions": {"resourceVersion": version}} if version else {}
        options |= {} if grace is None else {"gracePeriodSeconds": grace}
        try:
            await self._ask("DELETE", kind.path(self.namespace, name), options or None)
        except NotFound:
            return

    async def watch(
        self, kind: Kind, version: str, *, labels: str = "", fields: str = "", seconds: int = 300
    ) -> AsyncIterator[Json]:
        """What changes from `version` on, until the server ends it; bookmarks too. Raises Expired."""
        query = _query(
            watch="true", resourceVersion=version, allowWatchBookmarks="true", timeoutSeconds=str(seconds),
            labelSelector=labels, fieldSelector=fields,
        )  # fmt: skip
        answer = await self._request("GET", kind.path(self.namespace) + query, None, "", timeout=seconds + 30)
        try:
            if answer.status >= 400:
                raise _failure(answer.status, await _all_of(answer), kind.plural)
            while True:
                with _connected(f"the watch of {kind.plural}"):
                    line = await answer.content.readline()
                if not line.endswith(b"\n"):  # the server ended the watch, or was cut off in the middle of a line
                    return
                event: Json = json.loads(line)
                if event["type"] == "ERROR":
                    raise _failure(event["object"].get("code", 500), json.dumps(event["object"]), kind.plural)
                yield event
        finally:
            answer.close()

    async def _ask(self, method: str, path: str, body: Json | None = None, *, content: str = "") -> Json:
        answer = await self._request(method, path, body, content, timeout=30)
        try:
            text = await _all_of(answer)
        finally:
            answer.release()
        if answer.status >= 400:
            raise _failure(answer.status, text, path)
        found: Json = json.loads(text) if text else {}
        return found

    async def _request(self, method: str, path: str, body: Json | None, content: str, *, timeout: float) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content or "application/json"}
        client = self._client
        await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        with _connected(f"{method} {path}"):
            answer = await client.rest_client.request(
                method, client.configuration.host + path, headers=headers, body=body, _request_timeout=timeout
            )
        return answer.response


async def _all_of(answer: Any) -> str:
    with _connected(str(answer.url.path)):
        text: str = await answer.text()
    return text


@contextmanager
def _connected(what: str) -> Generator[None]:
    """A block in which a lost connection raises Unavailable: not all that aiohttp raises for one is an OSError."""
    from aiohttp import ClientError

    try:
        yield
    except (OSError, ClientError) as error:
        raise Unavailable(f"the API server does not answer {what}: {error!r}") from error


def _query(**given: str) -> str:
    kept = {name: value for name, value in given.items() if value}
    return f"?{urlencode(kept)}" if kept else ""


def _failure(status: int, text: str, what: str) -> ThawboxError:
    try:
        told: Json = json.loads(text)
    except ValueError:
        told = {}
    words, reason = str(told.get("message") or text[:300]), told.get("reason", "")
    if status == 404:
        return NotFound(f"{what}: {words}", remediation="apply deploy/ (kubectl apply -k) and look again")
    if status == 409:
        return Exists(words) if reason == "AlreadyExists" else Conflict(words)
    if status == 410 or reason in ("Expired", "Gone"):
        return Expired(words)
    if status in (401, 403):
        return Unsupported(f"the API server refuses: {words}", remediation="apply deploy/ with its RBAC")
    if status in (400, 405, 415, 422):
        return InvalidRequest(f"the API server refuses: {words}")
    return Unavailable(f"the API server answers {status}: {words}")


@asynccontextmanager
async def connected(*, namespace: str, server: str = "", kubeconfig: str = "") -> AsyncGenerator[Kube]:
    """The API server of this pod, of a kubeconfig, or at a plain URL without credentials (`server`).

    Raises Unsupported without the `cluster` extra, Unavailable where no cluster can be found.
    """
    try:
        from kubernetes.aio import client
        from kubernetes.aio import config as untyped
    except ImportError as missing:
        raise Unsupported(
            "the Kubernetes client is not installed", remediation="pip install 'thawbox[cluster]'"
        ) from missing
    config: Any = untyped
    settings = client.Configuration()
    if server:
        settings.host = server.rstrip("/")
    else:
        try:
            if kubeconfig:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=settings)
            else:
                config.load_incluster_config(client_configuration=settings)
        except config.ConfigException as error:
            raise Unavailable(
                f"no cluster: {error}", remediation="run in a pod, or name --kubeconfig or --server"
            ) from error
    settings.retries = None  # False is 0 attempts to its retrying, which never gets to an end of them then
    settings.connection_pool_maxsize = 200
    api = client.ApiClient(settings)
    closing: Any = api.close
    try:
        yield Kube(api, namespace)
    finally:
        await closing()
