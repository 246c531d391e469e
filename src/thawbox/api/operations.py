"""Work that takes its time: done by threads of its own, waited for, streamed, cancelled.

Rule 1: a lane takes on a bounded number of operations; beyond that the caller is told so at once, never left waiting.
Rule 2: an operation ends exactly once, as what it was: succeeded, failed or cancelled.
Rule 3: one that somebody was given the number of is in the book; the next life of the service tells how it ended.
Rule 4: one that is cancelled leaves nothing of what it made; where that cannot be, it is carried out, and succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog

from thawbox.api.book import Book
from thawbox.api.events import Events
from thawbox.api.problems import describe
from thawbox.errors import Busy, Cancelled, NotFound, ThawboxError, Unavailable
from thawbox.telemetry import carried
from thawbox.views import timestamp

if TYPE_CHECKING:
    from thawbox.api import shown

KEPT = 1000
"""Operations that are over and still told of."""
_log = structlog.get_logger()


class State(enum.Enum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, slots=True)
class Lane:
    """Threads that carry out one sort of work, and how many further orders may wait for them."""

    name: str
    workers: int
    waiting: int


LIFE = Lane("life", 8, 512)
"""Runs, checkpoints, restores, clones: each keeps a core busy for some tens of milliseconds."""
STORE = Lane("store", 4, 128)
"""Verifying, flattening, moving and collecting snapshots: the disk's and the network's work."""
PATIENCE = Lane("patience", 64, 64)
"""Draining, rolling, stopping, booting templates: mostly waiting for others."""


class Progress:
    """What an operation's work says of itself, and where it learns that nobody wants it any more."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._wake: Callable[[], None] | None = None
        self._may_wait = True
        self.now: shown.Done | None = None

    def tell(self, done: int, total: int, what: str) -> None:
        """Say how far the work is. A safe point: raises Cancelled."""
        self.check()
        self.now = {"done": done, "total": total, "what": what}
        self._changed()

    def check(self) -> None:
        """A safe point: raises Cancelled if the operation is to end."""
        if self._cancelled.is_set():
            raise Cancelled("the operation was cancelled")

    def cancel(self) -> None:
        """Have it end at its next safe point, at once where it only waits."""
        with self._lock:
            self._cancelled.set()
            wake = self._wake
        if wake is not None:
            wake()

    def wait_no_more(self) -> None:
        """The same, if it only waits, now or later: whatever else it does goes on."""
        with self._lock:
            self._may_wait = False
            waits = self._wake is not None
        if waits:
            self.cancel()

    @contextlib.contextmanager
    def waiting(self, wake: Callable[[], None]) -> Generator[None]:
        """A block that waits for others: whoever cancels it calls `wake`, and it comes out by `check`."""
        with self._lock:
            if not self._may_wait:
                self._cancelled.set()
            self._wake = wake
        try:
            yield
        finally:
            with self._lock:
                self._wake = None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()


Act = Callable[[Progress], object]
"""Does the work in a lane's thread; what it returns is the operation's result, as JSON has it."""


