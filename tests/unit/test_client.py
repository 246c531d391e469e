"""The pure parts of the client; and that one kind of it is made of the other."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from thawbox.api.answers import sse, to_json
from thawbox.client import AsyncClient, Client
from thawbox.client.aio import sandbox as aio
from thawbox.client.entering import Entering
from thawbox.client.places import find_place
from thawbox.client.problems import error_of, problem_of
from thawbox.client.results import Execution, command_of, encoded
from thawbox.client.sse import EventLines, ServerEvent
from thawbox.client.sync import sandbox as sync
from thawbox.errors import (
    DumpFailed,
    InvalidRequest,
    NotFound,
    PoolExhausted,
    SandboxNotFound,
    ThawboxError,
    Unavailable,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_synchronous_client_is_what_its_source_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/generate_client", tmp_path], check=True, cwd=ROOT)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "src/thawbox/client/sync").glob("*.py")}
    assert made == kept, "run scripts/generate_client"


@pytest.mark.parametrize(
    ("awaited", "direct"),
    [(AsyncClient, Client), (aio.AsyncSandbox, sync.Sandbox), (aio.AsyncFiles, sync.Files),
     (aio.AsyncCommands, sync.Commands), (aio.AsyncSnapshot, sync.Snapshot)],
)  # fmt: skip
def test_both_have_the_same_methods_with_the_same_parameters(awaited: type, direct: type) -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if not name.startswith("_")}

    theirs = {name.replace("aclose", "close"): parameters for name, parameters in methods(awaited).items()}
    assert theirs == methods(direct)


@pytest.mark.parametrize("kind", [SandboxNotFound, PoolExhausted, DumpFailed, InvalidRequest])
def test_a_problem_is_the_error_it_was(kind: type[ThawboxError]) -> None:
    told = {"code": kind.code, "cause": "so it is", "remediation": "do this", "log": "last words"}
    error = error_of(told, status=400)
    assert (type(error), error.cause, error.remediation, error.log) == (kind, "so it is", "do this", "last words")


def test_a_code_that_is_not_known_is_of_its_family_and_keeps_itself() -> None:
    error = error_of({"code": "not_found.moon", "detail": "there is no moon"}, status=404)
    assert isinstance(error, NotFound)
    assert (error.code, error.cause) == ("not_found.moon", "there is no moon")
    assert type(error_of({"code": "martian"}, status=400)).__mro__[1] is ThawboxError


def test_an_answer_that_is_no_problem_is_still_an_error() -> None:
    assert problem_of(b"<html>502</html>") == problem_of(b"[]") == problem_of(b"\xff") == {}
    assert isinstance(error_of({}, status=502), Unavailable)
    assert "500" in error_of({}, status=500).cause


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    lines = EventLines()
    text = b': alive\n\nid: 7\r\nevent: sandbox.created\ndata: {"a":\ndata: 1}\n\ndata: {}\n\n'
    found = [event for at in range(0, len(text), size) for event in lines.take(text[at : at + size])]
    assert found == [ServerEvent("sandbox.created", {"a": 1}, "7"), ServerEvent("message", {}, "7")]


def test_what_a_program_printed_ends_no_line_of_an_event() -> None:
    printed = "a\u2028b\u2029c\x85d"  # line ends of Unicode, which JSON holds as they are
    sent = sse("log", to_json({"text": printed})).encode()
    assert list(EventLines().take(sent)) == [ServerEvent("log", {"text": printed}, "")]


def test_a_place_is_a_socket_or_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THAWBOX_HOME", str(tmp_path))
    assert find_place(None, None).socket == str(tmp_path / "serve.sock")
    assert find_place("unix:///run/x.sock", None).socket == "/run/x.sock"
    monkeypatch.setenv("THAWBOX_URL", "https://node:8443/")
    monkeypatch.setenv("THAWBOX_TOKEN", "tbx_a_b")
    place = find_place(None, None)
    assert (place.url, place.socket, place.headers) == ("https://node:8443", "", {"Authorization": "Bearer tbx_a_b"})
    assert find_place("http://other", "own").headers == {"Authorization": "Bearer own"}
    with pytest.raises(InvalidRequest):
        find_place("ftp://x", None)


def test_a_long_path_of_a_socket_is_reached_through_its_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    place = find_place(f"unix:{deep}/serve.sock", None)
    try:
        assert len(place.address) < 100
        assert Path(place.address).parent.resolve() == deep
    finally:
        place.close()


def test_results_are_made_of_what_is_told() -> None:
    told = {"text": "2", "stdout": "x", "stderr": "", "error": None, "images": [{"mime": "image/png", "data": "AAE="}]}
    done = Execution.of(told)
    assert (done.text, done.stdout, done.images[0].data) == ("2", "x", b"\0\1")
    assert Execution.of(told, stdout="streamed").stdout == "streamed"
    assert command_of("echo $A") == ["/bin/sh", "-c", "echo $A"]
    assert encoded({"A": "x", "B": b"\0"}) == {"A": "eA==", "B": "AA=="}


def test_what_is_entered_is_left_and_what_is_awaited_is_not() -> None:
    class Thing:
        left = 0

        async def __aenter__(self) -> Thing:
            return self

        async def __aexit__(self, *_: object) -> None:
            self.left += 1

    async def make() -> Thing:
        return Thing()

    async def both() -> tuple[int, int]:
        async with Entering(make()) as entered:
            assert entered.left == 0
        return entered.left, (await Entering(make())).left

    assert asyncio.run(both()) == (1, 0)
