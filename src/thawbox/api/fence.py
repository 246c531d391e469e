"""The fence of a node: what was let run in its placeholders stands still once nobody says any more that it may.

A node agent says until when, again and again, as long as it renews the node's lease. Should it die, hang or lose touch,
what runs is frozen here before that lease has run out, and claims are brought back elsewhere.

Rule 1: times are the machine's monotonic clock, which the agent reads too: what is told late says no more for that.
Rule 2: what was told and what was frozen outlive this process: one that begins too late freezes before it answers.
Rule 3: of one pod, freezing here and letting run exclude each other; what is marked as fenced is frozen by us alone.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

import msgspec

from thawbox.errors import Busy, InvalidTransition, SandboxNotFound, ThawboxError
from thawbox.host.files import replace_file
from thawbox.model import Phase
from thawbox.sandbox import Context, Record, Sandbox
from thawbox.sandbox.placing import all_placed, pod_of
from thawbox.telemetry import code_of

LOOK_SECONDS = 0.5
"""Between two looks for what runs although it may not."""
_FIRST_SECONDS = 5.0
"""How long a service that begins too late waits for its first freezings before it answers."""
_THREADS = 32
"""Freezings at a time: one that waits for a checkpoint of its sandbox must not hold the others up."""


class Pods:
    """One change at a time to what a pod holds."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def alone(self, pod: str) -> Generator[None]:
        """Wait until nobody else changes this pod, and keep others from it."""
        with self._guard:
            mine = self._locks.setdefault(pod, threading.Lock())
        with mine:
            yield


class _Kept(msgspec.Struct):
    """The file: of which boot `until` is a time, and the pods whose clones we have frozen."""

    boot_id: str
    until: float
    fenced: list[str]


class Fence:
    """A thread that freezes when it is time; a context manager. Never told anything, it freezes nothing."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._path = context.home / "fence"
        self._changed = threading.Condition()
        self._until = math.inf
        self._fenced: set[str] = set()
        self._parking: Counter[str] = Counter()
        self._pods = Pods()
        self._freezing: dict[str, Future[None]] = {}
        self._ending = False
        self._failure: BaseException | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "thawbox-freeze")
        self._thread = threading.Thread(target=self._run, name="thawbox-fence")

    def __enter__(self) -> Self:
        self._load()
        if self._is_over():
            self._freeze_all(patience=_FIRST_SECONDS)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        self._threads.shutdown(cancel_futures=True)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._failure is not None:
            raise self._failure

    def tell(self, until: float) -> list[str]:
        """Let what is leased run until this time; returns the pods whose clones were frozen and still are."""
        there = {pod_of(record.owner) for record in all_placed(self._context)} if self._fenced else set[str]()
        with self._changed:
            self._until = until
            self._fenced &= there
            self._keep()
            self._changed.notify_all()
            return sorted(self._fenced)

    def check_open(self) -> None:
        """Raise Busy when nothing may be let run here."""
        if self._is_over():
            raise Busy(
                "this node has lost touch with its cluster: what is leased on it stands still",
                remediation="wait until its agent has renewed its lease",
            )

    @contextlib.contextmanager
    def letting_run(self, pod: str) -> Generator[None]:
        """A block that thaws what a pod holds; raises Busy when it may not."""
        with self._pods.alone(pod):
            self.check_open()
            yield
            with self._changed:
                if pod in self._fenced:
                    self._fenced.discard(pod)
                    self._keep()

    @contextlib.contextmanager
    def parking(self, pod: str) -> Generator[None]:
        """A block in which what the pod holds runs for a moment, leased by nobody."""
        with self._changed:
            self._parking[pod] += 1
        try:
            yield
        finally:
            with self._changed:
                self._parking[pod] -= 1
                self._parking += Counter()  # drops those at zero

    def _is_over(self) -> bool:
        return self._clock() >= self._until

    def _run(self) -> None:
        try:
            while self._wait():
                self._freeze_all(patience=LOOK_SECONDS)
        except BaseException as failure:
            self._failure = failure
            raise

    def _wait(self) -> bool:
        """Return when it is time to freeze: False at the end."""
        with self._changed:
            if not self._ending and self._is_over():
                self._changed.wait(LOOK_SECONDS)
            while not self._ending and not self._is_over():
                self._changed.wait(min(self._until - self._clock(), threading.TIMEOUT_MAX))
            return not self._ending

    def _freeze_all(self, *, patience: float) -> None:
        """Freeze what runs in a placeholder, and give that so many seconds; what takes longer is looked at again."""
        try:
            records = all_placed(self._context)
        except (ThawboxError, OSError, sqlite3.Error) as error:  # it is tried again, for nobody else would
            self._context.telemetry.happened("fence.failed", code=code_of(error))
            return
        with self._changed:
            parking = set(self._parking)
        for pod in [pod for pod, one in self._freezing.items() if one.done()]:
            self._freezing.pop(pod).result()
        for record in records:
            pod = pod_of(record.owner)
            if record.phase is Phase.RUNNING and pod not in parking and pod not in self._freezing:
                self._freezing[pod] = self._threads.submit(self._freeze, pod, record)
        wait(self._freezing.values(), timeout=patience)

    def _freeze(self, pod: str, record: Record) -> None:
        with self._pods.alone(pod):
            if not self._is_over():
                return
            self._mark(pod)
            try:
                Sandbox(self._context, record).freeze()
            except (SandboxNotFound, InvalidTransition):  # it is dead
                return
            except (ThawboxError, OSError, sqlite3.Error) as error:  # whoever works on it keeps it: tried again
                self._context.telemetry.happened("fence.failed", sandbox=record.id, code=code_of(error))
                return
            self._context.telemetry.happened("fence.frozen", sandbox=record.id)

    def _mark(self, pod: str) -> None:
        with self._changed:
            self._fenced.add(pod)
            try:
                self._keep()
            except OSError as error:  # it is frozen nevertheless; without a mark only after a restart
                self._context.telemetry.happened("fence.failed", code=code_of(error))

    def _keep(self) -> None:
        kept = _Kept(self._context.boot_id, self._until, sorted(self._fenced))
        replace_file(self._path, msgspec.json.encode(kept))  # whatever ends the machine ends its clones too

    def _load(self) -> None:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return
        except msgspec.DecodeError:  # torn by a power failure, which no clone has outlived
            kept = _Kept("", 0.0, [])
        if kept.boot_id == self._context.boot_id:
            self._until, self._fenced = kept.until, set(kept.fenced)
        else:
            self._until = 0.0