class Operation:
    """One piece of work. `done` is its future: the result, or the error."""

    def __init__(self, kind: str, owner: str, act: Act, *, created_at: float, changed: Callable[[Operation], None]):
        self.id = f"op-{secrets.token_hex(8)}"
        self.kind = kind
        self.owner = owner
        self.created_at = created_at
        self.finished_at: float | None = None
        self.state = State.PENDING
        self.done: Future[object] = Future()
        self.progress = Progress(lambda: changed(self))
        self._act = act
        self._lock = threading.Lock()

    def carry_out(self, now: Callable[[], float], begun: Callable[[], None]) -> None:
        """Do the work, unless it was cancelled before; the state is right when this returns."""
        with self._lock:
            if self.state is not State.PENDING:
                return
            self.state = State.RUNNING
        begun()
        try:
            result = self._act(self.progress)
        except Cancelled as error:
            self._end(State.CANCELLED, now(), error=error)
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
            if not isinstance(error, ThawboxError):
                _log.error("operation.failed", operation=self.id, kind=self.kind, error=repr(error), exc_info=error)
            self._end(State.FAILED, now(), error=error)
        else:
            self._end(State.SUCCEEDED, now(), result=result)

    def cancel(self, now: float) -> None:
        """End it at once if it has not begun, else at its next safe point."""
        self.progress.cancel()
        self.drop(now, Cancelled("the operation was cancelled before it began"))

    def drop(self, now: float, error: ThawboxError) -> None:
        """End it, if it has not begun, with this error."""
        with self._lock:
            if self.state is not State.PENDING:
                return
            self.state = State.CANCELLED
        self._end(State.CANCELLED, now, error=error)

    def _end(self, state: State, now: float, *, result: object = None, error: BaseException | None = None) -> None:
        self.finished_at = now
        self.state = state
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)

    def shown(self) -> shown.Operation:
        """The operation as JSON."""
        is_over = self.done.done()
        error = self.done.exception() if is_over else None
        return {
            "id": self.id, "kind": self.kind, "state": self.state.value, "created_at": timestamp(self.created_at),
            "finished_at": timestamp(self.finished_at), "progress": self.progress.now,
            "result": self.done.result() if is_over and error is None else None,
            "error": describe(error) if error is not None else None,
        }  # fmt: skip


async def waited_for(operation: Operation) -> object:
    """The operation's result, or what it raises; whoever is cancelled here cancels nothing."""
    return await asyncio.shield(asyncio.wrap_future(operation.done))


