"""What changed on the node, whoever changed it: journal and store compared with what they were at the last look.

Rule 1: sandbox, snapshot, template and pool events come from comparing alone, so none is told twice or by two.
Rule 2: what the service does itself it has looked at when it is done (`look_at`); other commands' changes are seen
within a second; deaths by the kernel's word (a pidfd).
Rule 3: what a pool has parked is the pool's: its clones are told of from the lease to its end.
Rule 4: while somebody acquires, a new lease of that pool is told of by him alone, who knows how long it took.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
import structlog

from thawbox.api.events import Events
from thawbox.errors import LockTimeout, SandboxNotFound, ThawboxError
from thawbox.host.files import locked
from thawbox.host.namespaces import reap
from thawbox.host.proc import open_process
from thawbox.lifecycle import ALIVE
from thawbox.model import Phase, SandboxId
from thawbox.sandbox import Context, Record
from thawbox.sandbox.observe import is_alive, observe
from thawbox.views import pool_of

LOOK_SECONDS = 1.0
_log = structlog.get_logger()

Subject = dict[str, object]


@dataclass(frozen=True, slots=True)
class Seen:
    """A sandbox as it was at the last look."""

    name: str
    phase: Phase
    pool: str | None
    lease: str
    keeper: int


def subject(kind: str, identity: str, name: str) -> Subject:
    """What an event is about."""
    return {"type": kind, "id": identity, "name": name}


class Watch:
    """A thread that looks; a context manager. What was there when it began is not news."""

    def __init__(self, context: Context, events: Events) -> None:
        self._context = context
        self._events = events
        self._lock = threading.RLock()
        self._sandboxes: dict[SandboxId, Seen] = {}
        self._pidfds: dict[int, SandboxId] = {}
        self._of_sandbox: dict[SandboxId, int] = {}
        self._snapshots: dict[str, str] = {}
        self._entries: dict[str, dict[str, bytes]] = {}
        self._dead: set[SandboxId] = set()
        self._acquiring: Counter[str] = Counter()
        self._released: dict[SandboxId, str] = {}
        """Sandboxes whose lease was given back, while their pool destroys them."""
        self._seen: object = None
        self._ending = False
        self._is_held_up = False
        self.levels: Callable[[], dict[str, dict[str, object]]] = dict
        """How full each pool is; a change of it is told at the next look."""
        self._levels: dict[str, dict[str, object]] = {}
        self._look_at = 0.0
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._look(is_first=True)
        self._thread = threading.Thread(target=self._run, name="thawbox-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._lock:
            for fd in self._pidfds:
                os.close(fd)
            self._pidfds.clear()
            self._of_sandbox.clear()
            self._epoll.close()
            os.close(self._wake)

    def check(self) -> None:
        """Raise what ended the watching, if anything did."""
        if self.failure is not None:
            raise self.failure

    # --- what is asked of it, in any thread ------------------------------------------------------------------------

    def look_at(self, sandbox: SandboxId, **acquired: object) -> None:
        """Tell at once what became of a sandbox; `acquired` is told beside its being acquired, if that is news."""
        with self._lock, contextlib.suppress(ValueError):  # closed: the service ends
            try:
                self._compare(sandbox, self._context.journal.find(sandbox), acquired=acquired)
            except SandboxNotFound:
                self._compare(sandbox, None)

    @contextlib.contextmanager
    def acquiring(self, pool: str) -> Generator[None]:
        """A block that acquires from this pool and then tells of it by `look_at`."""
        with self._lock:
            self._acquiring[pool] += 1
        try:
            yield
        finally:
            with self._lock:
                self._acquiring[pool] -= 1

    def look(self) -> None:
        """Tell at once of everything that changed."""
        with self._lock, contextlib.suppress(ValueError):
            self._look()

    def released(self, pool: str, lease: str) -> None:
        """Tell of a lease that was given back."""
        with self._lock:
            for sandbox, seen in self._sandboxes.items():
                if seen.lease == lease:
                    self._released[sandbox] = lease
                    self._forget(sandbox, seen, pool=pool)
                    return

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending:
                for fd, _ in self._epoll.poll(LOOK_SECONDS):
                    if fd in self._pidfds:
                        self._notice_death(fd)
                    elif fd == self._wake:
                        os.eventfd_read(fd)
                self._go_round()
        except Exception as error:  # noqa: BLE001 - raised by `check`
            _log.error("watch.failed", error=repr(error), exc_info=error)
            self.failure = error

    def _go_round(self) -> None:
        """Settle, and look if it is time; what the disk refuses, as when it is full, is done in a later round."""
        try:
            self._settle_dead()
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self._events.go_on()
                self._look_again()
                self._is_held_up = False
        except (OSError, LockTimeout) as error:
            if not self._is_held_up:
                _log.error("watch.waits", error=repr(error))
            self._is_held_up = True

    def _look_again(self) -> None:
        seen = self._version()
        if seen != self._seen:
            self.look()
            self._seen = seen
        levels = self.levels()
        for name, level in levels.items():
            if self._levels.get(name, level) != level:
                self._events.emit("pool.changed", subject("pool", name, name), **level)
        self._levels = levels

    def _version(self) -> object:
        return self._context.journal.version(), self._context.store.layout.snapshots.stat().st_mtime_ns

    def _notice_death(self, fd: int) -> None:
        with self._lock:
            sandbox = self._pidfds.get(fd)
            if sandbox is None:
                return
            seen = self._sandboxes.get(sandbox)
            self._stop_watching(sandbox)
        if seen is not None:
            reap(seen.keeper, block=False)
        self._dead.add(sandbox)

    def _settle_dead(self) -> None:
        """Bring the journal up to date; one that a command is working on is left for the next round."""
        for sandbox in list(self._dead):
            with contextlib.suppress(LockTimeout), locked(self._context.lock(sandbox), timeout=0):
                try:
                    observe(self._context, self._context.journal.find(sandbox))
                except SandboxNotFound:
                    self._context.remove_locks(sandbox)  # taking them has made them anew
                self._dead.discard(sandbox)
                self.look_at(sandbox)

    # --- comparing -------------------------------------------------------------------------------------------------

    def _look(self, *, is_first: bool = False) -> None:
        records = {record.id: record for record in self._context.journal.all()}
        for sandbox in [*records, *({*self._sandboxes, *self._released} - set(records))]:
            self._compare(sandbox, records.get(sandbox), is_first=is_first)
        self._compare_snapshots(is_first=is_first)
        self._compare_entries("template", is_first=is_first)
        self._compare_entries("pool", is_first=is_first)

    def _compare(
        self, sandbox: SandboxId, record: Record | None, *, is_first: bool = False,
        acquired: Mapping[str, object] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        before = self._sandboxes.get(sandbox)
        if record is not None and record.lease and self._released.get(sandbox) == record.lease:
            return  # its end was told
        self._released.pop(sandbox, None)
        if record is None or (record.owner and not record.lease):
            if before is not None:
                self._forget(sandbox, before)
            return
        if record.phase is Phase.CREATING and before is None:
            return  # told of when it runs: until then it may vanish again
        now = Seen(record.name, record.phase, pool_of(record), record.lease, record.keeper_pid)
        if now == before:
            return
        if before is None and self._acquiring[now.pool or ""] and not acquired and not is_first:
            return  # whoever acquires tells of it
        self._watch_life(record)
        self._sandboxes[sandbox] = now
        if not is_first:
            self._tell(sandbox, before, now, record, acquired)

    def _tell(
        self, sandbox: SandboxId, before: Seen | None, now: Seen, record: Record, acquired: Mapping[str, object]
    ) -> None:
        about = subject("sandbox", sandbox, now.name)
        if before is None and now.pool is not None:
            told = {"sandbox": {"id": sandbox, "name": now.name}, "lease": now.lease, **acquired}
            self._events.emit("pool.acquired", subject("pool", now.pool, now.pool), **told)
            return
        if before is None:
            self._events.emit("sandbox.created", about, parent_snapshot=record.parent_snapshot)
        if before is not None and before.phase is now.phase and before.keeper == now.keeper:
            return
        kind = _KINDS.get(now.phase)
        if before is not None and before.phase is Phase.FROZEN and now.phase is Phase.RUNNING:
            kind = "sandbox.thawed"
        if kind is not None:
            why = {"why": record.ended_why} if record.ended_why else {}
            self._events.emit(kind, about, **why)

    def _forget(self, sandbox: SandboxId, before: Seen, *, pool: str | None = None) -> None:
        del self._sandboxes[sandbox]
        self._stop_watching(sandbox)
        name = pool or before.pool
        if name is None:
            self._events.emit("sandbox.removed", subject("sandbox", sandbox, before.name))
            return
        named = {"id": sandbox, "name": before.name}
        self._events.emit("pool.released", subject("pool", name, name), sandbox=named, lease=before.lease)

    def _watch_life(self, record: Record) -> None:
        self._stop_watching(record.id)
        if record.phase not in ALIVE or not record.keeper_pid:
            return
        fd = self._living(record)
        if fd is None:
            self._dead.add(record.id)  # the kernel tells of it no more: the thread's next round settles it
            return
        self._pidfds[fd] = record.id
        self._of_sandbox[record.id] = fd
        self._epoll.register(fd, select.EPOLLIN)

    def _living(self, record: Record) -> int | None:
        """A pidfd of the sandbox's pid 1; None when that is dead."""
        try:
            fd = open_process(record.keeper_pid)
        except ProcessLookupError:
            return None
        if is_alive(self._context, record):
            return fd
        os.close(fd)  # the number is another's by now
        return None

    def _stop_watching(self, sandbox: SandboxId) -> None:
        fd = self._of_sandbox.pop(sandbox, None)
        if fd is not None:
            del self._pidfds[fd]
            self._epoll.unregister(fd)
            os.close(fd)

    def _compare_snapshots(self, *, is_first: bool) -> None:
        ids = {str(one) for one in self._context.store.catalog.ids()}
        for gone in sorted(set(self._snapshots) - ids):
            self._events.emit("snapshot.removed", subject("snapshot", gone, self._snapshots.pop(gone)))
        for new in sorted(ids - set(self._snapshots)):
            try:
                stored = self._context.store.record(self._context.store.resolve(new))
            except (ThawboxError, OSError):
                continue  # removed meanwhile, or damaged: `verify` names it
            self._snapshots[new] = next(iter(stored.facts.names), "")
            if not is_first:
                manifest = stored.manifest
                made_of = {"id": manifest.body.get("sandbox"), "name": manifest.body.get("name")}
                self._events.emit(
                    "snapshot.created", subject("snapshot", new, self._snapshots[new]), kind_of=manifest.kind.value,
                    parent=manifest.parent, sandbox=made_of, bytes=stored.bytes,
                )  # fmt: skip

    def _compare_entries(self, kind: str, *, is_first: bool) -> None:
        now, before = self._context.journal.entries(kind), self._entries.get(kind, {})
        self._entries[kind] = now
        if is_first:
            return
        for name in _changed(before, now):
            what = "created" if name not in before else "removed" if name not in now else _CHANGES[kind]
            if kind == "pool" and what == "changed" and msgspec.json.decode(now[name]).get("drained"):
                what = "drained"
            self._events.emit(f"{kind}.{what}", subject(kind, name, name))


def _changed(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> Iterable[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


_CHANGES = {"template": "rebuilt", "pool": "changed"}
_KINDS = {
    Phase.RUNNING: "sandbox.running",
    Phase.FROZEN: "sandbox.frozen",
    Phase.SUSPENDED: "sandbox.suspended",
    Phase.EXITED: "sandbox.exited",
    Phase.LOST: "sandbox.lost",
}
