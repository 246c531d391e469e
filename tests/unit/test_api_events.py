"""Following events: whoever listens for what seldom happens hears that he still listens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest

from thawbox.api.book import Book
from thawbox.api.events import Events


def test_a_listener_hears_a_heartbeat_while_only_what_he_does_not_want_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thawbox.api.events.HEARTBEAT_SECONDS", 0.2)
    is_over = threading.Event()

    async def listen(events: Events) -> object:
        events.bell.hang_in(asyncio.get_running_loop())
        async with contextlib.aclosing(events.follow(wanted=["mine"])) as following:
            return await asyncio.wait_for(anext(following), 60)

    with contextlib.closing(Book(tmp_path)) as book:
        events = Events(book)

        def happen() -> None:
            while not is_over.wait(0.005):
                events.emit("others")

        others = threading.Thread(target=happen)
        others.start()
        try:
            assert asyncio.run(listen(events)) is None
        finally:
            is_over.set()
            others.join()
