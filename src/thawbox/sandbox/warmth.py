"""Which snapshots a process holds ready, or is to, for whom, and how often clones of each are asked for. Only state.

`warming` does what follows from it; `pool_plan` decides.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from thawbox.model import SnapshotId
from thawbox.pool_plan import DEMAND_WINDOW, SOONEST_RELOAD, HeldTemplate, reload_after
from thawbox.sandbox.threads import tell_defect

_REQUESTS_KEPT = 64
TRY_AGAIN = 60.0
"""Seconds until loading is tried again that was refused: by an engine that cannot, or for want of memory."""
_PAST = max(DEMAND_WINDOW, TRY_AGAIN)
"""Seconds after which a request or refusal says nothing any more."""
LOOK_AGAIN = 5.0
"""Seconds between two looks whether a template idles, its server died, or memory is short."""


@dataclass(slots=True)
class Warm:
    """A snapshot whose memory is held, or is to be. `holders` asked for that, each for so many ready shells besides;
    without one it is held for demand alone.

    While it is not held it is not loaded before `try_at`; `failures` are those in a row.
    """

    used_at: float
    holders: dict[str, int] = field(default_factory=dict[str, int])
    is_held: bool = False
    bytes: int = 0
    loaded_at: float = 0.0
    failures: int = 0
    try_at: float = 0.0


class Warmth:
    """The books of one node's process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._requests: dict[SnapshotId, deque[float]] = {}
        self._warm: dict[SnapshotId, Warm] = {}
        self._loading: dict[SnapshotId, int] = {}
        self._refused: dict[SnapshotId, float] = {}
        self._sweep_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._closing = False

    def asked(self, snapshot: SnapshotId, *, now: float) -> tuple[float, ...]:
        """Note that a clone is asked for; the times of those asked for lately, this one included."""
        with self._lock:
            self._forget_past(now)
            times = self._requests.setdefault(snapshot, deque(maxlen=_REQUESTS_KEPT))
            times.append(now)
            return tuple(times)

    def used(self, snapshot: SnapshotId, *, now: float) -> None:
        """A clone of it is made."""
        with self._lock:
            if snapshot in self._warm:
                self._warm[snapshot].used_at = now

    def _forget_past(self, now: float) -> None:
        """Of snapshots that were cloned once there is no end: each fork makes one."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + _PAST
        self._requests = {one: times for one, times in self._requests.items() if times[-1] > now - _PAST}
        self._refused = {one: at for one, at in self._refused.items() if at > now - _PAST}

    @property
    def remembered(self) -> int:
        """Of how many snapshots it is remembered that they were asked for, or refused."""
        with self._lock:
            return len(self._requests.keys() | self._refused.keys())

    def want(self, snapshot: SnapshotId, holder: str, *, now: float, shells: int = 0) -> None:
        """It is to be held until this holder lets it go."""
        with self._lock:
            self._warm.setdefault(snapshot, Warm(now)).holders[holder] = shells
            self._lock.notify_all()

    @contextlib.contextmanager
    def loading(self, snapshot: SnapshotId, *, resident: int) -> Generator[int]:
        """A block in which nobody else loads this snapshot; gives the bytes that others are about to load.

        So what two want is loaded once, and memory that is free is promised once.
        """
        with self._lock:
            self._lock.wait_for(lambda: snapshot not in self._loading)
            promised = sum(self._loading.values())
            self._loading[snapshot] = resident
        try:
            yield promised
        finally:
            with self._lock:
                del self._loading[snapshot]
                self._lock.notify_all()

    def loaded(self, snapshot: SnapshotId, *, resident: int, now: float, by_demand: bool = False) -> bool:
        """It is held now; False if that was not `by_demand`, and whoever wanted it has let it go meanwhile."""
        with self._lock:
            if snapshot not in self._warm and not by_demand:
                return False
            warm = self._warm.setdefault(snapshot, Warm(now))
            if not warm.is_held:
                warm.is_held, warm.loaded_at = True, now
            warm.bytes, warm.used_at = resident, now
            self._lock.notify_all()
            return True

    def failed(self, snapshot: SnapshotId, *, now: float) -> None:
        """It could not be loaded."""
        self._end(snapshot, now=now, is_failure=True)

    def given_up(self, snapshot: SnapshotId, *, now: float) -> None:
        """Memory is too short for it, or it is one too many."""
        self._end(snapshot, now=now)

    def died(self, snapshot: SnapshotId, *, now: float) -> None:
        """Its server is dead; it is loaded anew at once, unless that happens again and again."""
        with self._lock:
            warm = self._warm.get(snapshot)
            if warm is not None and (now - warm.loaded_at > SOONEST_RELOAD or not warm.failures) and warm.holders:
                warm.is_held, warm.try_at, warm.failures = False, now, 1
                return
        self._end(snapshot, now=now, is_failure=True)

    def _end(self, snapshot: SnapshotId, *, now: float, is_failure: bool = False) -> None:
        with self._lock:
            self._refused[snapshot] = now
            warm = self._warm.get(snapshot)
            if warm is None:
                return
            if not warm.holders:
                del self._warm[snapshot]
                return
            warm.is_held, warm.failures = False, warm.failures + is_failure
            warm.try_at = now + (reload_after(warm.failures) if is_failure else SOONEST_RELOAD)

    def refused(self, snapshot: SnapshotId, *, now: float) -> None:
        """It cannot be held, or is not worth it."""
        with self._lock:
            self._refused[snapshot] = now

    def may_try(self, snapshot: SnapshotId, *, now: float) -> bool:
        """Whether nobody sees to it already, and it was not refused lately."""
        with self._lock:
            return snapshot not in self._warm and now - self._refused.get(snapshot, -TRY_AGAIN) >= TRY_AGAIN

    def let_go(self, snapshot: SnapshotId, holder: str) -> bool:
        """One holder less; True if that was the last, and the caller is to give the memory up."""
        with self._lock:
            warm = self._warm.get(snapshot)
            if warm is None:
                return False
            warm.holders.pop(holder, None)
            if warm.holders:
                return False
            del self._warm[snapshot]
            return True

    def leave(self, holder: str, *, now: float) -> None:
        """One holder less; what is held stays so for demand, as if a clone had just been asked for."""
        with self._lock:
            for snapshot, warm in list(self._warm.items()):
                if warm.holders.pop(holder, None) is None or warm.holders:
                    continue
                warm.used_at = now
                if not warm.is_held:
                    del self._warm[snapshot]
            self._lock.notify_all()

    def drop(self, snapshot: SnapshotId) -> None:
        """It is held no more, whoever wanted it."""
        with self._lock:
            self._warm.pop(snapshot, None)

    def shells(self, snapshot: SnapshotId) -> int:
        """How many shells its holders want ready."""
        with self._lock:
            warm = self._warm.get(snapshot)
            return max(warm.holders.values(), default=0) if warm is not None else 0

    def held(self) -> tuple[HeldTemplate, ...]:
        """What is held, for the plan."""
        with self._lock:
            return tuple(
                HeldTemplate(snapshot, warm.bytes, warm.used_at, is_kept=bool(warm.holders))
                for snapshot, warm in self._warm.items()
                if warm.is_held
            )

    def wanted(self) -> tuple[SnapshotId, ...]:
        """What is held, or to be."""
        with self._lock:
            return tuple(self._warm)

    def due(self, *, now: float) -> tuple[SnapshotId, ...]:
        """What is to be held, is not, and may be tried now."""
        with self._lock:
            return tuple(one for one, warm in self._warm.items() if not warm.is_held and warm.try_at <= now)

    def start(self, look: Callable[[], None]) -> None:
        """Call `look` every few seconds from now on, in a thread of its own, as long as anything is held or wanted."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._tend, args=(look,), name="thawbox-warmth", daemon=True)
                self._thread.start()

    def rest(self) -> None:
        """Look no more if nothing is held: the thread has ended then, unless somebody holds something meanwhile."""
        with self._lock:
            self._lock.notify_all()
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return
            self._lock.wait_for(lambda: self._thread is not thread or (self._warm and not self._closing))
            has_ended = self._thread is not thread
        if has_ended:
            thread.join()

    def close(self) -> None:
        """Look no more, whatever is held."""
        self._closing = True
        self.rest()

    def _tend(self, look: Callable[[], None]) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or not self._warm, LOOK_AGAIN)
                if self._closing or not self._warm:
                    self._thread = None
                    self._lock.notify_all()
                    return
            try:
                look()
            except Exception:  # noqa: BLE001 - who holds and rests waits for this thread: it must not die
                tell_defect()
