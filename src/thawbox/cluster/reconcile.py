"""The slow path, by kopf: templates get their golden snapshot, and old ones go. Nothing that a claim waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from thawbox.cluster.capture import HeldElsewhere, ensure_golden, superseded
from thawbox.cluster.crds import GROUP, VERSION, Json
from thawbox.cluster.dispatcher import Dispatcher
from thawbox.cluster.kube import TEMPLATES
from thawbox.cluster.nodes import Nodes
from thawbox.errors import NotFound, ThawboxError

RETRY_SECONDS = 10.0


class Reconciler:
    """Carries out in the dispatcher's loop what kopf's thread orders."""

    def __init__(self, dispatcher: Dispatcher, nodes: Nodes, *, now: Callable[[], float]) -> None:
        self.dispatcher = dispatcher
        self._nodes = nodes
        self._now = now
        self._loop = asyncio.get_running_loop()

    async def template(self, name: str) -> None:
        """Capture a template if need be, then let go what retention does not keep."""
        dispatcher = self.dispatcher
        await dispatcher.ready.wait()
        template = await ensure_golden(
            dispatcher.kube, name, dispatcher.backend_of, holder=dispatcher.options.identity, now=self._now
        )
        old = superseded(template)
        for one in old:
            for url in set(dispatcher.state.urls.values()) - {""}:
                with contextlib.suppress(ThawboxError):  # a node that is away drops it when it next looks
                    await self._nodes.drop_golden(url, one["node"])
        if old:
            left = [one for one in template["status"]["history"] if one not in old]
            await dispatcher.kube.patch(TEMPLATES, name, {"status": {"history": left}}, sub="status")

    def call(self, work: Awaitable[None]) -> Any:
        """Run it in the dispatcher's loop, from any thread, as an awaitable of the caller's loop."""

        async def run() -> None:
            await work

        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self._loop))


def registry(reconciler: Reconciler, *, server: str) -> Any:
    """kopf's handlers. None of them needs a finalizer: a template can be deleted while nobody reconciles."""
    import kopf as untyped

    kopf: Any = untyped
    handlers = kopf.OperatorRegistry()
    if server:

        @kopf.on.login(registry=handlers)  # type: ignore[untyped-decorator]
        def login(**_: object) -> Any:
            return kopf.ConnectionInfo(server=server)

    else:

        @kopf.on.login(registry=handlers)  # type: ignore[untyped-decorator]
        def login_by_client(**given: object) -> Any:
            return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    @kopf.on.startup(registry=handlers)  # type: ignore[untyped-decorator]
    def configure(settings: Any, **_: object) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.persistence.finalizer = f"{GROUP}/reconcile"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"reconcile.{GROUP}")
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"reconcile.{GROUP}")

    @kopf.on.resume(GROUP, VERSION, "templates", registry=handlers)  # type: ignore[untyped-decorator]
    @kopf.on.create(GROUP, VERSION, "templates", registry=handlers)  # type: ignore[untyped-decorator]
    @kopf.on.update(GROUP, VERSION, "templates", field="spec", registry=handlers)  # type: ignore[untyped-decorator]
    async def template(name: str, **_: object) -> None:
        try:
            await reconciler.call(reconciler.template(name))
        except NotFound:
            raise kopf.TemporaryError("the template or every node is gone", delay=RETRY_SECONDS) from None
        except HeldElsewhere as error:
            raise kopf.TemporaryError(str(error), delay=RETRY_SECONDS) from None
        except (ThawboxError, TimeoutError) as error:
            raise kopf.TemporaryError(str(error), delay=3 * RETRY_SECONDS) from None

    return handlers


@contextlib.contextmanager
def reconciling(dispatcher: Dispatcher, nodes: Nodes, *, server: str, now: Callable[[], float]) -> Generator[None]:
    """kopf in a thread and a loop of its own until the end of the block: it sets signal handlers where it can."""
    import kopf as untyped

    kopf: Any = untyped
    handlers: Json = registry(Reconciler(dispatcher, nodes, now=now), server=server)
    stop = threading.Event()

    def operate() -> None:
        asyncio.run(
            kopf.operator(
                registry=handlers, namespaces=[dispatcher.kube.namespace], standalone=True, stop_flag=stop, priority=0
            )
        )

    thread = threading.Thread(target=operate, name="thawbox-kopf", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