class Operations:
    """The lanes of one service, and the operations that somebody was given the number of."""

    def __init__(self, book: Book, events: Events, *, now: Callable[[], float] = time.time) -> None:
        self._book = book
        self._events = events
        self._now = now
        self._lock = threading.Condition()
        self._listed: dict[str, Operation] = {}
        self._lanes: dict[str, _Crew] = {}
        self._under_way: set[Operation] = set()
        self._is_closed = False
        self._tell_of_earlier_life()

    def _tell_of_earlier_life(self) -> None:
        """What an earlier life had begun ended with it."""
        ended = describe(Unavailable("the node's service ended before the operation was done", remediation="look what "
                                     "there is, then ask anew"))  # fmt: skip
        with self._book.change() as sql:
            for (content,) in sql.execute("SELECT content FROM operations WHERE is_over = 0").fetchall():
                shown = {**msgspec.json.decode(content), "state": "failed", "error": ended}
                shown["finished_at"] = timestamp(self._now())
                _write(sql, shown, owner=str(shown.pop("owner", "")), created_at=None, is_over=True)

    def begin(self, kind: str, act: Act, *, lane: Lane, owner: str, is_listed: bool) -> Operation:
        """Take the work on; raises Busy when there is too much already. With `is_listed` it can be asked for by id."""
        operation = Operation(kind, owner, act, created_at=self._now(), changed=self._changed)
        with self._lock:
            if self._is_closed:
                raise _stopping()
            crew = self._lanes.get(lane.name) or self._lanes.setdefault(lane.name, _Crew(lane))
            if crew.load >= lane.workers + lane.waiting:
                raise Busy(f"{crew.load} operations like this are under way or waiting")
            crew.load += 1
            self._under_way.add(operation)
            if is_listed:
                self._listed[operation.id] = operation
        try:
            if is_listed:
                self._keep(operation)
                operation.done.add_done_callback(lambda _: self._over(operation))
        except BaseException:  # nobody is given its number
            self._listed.pop(operation.id, None)
            self._ended(operation, crew)
            raise
        operation.done.add_done_callback(lambda _: self._ended(operation, crew))
        with self._lock:
            crew.give(carried(lambda: operation.carry_out(self._now, lambda: self._changed(operation))))
        return operation

    def _ended(self, operation: Operation, crew: _Crew) -> None:
        with self._lock:
            crew.load -= 1
            self._under_way.discard(operation)
            self._lock.notify_all()

    def _changed(self, operation: Operation) -> None:
        if operation.id in self._listed:
            self._events.bell.ring()

    def _over(self, operation: Operation) -> None:
        self._keep(operation)
        with self._lock:
            self._listed.pop(operation.id, None)
        shown = operation.shown()
        subject = {"type": "operation", "id": operation.id, "name": operation.kind}
        self._events.emit(f"operation.{operation.state.value}", subject, error=shown["error"])

    def _keep(self, operation: Operation) -> None:
        shown = operation.shown()
        with self._book.change() as sql:
            _write(sql, shown, owner=operation.owner, created_at=operation.created_at, is_over=operation.done.done())
            sql.execute(
                "DELETE FROM operations WHERE is_over = 1 AND created_at < (SELECT created_at FROM operations "
                "ORDER BY created_at DESC LIMIT 1 OFFSET ?)", (KEPT,),
            )  # fmt: skip

    # --- what is asked of them -----------------------------------------------------------------------------------

    def show(self, reference: str) -> shown.Operation:
        """An operation as it is now; raises NotFound."""
        operation = self._listed.get(reference)
        if operation is not None:
            return operation.shown()
        rows = self._book.rows("SELECT content FROM operations WHERE id = ?", reference)
        if not rows:
            raise NotFound(f"there is no operation {reference[:80]!r}", remediation="old ones are forgotten")
        return _shown_again(rows[0][0])

    def owner(self, reference: str) -> str:
        """Whose operation it is; raises NotFound."""
        rows = self._book.rows("SELECT content FROM operations WHERE id = ?", reference)
        if not rows:
            raise NotFound(f"there is no operation {reference[:80]!r}", remediation="old ones are forgotten")
        return str(msgspec.json.decode(rows[0][0]).get("owner", ""))

    def all(self) -> list[shown.Operation]:
        """Every operation that is remembered, oldest first."""
        rows = self._book.rows("SELECT id, content FROM operations ORDER BY created_at, id")
        return [live.shown() if (live := self._listed.get(one)) else _shown_again(content) for one, content in rows]

    def cancel(self, reference: str) -> shown.Operation:
        """Cancel an operation and return what it is then; one that is over stays as it ended. Raises NotFound."""
        operation = self._listed.get(reference)
        if operation is not None:
            operation.cancel(self._now())
        return self.show(reference)

    async def wait(self, reference: str, *, seconds: float) -> shown.Operation:
        """The operation when it is over, or as it is after `seconds`; raises NotFound."""
        operation = self._listed.get(reference)
        if operation is not None:
            await asyncio.wait([asyncio.wrap_future(operation.done)], timeout=seconds)
        return self.show(reference)

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self, *, timeout: float) -> bool:
        """Take nothing more on, end what has not begun or only waits; False if the rest had not ended in time."""
        with self._lock:
            self._is_closed = True
            crews, left = list(self._lanes.values()), list(self._under_way)
        for operation in left:
            operation.drop(self._now(), _stopping())
            operation.progress.wait_no_more()
        for crew in crews:
            crew.dismiss()
        with self._lock:
            return self._lock.wait_for(lambda: not self._under_way, timeout)

    @property
    def under_way(self) -> int:
        """How many operations have not ended."""
        return len(self._under_way)


def _stopping() -> Busy:
    return Busy("the node is stopping", remediation="ask again when it is back")


class _Crew:
    """The threads of a lane: begun when there is work for them, ended with the process."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.load = 0

    def give(self, order: Callable[[], None]) -> None:
        self._orders.put(order)
        if len(self._threads) < min(self._lane.workers, self.load):
            name = f"thawbox-{self._lane.name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def dismiss(self) -> None:
        """Each thread ends when it has done what it was given."""
        for _ in self._threads:
            self._orders.put(None)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            order()


def _write(sql: Any, shown: Mapping[str, object], *, owner: str, created_at: float | None, is_over: bool) -> None:
    content = msgspec.json.encode({**shown, "owner": owner}).decode()
    if created_at is None:
        sql.execute("UPDATE operations SET is_over = ?, content = ? WHERE id = ?", (is_over, content, shown["id"]))
        return
    values = (shown["id"], created_at, is_over, content)
    sql.execute("INSERT OR REPLACE INTO operations VALUES (?, ?, ?, ?)", values)


def _shown_again(content: str) -> shown.Operation:
    found: dict[str, Any] = msgspec.json.decode(content)
    found.pop("owner", None)
    return cast("shown.Operation", found)
