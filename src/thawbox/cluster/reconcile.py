"""The slow path, by kopf: templates get their golden snapshot, and old ones go. Nothing that a claim waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import structlog

from thawbox.cluster.capture import HeldElsewhere, Holds, ensure_golden, superseded
from thawbox.cluster.crds import GROUP, VERSION, Json
from thawbox.cluster.dispatcher import Dispatcher
from thawbox.cluster.kube import TEMPLATES, Conflict
from thawbox.errors import NotFound, ThawboxError, Unavailable

RETRY_SECONDS = 10.0
RETIRE_SECONDS = 300.0
"""Until what could not be dropped is tried again."""
STOP_SECONDS = 5.0
"""How long kopf may take to stop."""
_log = structlog.get_logger()


class Reconciler:
    """Carries out in the dispatcher's loop what kopf's thread orders."""

    def __init__(self, dispatcher: Dispatcher, *, now: Callable[[], float]) -> None:
        self.dispatcher = dispatcher
        self._now = now
        self._holds = Holds(time.monotonic)
        self._loop = asyncio.get_running_loop()
        self._deleted: list[Json] = []
        """Templates that were deleted, until nothing is left of their golden snapshots, or this process ends."""
        self._bell = asyncio.Event()
        dispatcher.state.templates.on_change(self._template_changed)

    async def template(self, name: str) -> None:
        """Capture a template if need be, then let go what retention does not keep."""
        dispatcher = self.dispatcher
        await dispatcher.ready.wait()
        template = await ensure_golden(
            dispatcher.kube, name, dispatcher.backend_of,
            holder=dispatcher.options.identity, holds=self._holds, now=self._now,
        )  # fmt: skip
        await self._retire(template)

    async def keep_retiring(self) -> None:
        """What could not be dropped is tried again, for ever: a node was away, or a leased clone needed it."""
        await self.dispatcher.ready.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), RETIRE_SECONDS)
            self._bell.clear()
            await self.retire_all()

    async def retire_all(self) -> None:
        """Drop what no template keeps any more, where that can be done now."""
        for template in list(self.dispatcher.state.templates.objects.values()):
            await self._retire(template)
        for template in list(self._deleted):
            history = template.get("status", {}).get("history", [])
            if len(await self._drop(template, history)) == len(history):
                self._deleted.remove(template)

    def _template_changed(self, _: str, now: Json, before: Json | None) -> None:
        if before is not None and (not now or now["metadata"]["uid"] != before["metadata"]["uid"]):
            self._deleted.append(before)
            self._bell.set()

    async def _retire(self, template: Json) -> None:
        dropped = await self._drop(template, superseded(template))
        if not dropped:
            return
        meta = template["metadata"]
        left = [one for one in template["status"]["history"] if one not in dropped]
        with contextlib.suppress(Conflict, NotFound):  # dropped once more then, which harms nobody
            self.dispatcher.state.templates.seen(await self.dispatcher.kube.patch(
                TEMPLATES, meta["name"], {"status": {"history": left}}, version=meta["resourceVersion"], sub="status"
            ))  # fmt: skip

    async def _drop(self, template: Json, goldens: list[Json]) -> list[Json]:
        """Those of the golden snapshots that are nowhere any more."""
        dropped: list[Json] = []
        for one in goldens:
            try:
                await self.dispatcher.backend_of(template).retire(one)
            except ThawboxError as error:
                _log.info("retire.again", template=template["metadata"]["name"], snapshot=one["id"], why=error.cause)
            else:
                dropped.append(one)
        return dropped

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
async def reconciling(dispatcher: Dispatcher, *, server: str, now: Callable[[], float]) -> AsyncGenerator[None]:
    """kopf in a thread and a loop of its own until the end of the block: it sets signal handlers where it can.

    Raises ReconcilerEnded in the block, in an ExceptionGroup, when kopf ends before.
    """
    import kopf as untyped

    kopf: Any = untyped
    reconciler = Reconciler(dispatcher, now=now)
    handlers: Json = registry(reconciler, server=server)
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
            own = [tasks.create_task(watch()), tasks.create_task(reconciler.keep_retiring())]
            yield
            for task in own:
                task.cancel()
    finally:
        stop.set()
        await asyncio.wait({over}, timeout=STOP_SECONDS)
