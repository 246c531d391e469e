"""Threads that a node waits for when it is closed, and what several of them make together."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Generic, TypeVar

from thawbox.telemetry import carried

_T = TypeVar("_T")


class Threads:
    """Work that goes on after its caller was answered. Each thread ends by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None], *, name: str) -> None:
        """Run `work` in a new thread, as a part of the step that is under way here; it raises nothing."""
        thread = threading.Thread(target=carried(work), name=name)
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Wait until all have ended."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()


class Making(Generic[_T]):
    """What several threads make for one caller, who wants all of it or nothing.

    The threads note what they made: the caller may be interrupted before it knows of a thread at all, as Ctrl-C ends
    `Thread.start` after the thread runs.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_stopped = False
        self._going = 0
        self._made: list[_T] = []

    @contextmanager
    def one(self) -> Generator[Callable[[_T], None]]:
        """Make one thing, and tell of it by what is given here. Raises CancelledError once it was stopped."""
        with self._changed:
            if self._is_stopped:
                raise CancelledError
            self._going += 1
        try:
            yield self._made.append
        finally:
            with self._changed:
                self._going -= 1
                self._changed.notify_all()

    def stop(self) -> list[_T]:
        """Let no more be begun, wait until what was is done, and return all that was made."""
        with self._changed:
            self._is_stopped = True
            self._changed.wait_for(lambda: self._going == 0)
        return self._made


def tell_defect() -> None:
    """Tell the exception under way, which nobody foresaw, as that of a thread that dies of it; but let it go on."""
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
