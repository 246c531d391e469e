"""The page's own modules, asked in the browser: the screen of the terminal, the stream, the chain graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dashboards import Served


@pytest.fixture(scope="module")
def page(served: Served, browser: Browser) -> Iterator[Page]:
    """One for all: these tests leave nothing in it."""
    with browser.new_context() as context:
        opened = context.new_page()
        opened.goto(served.url)
        yield opened


def _screen(page: Page, written: str, *, columns: int = 10, rows: int = 4, pieces: int = 0) -> dict[str, Any]:
    """What stands on a screen after something was written to it, whole or in pieces of so many bytes."""
    found: dict[str, Any] = page.evaluate(
        """async ([written, columns, rows, pieces]) => {
          const { Screen } = await import("/dashboard/vt_screen.js");
          const replies = [];
          const screen = new Screen({ columns, rows, reply: (text) => replies.push(text) });
          const bytes = new TextEncoder().encode(written);
          const length = pieces || bytes.length || 1;
          for (let at = 0; at < bytes.length; at += length) screen.write(bytes.subarray(at, at + length));
          return {
            lines: screen.lines.map((line) => line.text), scrolled: screen.scrolled.map((line) => line.text), replies,
            cursor: [screen.row, screen.column], pens: screen.lines[0].cells.map((cell) => cell.pen),
          };
        }""",
        [written, columns, rows, pieces],
    )
    return found


@pytest.mark.parametrize(
    ("written", "lines", "cursor"),
    [
        ("one\r\ntwo", ["one", "two", "", ""], [1, 3]),
        ("0123456789", ["0123456789", "", "", ""], [0, 9]),  # the cursor waits at the edge
        ("0123456789a", ["0123456789", "a", "", ""], [1, 1]),
        ("\x1b[?7l0123456789ab", ["012345678b", "", "", ""], [0, 9]),
        ("abc\bX\rY", ["YbX", "", "", ""], [0, 1]),
        ("a\tb", ["a       b", "", "", ""], [0, 9]),
        ("\x1b[2;3Hx\x1b[Ay\x1b[2Dz", ["  zy", "  x", "", ""], [0, 3]),
        ("abcdef\x1b[3D\x1b[K", ["abc", "", "", ""], [0, 3]),
        ("abcdef\x1b[3D\x1b[1K", ["    ef", "", "", ""], [0, 3]),
        ("a\r\nb\r\nc\x1b[2;1H\x1b[J", ["a", "", "", ""], [1, 0]),
        ("a\r\nb\r\nc\x1b[2J", ["", "", "", ""], [2, 1]),
        ("abcdef\r\x1b[2P\x1b[C\x1b[@", ["c def", "", "", ""], [0, 1]),
        ("abcdef\r\x1b[3X", ["   def", "", "", ""], [0, 0]),
        ("a\r\nb\r\nc\x1b[2;1H\x1b[L", ["a", "", "b", "c"], [1, 0]),
        ("a\r\nb\r\nc\x1b[1;1H\x1b[M", ["b", "c", "", ""], [0, 0]),
        ("1\r\n2\r\n3\r\n4\x1b[2;3r\x1b[3;1H\n", ["1", "3", "", "4"], [2, 0]),  # only the region scrolls
        ("1\r\n2\r\n3\r\n4\x1b[2;3r\x1b[2;1H\x1bM", ["1", "", "2", "4"], [1, 0]),
        ("1\r\n2\r\n3\r\n4\r\n5", ["2", "3", "4", "5"], [3, 1]),
        ("a\x1b7\x1b[3;3Hb\x1b8c", ["ac", "", "  b", ""], [0, 2]),
        ("main\x1b[?1049h\x1b[Hother\x1b[?1049l", ["main", "", "", ""], [0, 4]),
        ("日本", ["日本", "", "", ""], [0, 4]),
        ("123456789日", ["123456789", "日", "", ""], [1, 2]),  # a wide character does not stand across the edge
        ("日\x1b[2GX", [" X", "", "", ""], [0, 2]),  # half of it overwritten, it is gone
        ("e\u0301x", ["e\u0301x", "", "", ""], [0, 2]),
        ("\x1b(0lqk\x1b(Bq", ["┌─┐q", "", "", ""], [0, 4]),
        ("x\x1b[3b", ["xxxx", "", "", ""], [0, 4]),
        ("\x1b]0;a title\x07t\x1bP+q\x1b\\u\x1b[>4;2mv\x1b[?2026hw", ["tuvw", "", "", ""], [0, 4]),
        ("\x1b[999;999H!", ["", "", "", " " * 9 + "!"], [3, 9]),
    ],
)
def test_the_screen_does_what_a_terminal_does(page: Page, written: str, lines: list[str], cursor: list[int]) -> None:
    whole = _screen(page, written)
    assert (whole["lines"], whole["cursor"]) == (lines, cursor)
    assert _screen(page, written, pieces=1) == whole, "it depends on where the bytes were cut"


def test_the_screen_knows_colours_answers_questions_and_keeps_what_scrolls_away(page: Page) -> None:
    pens = _screen(page, "\x1b[1;31ma\x1b[0;48;5;200mb\x1b[38;2;1;2;3mc\x1b[38:2::9:8:7md\x1b[7me\x1b[m\x1b[97mf")[
        "pens"
    ]
    assert (pens[0]["bold"], pens[0]["fore"]) == (True, 1)
    assert (pens[1]["bold"], pens[1]["back"]) == (False, 200)
    assert pens[2]["fore"] == "#010203"
    assert pens[3]["fore"] == "#090807"
    assert pens[4]["inverse"]
    assert (pens[5]["inverse"], pens[5]["fore"]) == (False, 15)
    asked = _screen(page, "ab\x1b[6n\x1b[5n\x1b[c")
    assert asked["replies"] == ["\x1b[1;3R", "\x1b[0n", "\x1b[?1;2c"]
    assert _screen(page, "1\r\n2\r\n3\r\n4\r\n5\r\n6")["scrolled"] == ["1", "2"]
    assert _screen(page, "\x1b[?1049h" + "x\r\n" * 9)["scrolled"] == []


def test_no_bytes_whatever_break_the_screen(page: Page) -> None:
    broken = page.evaluate(
        """async () => {
          const { Screen } = await import("/dashboard/vt_screen.js");
          let seed = 7;
          const random = (below) => {
            seed = (seed * 1103515245 + 12345) % 2147483648;
            return Math.floor(seed / 65536) % below;
          };
          const likely = [..."\\x1b[]();?0123456789ABCDHJKLMPSTXhlmr@\\r\\n\\t\\b\\x07日é"];
          for (let round = 0; round < 300; round += 1) {
            const screen = new Screen({ columns: 2 + random(30), rows: 1 + random(12) });
            for (let step = 0; step < 40; step += 1) {
              const any = () => (random(5) ? likely[random(likely.length)] : String.fromCharCode(random(256)));
              const text = Array.from({ length: 12 }, any).join("");
              try {
                screen.write(text);
                if (!random(8)) screen.resize(2 + random(30), 1 + random(12));
              } catch (error) { return `${error.stack} after ${JSON.stringify(text)}`; }
              const isSound = screen.lines.length === screen.rows
                && screen.lines.every((line) => line.cells.length === screen.columns)
                && screen.row >= 0 && screen.row < screen.rows
                && screen.column >= 0 && screen.column < screen.columns;
              if (!isSound) return `unsound after ${JSON.stringify(text)}`;
            }
          }
          return "";
        }"""
    )
    assert broken == ""


def test_keys_are_sent_as_programs_expect_them(page: Page) -> None:
    sent = page.evaluate(
        """async () => {
          const { sequenceOf, pasted } = await import("/dashboard/vt_keys.js");
          const key = (name, options = {}, modes = {}) => sequenceOf({ key: name, ...options }, modes);
          return [
            key("Enter"), key("Backspace"), key("ArrowUp"), key("ArrowUp", {}, { applicationCursor: true }),
            key("ArrowLeft", { ctrlKey: true }), key("c", { ctrlKey: true }), key("b", { altKey: true }),
            key("Tab", { shiftKey: true }), key("F5"), key("Delete"), key("x"),
            key("C", { ctrlKey: true, shiftKey: true }),
            pasted("a\\nb", { bracketedPaste: true }), pasted("\\x1b[201~rm", { bracketedPaste: true }),
          ];
        }"""
    )
    assert sent == [
        "\r", "\x7f", "\x1b[A", "\x1bOA", "\x1b[1;5D", "\x03", "\x1bb", "\x1b[Z", "\x1b[15~", "\x1b[3~", None, None,
        "\x1b[200~a\rb\x1b[201~", "\x1b[200~[201~rm\x1b[201~",
    ]  # fmt: skip


def test_events_are_read_the_same_wherever_the_stream_is_cut(page: Page) -> None:
    stream = ': hello\n\nid: 7\nevent: a.b\ndata: {"x":\ndata: "é"}\n\n: beat\n\nid: 8\r\ndata: y\r\n\r\ndata: half'
    read = page.evaluate(
        """async (stream) => {
          const { EventParser } = await import("/dashboard/stream.js");
          const bytes = new TextEncoder().encode(stream);
          return [1, 2, 3, 5, 1000].map((length) => {
            const parser = new EventParser();
            const found = [];
            for (let at = 0; at < bytes.length; at += length) {
              found.push(...parser.push(bytes.subarray(at, at + length)));
            }
            return found;
          });
        }""",
        stream,
    )
    expected = [{"id": "7", "event": "a.b", "data": '{"x":\n"é"}'}, {"id": "8", "event": "message", "data": "y"}]
    assert read == [expected] * 5


def test_the_page_waits_longer_after_each_failure_but_never_for_ever(page: Page) -> None:
    least, most = (
        page.evaluate(
            "async (random) => { const { delayAfter } = await import('/dashboard/stream.js');"
            " return [1, 2, 3, 4, 5, 6, 7, 50].map((n) => delayAfter(n, random)); }",
            random,
        )
        for random in (0, 1)
    )
    assert most == [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]
    assert [round(low / high, 6) for low, high in zip(least, most, strict=True)] == [0.666667] * 8


def test_the_chain_graph_is_to_scale_and_no_two_squares_or_labels_meet(page: Page) -> None:
    mib = 1 << 20
    sizes = {"a": 64 * mib, "b": 16 * mib, "c": 4 * mib, "d": 1 * mib, "e": 16 * mib, "lonely": 4 * mib}
    parents = {"b": "a", "c": "b", "d": "b", "e": "a"}
    snapshots = [
        {"id": one, "parent": parents.get(one), "bytes": size, "created_at": f"2030-01-01T00:00:0{number}.000Z"}
        for number, (one, size) in enumerate(sizes.items())
    ]
    sandboxes = [{"id": f"sb-{number}", "parent_snapshot": "c"} for number in range(2)]
    laid = page.evaluate(
        "async ([snapshots, sandboxes]) => { const { layOut } = await import('/dashboard/chain_layout.js');"
        " const { nodes, edges, width, height } = layOut(snapshots, sandboxes, { width: 1200 });"
        " return { width, height, edges: edges.map((one) => [one.from.snapshot.id, one.to.snapshot.id]),"
        " nodes: Object.fromEntries(nodes.map((n) => [n.snapshot.id, { x: n.x, y: n.y, side: n.side, left: n.left, top: n.top, heads: n.heads.length }])) }; }",  # noqa: E501
        [snapshots, sandboxes],
    )
    nodes = laid["nodes"]
    assert set(nodes) == set(sizes), json.dumps(laid)
    areas = {one: node["side"] ** 2 / sizes[one] for one, node in nodes.items()}
    assert max(areas.values()) / min(areas.values()) == pytest.approx(1)
    assert sorted(map(tuple, laid["edges"])) == [("a", "b"), ("a", "e"), ("b", "c"), ("b", "d")]
    assert nodes["a"]["y"] == nodes["b"]["y"] == nodes["c"]["y"], "the first deltas keep the lane"
    assert nodes["d"]["y"] > nodes["b"]["y"]
    assert nodes["c"]["heads"] == 2
    boxes = [
        (n["left"], n["y"] - n["side"] / 2, n["left"] + 128, n["top"] + 32 + 17 * n["heads"]) for n in nodes.values()
    ]
    for number, one in enumerate(boxes):
        assert 0 <= one[0] < one[2] <= laid["width"] + 1
        assert 0 <= one[1] < one[3] <= laid["height"] + 1
        for other in boxes[number + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_a_thousand_snapshots_and_sandboxes_are_drawn_and_filtered_whole(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { known } = await import("/dashboard/live.js");
          const { layOut } = await import("/dashboard/chain_layout.js");
          const { render } = await import("/dashboard/dom.js");
          const { snapshotsView } = await import("/dashboard/snapshots.js");
          const id = (number) => number.toString(16).padStart(64, "0");
          known.snapshots = Array.from({ length: 1000 }, (_, number) => ({
            id: id(number), parent: number % 10 ? id(number - 1) : null, kind: number % 10 ? "delta" : "full",
            bytes: 1e6 + number, created_at: "2030-01-01T00:00:00.000Z", names: number === 555 ? ["needle"] : [],
          }));
          known.sandboxes = Array.from({ length: 1000 }, (_, number) => ({
            id: `sb-${number}`, name: `sb-${number}`, state: "running", parent_snapshot: id(number),
          }));
          const host = document.createElement("div");
          document.body.append(host);
          const draw = () => render(host, snapshotsView({ redraw: draw, open: () => {}, chosen: "", width: 1200 }));
          draw();
          const count = () => host.querySelectorAll("g.snapshot").length;
          const all = count();
          const search = host.querySelector("input");
          search.value = "needle";
          search.dispatchEvent(new Event("input"));
          const some = count();
          host.remove();
          const { nodes } = layOut(known.snapshots, known.sandboxes, { width: 1200 });
          known.snapshots = known.sandboxes = [];
          return [all, some, nodes.length];
        }"""
    )
    assert found == [1000, 10, 1000]
