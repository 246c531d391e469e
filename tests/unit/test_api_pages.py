"""Lists in pages: nothing is lost or doubled, however close together its items were made."""

from __future__ import annotations

from thawbox.api.answers import Page

MADE = [
    ("2026-01-01T00:00:00.001Z", "op-3"),
    ("2026-01-01T00:00:00.001Z", "op-1"),
    ("2026-01-01T00:00:00.002Z", "op-2"),
]


def test_items_of_one_moment_are_on_one_page_each_whatever_their_order() -> None:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = Page(limit=1, cursor=cursor or "").of(MADE, lambda one: one)
        found += [identity for _, identity in page]
        if cursor is None:
            break
    assert sorted(found) == ["op-1", "op-2", "op-3"]
