"""Every command through `thawbox serve` and without it: the same statuses, the same objects, the same words.

One story is told twice, each on a home of its own; each of its lines is then compared.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli_process import Cli, Done
from cli_zygote import Zygote
from thawbox.config import load_settings
from thawbox.errors import SandboxNotFound
from thawbox.node import Node
from traces import take_traces

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]

STORY = """
run --name agent --label team=a -e SEEN=yes -- sleep 1000
run --name other --json -- sleep 1000
run --name agent --json -- sleep 1000
run --name ../x --json -- sleep 1000
run --json -- /no/such/program
run --name never --ready tcp:9 --ready-timeout 200ms --json -- sleep 1000
run --attach --rm --name short -- sh -c 'echo hello; exit 3'
ps
ps -q
ps --all
ps --json
inspect agent
inspect agent --json
inspect nothing --json
inspect nothing
stats
stats agent
stats agent --json
stats --json
stats nothing --json
preflight agent
preflight agent --json
exec agent echo hello
exec nothing true
logs agent --json
freeze agent
freeze agent other --json
exec agent true
thaw agent other
thaw agent --json
freeze agent nothing --json
freeze nothing nowhere --json
thaw agent
checkpoint agent --delta --json
checkpoint agent --name warm --label stage=one
checkpoint agent --json
checkpoint agent --full --ttl 7d --pin --json
checkpoint agent --name 'no name' --json
checkpoint nothing --json
restore warm --json
clone warm --name one --json
clone warm --name many -n 3
clone warm --name many -n 3 --eager --json
clone warm --secret key=/etc/hostname --json
clone warm --name secretive --secret key=/no/such/file --json
clone nothing --json
fork agent --name twin --json
fork agent -n 2 --name twins --eager
fork nothing --json
stop -t 0 agent
stop agent --json
checkpoint agent --json
rm one many-1 --json
rm --force one many-1
restore warm
restore warm --json
supervise agent --restart on-failure --keep 2 --json
supervise agent --off
supervise nothing --json
supervise agent --keep 0 --json
snapshots ls
snapshots ls --json
snapshots ls -q
snapshots ls --label stage=one --json
snapshots ls --label stage --json
snapshots show warm
snapshots show warm --json
snapshots show nothing --json
snapshots chain warm
snapshots chain warm --json
snapshots name warm hot
snapshots name warm hot --json
snapshots label hot a=b c=d --json
snapshots label hot a-
snapshots label hot a --json
snapshots pin hot
snapshots rm hot --json
snapshots pin hot --off --json
snapshots expire hot 90m --json
snapshots expire hot never --json
snapshots expire hot soon --json
snapshots verify
snapshots verify hot --deep --json
snapshots verify nothing --json
snapshots flatten hot --name flat --json
snapshots flatten nothing --json
snapshots rm hot
snapshots rm nothing --json
snapshots gc --dry-run
snapshots gc --budget 1G --json
snapshots gc --budget much --json
template create tiny --json -- sleep 1000
template create tiny --json -- sleep 1000
template create tiny2 -- sleep 1000
template ls
template ls --json
template show tiny
template show tiny --json
template show nothing --json
template rebuild tiny --json
template rm tiny2
pool create p --template tiny --low 0 --high 1 --json
pool create p --template tiny --json
pool create q --template nothing --json
pool create q --template tiny --low 3 --high 1 --json
pool create full --template tiny --low 0 --high 0 --limit 1
pool acquire full --json
pool acquire full --timeout 200ms --json
pool rm full --json
pool rm full --force --json
pool ls
pool ls --json
pool show p
pool show p --json
pool acquire p --json
pool acquire nothing --json
pool release agent --json
pool release nothing --json
pool roll p --json
pool rm p --json
pool drain p --timeout 0
pool acquire p --json
pool rm p
template rm tiny --json
template rm tiny --json
rm agent --json
rm nothing
rm --force agent other --json
""".strip().splitlines()

FURTHER = {
    "pool show": "the service knows more of a pool that it keeps open",
    "pool ls": "the same",
    "pool create": "the same",
}
"""Commands whose object has more fields through the service, and why."""


OF_THE_SERVICE = {"is_watched", "open"}
"""What these say is whether a service runs."""


@dataclass(frozen=True, slots=True)
class Told:
    """One line of the story, as the command answered it."""

    line: str
    done: Done


def tell(home: Path) -> list[Told]:
    with Zygote(home) as cli:
        return [Told(line, cli(*shlex.split(line))) for line in STORY]


def clean_up(home: Path) -> None:
    with Node(load_settings(home=home)) as node:
        for sandbox in node.sandboxes():
            try:
                sandbox.remove(force=True)
            except SandboxNotFound:
                continue
        node.tidy()
    assert not take_traces(home).of_kernel(), "the story left something in the kernel"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, rootfs_cache: Path) -> Iterator[list[tuple[Told, Told]]]:
    """Each line without the service and through it."""
    with ExitStack() as stack:
        homes = [tmp_path_factory.mktemp(name) / "home" for name in ("embedded", "served")]
        for home in homes:
            home.mkdir(mode=0o700)
            (home / "rootfs").symlink_to(rootfs_cache)
            stack.callback(clean_up, home)
        log = stack.enter_context((homes[1].parent / "serve.log").open("wb"))
        service = Cli(homes[1]).start("serve", "--json", stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
        stack.callback(service.wait, 60)
        stack.callback(service.terminate)
        assert service.stdout is not None
        stack.enter_context(service.stdout)
        assert json.loads(service.stdout.readline())["socket"]
        with ThreadPoolExecutor(2) as threads:
            without, through = threads.map(tell, homes)
        yield list(zip(without, through, strict=True))


IDS = [f"{number}: {line}" for number, line in enumerate(STORY)]
NUMBERS = range(len(STORY))


@pytest.mark.parametrize("number", NUMBERS, ids=IDS)
def test_a_command_ends_with_the_same_status_either_way(both: list[tuple[Told, Told]], number: int) -> None:
    without, through = both[number]
    assert through.done.status == without.done.status, (without.done, through.done)


@pytest.mark.parametrize("number", [number for number in NUMBERS if "--json" in STORY[number]], ids=lambda n: IDS[n])
def test_its_object_has_the_same_shape_either_way(both: list[tuple[Told, Told]], number: int) -> None:
    without, through = both[number]
    if without.done.status:
        assert plain(through.done.err) == plain(without.done.err)
    if without.done.out:
        shapes = [shape_of(json.loads(told.done.out)) for told in (without, through)]
        if any(without.line.startswith(command) for command in FURTHER):
            shapes = [_common(shapes[0], shapes[1]), shapes[0]]
        assert shapes[1] == shapes[0]


@pytest.mark.parametrize(
    "number", [number for number in NUMBERS if "--json" not in STORY[number]], ids=lambda n: IDS[n]
)
def test_its_words_are_the_same_either_way(both: list[tuple[Told, Told]], number: int) -> None:
    without, through = both[number]
    if without.line.startswith("pool show"):
        lines = [set(plain(told.done.out).split("\n")) for told in (without, through)]
        assert lines[0] - {"open False"} <= lines[1]
        return
    assert plain(through.done.out) == plain(without.done.out)
    assert plain(through.done.err) == plain(without.done.err)


def test_the_story_has_successes_and_every_kind_of_refusal(both: list[tuple[Told, Told]]) -> None:
    statuses = {without.done.status for without, _ in both}
    assert {0, 3, 102, 103, 106, 107, 109} <= statuses
    assert sum(without.done.status == 0 for without, _ in both) > len(STORY) / 2


VOLATILE = (
    (re.compile(r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16}|[0-9a-f]{12})\b"), "HEX"),
    (re.compile(r"sb-HEX|sb-[0-9a-f]{12}"), "ID"),
    (re.compile(r"-[0-9a-f]{6}\b"), "-SUFFIX"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\S*/(embedded|served)\d+/home"), "HOME"),
    (re.compile(r"\d+(\.\d+)? ([KMGT]i)?B\b"), "SIZE"),
    (re.compile(r"thawbox-[0-9a-f]{8}"), "TAG"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
    (re.compile(r"[ \t]+"), " "),
)


def plain(output: bytes) -> str:
    """What was printed, less what differs from run to run."""
    text = output.decode()
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return text


def shape_of(value: Any) -> Any:
    """An object's keys in their order, with the kinds of its values; an answer of true or false as it is."""
    if isinstance(value, dict):
        return {key: shape_of(one) for key, one in value.items() if key not in OF_THE_SERVICE}
    if isinstance(value, list):
        return [shape_of(one) for one in value]
    if isinstance(value, str):
        return plain(value.encode())
    return value if isinstance(value, bool) else type(value).__name__


def _common(smaller: Any, larger: Any) -> Any:
    if isinstance(smaller, dict):
        return {key: _common(one, larger[key]) for key, one in smaller.items()}
    if isinstance(smaller, list):
        return [_common(one, other) for one, other in zip(smaller, larger, strict=True)]
    return larger
