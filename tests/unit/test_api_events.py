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


def test_what_a_full_disk_refuses_is_told_in_its_order_when_there_is_room_again(tmp_path: Path) -> None:
    heard: list[object] = []
    with contextlib.closing(Book(tmp_path)) as book:
        events = Events(book)
        events.on_event(lambda kind, told: heard.append((kind, told["id"])))
        events.emit("one")
        ((pages,),) = book.rows("PRAGMA page_count")
        book.rows(f"PRAGMA max_page_count = {pages}")
        events.emit("large", None, filling="x" * 100_000)
        events.emit("two")
        assert heard == [("one", 1)]
        assert events.last == 1
        book.rows("PRAGMA max_page_count = 100000")
        events.go_on()
        assert heard == [("one", 1), ("large", 2), ("two", 3)]
        assert [(event.id, event.kind) for event in events.after(0)] == [
            (1, "one"), (2, "large"), (3, "two")
        ]  # fmt: skip
