"""Whatever a program does to its files, a stack of captures shows at every capture what the program saw then."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]

ROUNDS = Path(__file__).with_name("overlay_rounds.py")

Operation = list[Any]
names = st.sampled_from(
    ["f", "low/f", "low/g", "low/deep/f", "low/deep/linked", "d/linked", "d/f", "d/new", "d/\udcff", "low/new",
     "gone/a", "new", "new/f", "new/x", "low/l", "low/deep/er/x", "e", "e/f"]
)  # fmt: skip
directories = st.sampled_from(["low", "low/deep", "low/deep/er", "d", "gone", "new", "e", "low/new", "d/new"])
any_name = names | directories
small = st.integers(0, 3)
change: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write"), names, st.sampled_from([0, 10, 5000, 1 << 20]), st.integers(1, 9000), small),
    st.tuples(st.just("truncate"), names, st.sampled_from([0, 1, 4096, 100_000])),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("rename"), any_name, any_name),
    st.tuples(st.just("exchange"), any_name, any_name),
    st.tuples(st.just("mkdir"), any_name),
    st.tuples(st.just("rmdir"), directories),
    st.tuples(st.just("rmtree"), directories),
    st.tuples(st.just("chmod"), any_name, st.sampled_from([0o600, 0o755, 0o4711])),
    st.tuples(st.just("chown"), any_name, small),
    st.tuples(st.just("utime"), any_name, st.integers(0, 1000)),
    st.tuples(st.just("symlink"), names, any_name),
    st.tuples(st.just("link"), names, names),
    st.tuples(st.just("setxattr"), any_name, st.sampled_from(["a", "low"]), small),
    st.tuples(st.just("removexattr"), any_name, st.sampled_from(["a", "low"])),
    st.tuples(st.just("mknod"), names, st.integers(0, 1)),
    st.tuples(st.just("map"), names),
    st.tuples(st.just("poke"), small, st.integers(0, 255)),
    st.tuples(st.just("unmap"), small),
    st.just(("tick",)),
).map(list)
capture = st.one_of(
    st.just(["capture"]),
    st.just(["restore"]),
    st.tuples(st.just("capture_ahead"), st.lists(change, max_size=6)).map(list),
)


class Rounds:
    """The process that plays rounds; its mounts go with it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.program = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", sys.executable, str(ROUNDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def play(self, operations: list[Operation]) -> list[str]:
        if self.program.poll() is not None:  # it died of what was played before
            self.close()
            self.begin()
        assert self.program.stdin is not None and self.program.stdout is not None
        self.program.stdin.write(json.dumps(operations) + "\n")
        self.program.stdin.flush()
        answer = self.program.stdout.readline()
        assert answer, "the rounds ended with an error"
        found: list[str] = json.loads(answer)
        return found

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died, and the test has said so
            self.program.communicate(timeout=30)


@pytest.fixture(scope="module")
def rounds() -> Iterator[Rounds]:
    playing = Rounds()
    yield playing
    playing.close()


@settings(max_examples=int(os.environ.get("THAWBOX_TREES_EXAMPLES", "60")), deadline=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(operations=st.lists(st.one_of(change, change, change, change, capture), min_size=4, max_size=40))
def test_every_stack_of_captures_shows_what_its_sandbox_showed(rounds: Rounds, operations: list[Operation]) -> None:
    assert rounds.play(operations) == []


@pytest.mark.parametrize("seed", range(5))
def test_captures_made_while_a_program_works_are_whole_once_it_stands_still(rounds: Rounds, seed: int) -> None:
    changes: list[Operation] = [["write", "d/f", 0, 100, 1], ["tick"]]
    amid: list[list[Operation]] = [[["capture_amid_work", seed * 10 + number], ["tick"]] for number in range(3)]
    assert rounds.play([*changes, *amid[0], ["restore"], *amid[1], ["capture"], *amid[2]]) == []


FOUND_BEFORE: dict[str, list[Operation]] = {
    "a mapped file of a lower layer": [["map", "low/g"], ["tick"], ["capture"], ["poke", 0, 7], ["capture"]],
    "a file written through another of its names": [["write", "low/f", 0, 10, 1], ["tick"], ["capture"]],
    "the same, copied ahead": [["write", "low/f", 0, 10, 1], ["tick"], ["capture_ahead", [["tick"]]]],
    "a file whose changed name is gone": [["write", "low/f", 0, 10, 1], ["unlink", "low/f"], ["tick"], ["capture"]],
    "a directory made anew": [
        ["write", "low/g", 0, 9, 1], ["tick"], ["capture"], ["rmtree", "low"], ["mkdir", "low"], ["capture"],
    ],
    "a device that is deleted": [["mknod", "d/new", 1], ["tick"], ["capture"], ["unlink", "d/new"], ["capture"]],
    "two changes within a clock tick": [["mkdir", "new"], ["capture"], ["chmod", "new", 0o700], ["capture"]],
    "an attribute that is removed": [
        ["setxattr", "low", "a", 1], ["tick"], ["capture"], ["removexattr", "low", "a"], ["capture"],
    ],
    "a directory moved away from a link into it": [
        ["mkdir", "new"], ["write", "new/f", 0, 9, 1], ["link", "new/f", "f2"], ["tick"], ["capture"],
        ["rename", "new", "e"], ["write", "e/f", 0, 9, 2], ["capture"],
    ],
    "a directory replaced by a file and back": [
        ["write", "d/f", 0, 9, 1], ["tick"], ["capture"], ["rmtree", "d"], ["write", "d", 0, 9, 1], ["capture"],
        ["unlink", "d"], ["mkdir", "d"], ["write", "d/new", 0, 9, 1], ["capture"],
    ],
    "a name that came and went in a directory made since": [
        ["mkdir", "e"], ["write", "e/f", 0, 9, 1], ["tick"], ["capture"], ["unlink", "e/f"], ["capture"],
    ],
    "the same between a copy ahead and the frozen moment": [
        ["mkdir", "e"], ["write", "e/f", 0, 9, 1], ["tick"], ["capture_ahead", [["unlink", "e/f"]]],
    ],
    "attributes of the root": [["tick"], ["capture"], ["chmod", ".", 0o711], ["capture"]],
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND_BEFORE)
def test_what_once_came_back_wrong_comes_back_as_it_was(rounds: Rounds, what: str) -> None:
    assert rounds.play(FOUND_BEFORE[what]) == []
    assert rounds.play([["restore"], *FOUND_BEFORE[what], ["restore"], *FOUND_BEFORE[what]]) == []
