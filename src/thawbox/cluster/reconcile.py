"""The slow path, by kopf: templates get their golden snapshot, and old ones go. Nothing that a claim waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from thawbox.cluster.capture import HeldElsewhere, Holds, ensure_golden, superseded
from thawbox.cluster.crds import GROUP, VERSION, Json
from thawbox.cluster.dispatcher import Dispatcher
from thawbox.cluster.kube import TEMPLATES
from thawbox.cluster.nodes import Nodes
from thawbox.errors import NotFound, ThawboxError, Unavailable

RETRY_SECONDS = 10.0
STOP_SECONDS = 5.0
"""How long kopf may take to stop."""


class Reconciler:
    """Carries out in the dispatcher's loop what kopf's thread orders."""

    def __init__(self, dispatcher: Dispatcher, nodes: Nodes, *, now: Callable[[], float]) -> None:
        self.dispatcher = dispatcher
        self._nodes = nodes
        self._now = now
        self._holds = Holds(time.monotonic)
        self._loop = asyncio.get_running_loop()

    async def template(self, name: str) -> None:
        """Capture a template if need be, then let go what retention does not keep."""
        dispatcher = self.dispatcher
        await dispatcher.ready.wait()
        template = await ensure_golden(
            dispatcher.kube, name, dispatcher.backend_of,
            holder=dispatcher.options.identity, holds=self._holds, now=self._now,
        )  # fmt: skip
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


class ReconcilerEnded(Unavailable):
    """kopf has ended by itself: nothing would be captured any more."""

    code = "unavailable.reconciler"


@contextlib.asynccontextmanager
async def reconciling(
    dispatcher: Dispatcher, nodes: Nodes, *, server: str, now: Callable[[], float]
) -> AsyncGenerator[None]:
    """kopf in a thread and a loop of its own until the end of the block: it sets signal handlers where it can.

    Raises ReconcilerEnded in the block, in an ExceptionGroup, when kopf ends before.
    """
    import kopf as untyped

    kopf: Any = untyped
    handlers: Json = registry(Reconciler(dispatcher, nodes, now=now), server=server)
    stop, ended = threading.Event(), Future[None]()
    ended.set_running_or_notify_cancel()
    over = asyncio.wrap_future(ended)

    async def operate() -> None:
        try:
            await kopf.operator(
                registry=handlers, namespaces=[dispatcher.kube.namespace], standalone=True, stop_flag=stop, priority=0
            )
        finally:
            stop.set()  # a thread of this loop waits for it

    def run() -> None:
        try:
            asyncio.run(operate())
        except BaseException as error:  # noqa: BLE001 - told to whoever watches
            ended.set_exception(error)
        else:
            ended.set_result(None)

    async def watch() -> None:
        await asyncio.wait({over})
        raise ReconcilerEnded(f"kopf has ended: {over.exception()!r}") from over.exception()

    threading.Thread(target=run, name="thawbox-kopf", daemon=True).start()
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            yield
            watching.cancel()
    finally:
        stop.set()
        await asyncio.wait({over}, timeout=STOP_SECONDS)
