"""Threads that a node waits for when it is closed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from thawbox.telemetry import carried


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


def tell_defect() -> None:
    """Tell the exception under way, which nobody foresaw, as that of a thread that dies of it; but let it go on."""
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
