"""How many may change one sandbox at a time: they wait for its lock, each in a thread that others need too."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from thawbox.errors import Busy
from thawbox.model import SandboxId

MOST_CHANGES = 4
"""Under way or waiting, of one sandbox: half the workers of the lane `life`, so that the others go on."""


class Crowd:
    """Those who change sandboxes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: Counter[SandboxId] = Counter()

    @contextmanager
    def one(self, sandbox: SandboxId) -> Generator[None]:
        """Room for one more at this sandbox; raises Busy."""
        with self._lock:
            if self._there[sandbox] >= MOST_CHANGES:
                raise Busy(f"{MOST_CHANGES} changes of the sandbox {sandbox} are under way")
            self._there[sandbox] += 1
        try:
            yield
        finally:
            with self._lock:
                self._there[sandbox] -= 1
                if not self._there[sandbox]:
                    del self._there[sandbox]
