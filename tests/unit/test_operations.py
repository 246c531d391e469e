"""Operations of a service whose book fails, or whose callers go."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from thawbox.api.book import Book
from thawbox.api.events import Events
from thawbox.api.operations import Lane, Operations, Progress, waited_for

LANE = Lane("test", workers=1, waiting=1)
MINUTE = 60.0


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    with contextlib.closing(Book(tmp_path)) as book:
        yield book


def test_what_could_not_be_written_down_takes_no_place_in_its_lane(book: Book) -> None:
    operations = Operations(book, Events(book))
    with book.change() as sql:
        sql.execute("ALTER TABLE operations RENAME TO elsewhere")
    for _ in range(LANE.workers + LANE.waiting + 1):
        with pytest.raises(sqlite3.Error):
            operations.begin("test", lambda _: None, lane=LANE, owner="", is_listed=True)
    assert operations.under_way == 0
    done = operations.begin("test", lambda _: "done", lane=LANE, owner="", is_listed=False).done
    assert done.result(MINUTE) == "done"
    assert operations.close(timeout=MINUTE)


def test_a_caller_that_is_cancelled_leaves_the_operation_to_its_end(book: Book) -> None:
    operations, goes_on = Operations(book, Events(book)), threading.Event()

    def act(_: Progress) -> object:
        assert goes_on.wait(MINUTE)
        return "done"

    async def ask() -> None:
        waiting = asyncio.ensure_future(waited_for(operation))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    operation = operations.begin("test", act, lane=LANE, owner="", is_listed=False)
    asyncio.run(ask())
    goes_on.set()
    assert operation.done.result(MINUTE) == "done"
    assert operations.close(timeout=MINUTE)
