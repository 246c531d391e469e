"""Pools that another process keeps: the service starts without them, and takes each up once that one lets go of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from thawbox.errors import NotFound, ThawboxError, Unavailable

_LOOK_AGAIN = 1.0
"""Seconds between two tries: a lock that is let go of tells nobody."""
_log = structlog.get_logger()


class Elsewhere:
    """Opens pools, now or later; a context manager. `open` raises Unavailable for what is kept elsewhere."""

    def __init__(self, open: Callable[[str], object]) -> None:
        self._open = open
        self._wanted: list[str] = []
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="thawbox-elsewhere", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def open_all(self, pools: list[str]) -> None:
        """Open these pools; those that are kept elsewhere when that ends."""
        for pool in pools:
            try:
                self._open(pool)
            except Unavailable as error:
                _log.warning("pool.elsewhere", pool=pool, why=error.cause)
                self._wanted.append(pool)
        if self._wanted:
            self._thread.start()

    def check(self) -> None:
        """Raise what nobody foresaw."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while self._wanted and not self._ending.wait(_LOOK_AGAIN):
                self._wanted = [pool for pool in self._wanted if not self._is_settled(pool)]
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._failure = error

    def _is_settled(self, pool: str) -> bool:
        try:
            self._open(pool)
        except NotFound:  # removed or drained meanwhile
            return True
        except (ThawboxError, OSError):
            return False
        _log.info("pool.taken_up", pool=pool)
        return True
