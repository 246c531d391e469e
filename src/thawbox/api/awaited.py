"""What a service that stops still waits for, beside its operations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator


class Awaited:
    """Commands and code whose whole outcome is awaited by a caller: few of them are long."""

    def __init__(self) -> None:
        self.under_way = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Generator[None]:
        self.under_way += 1
        self._none.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._none.set()

    async def wait_none(self, seconds: float) -> None:
        """Until none is under way, or so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
