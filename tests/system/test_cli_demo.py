"""`demo` and `doctor`: they do what they tell, and leave nothing, also when interrupted."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from pathlib import Path

import pytest

from cli_process import TIMEOUT, Cli
from traces import take_traces


def _scratch_of(running: subprocess.Popen[bytes], home: Path) -> Path:
    """The home of the node that the command made for itself, seen while it is there."""
    while running.poll() is None:
        found = next(home.glob("thawbox-scratch-*"), None)
        if found is not None:
            return found
    pytest.fail("it made no node of its own")


def _left_of(scratch: Path) -> tuple[object, ...]:
    left = take_traces(scratch)
    return (left.of_kernel(), left.files, scratch.exists())


NOTHING = ({}, (), False)


def test_the_demo_shows_an_agent_that_goes_on_in_the_middle_of_its_sentence(home: Path) -> None:
    running = Cli(home).start("demo", "--json")
    scratch = _scratch_of(running, home)
    out, err = running.communicate(timeout=2 * TIMEOUT)
    assert running.returncode == 0, err
    told = json.loads(out)
    assert told["ok"] is True
    names = ["prepare", "run", "talk", "checkpoint", "kill -9", "restore"]
    assert [step["name"] for step in told["steps"]][: len(names)] == names
    assert told["checkpoint"]["bytes"] > 64 << 20
    assert len({clone["host"] for clone in told["clones"]}) == 3
    words = [clone["words"] for clone in told["clones"]]
    assert len(set(words)) == 3, "each clone lives a life of its own"
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(words))
    assert _left_of(scratch) == NOTHING


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing(home: Path, number: signal.Signals, status: int) -> None:
    running = Cli(home).start("demo")
    scratch = _scratch_of(running, home)
    assert running.stdout is not None
    assert any(line.startswith(b"talk") for line in running.stdout)
    running.send_signal(number)
    running.communicate(timeout=TIMEOUT)
    assert running.returncode == status
    assert _left_of(scratch) == NOTHING


def test_the_doctor_finds_this_machine_fit_and_leaves_nothing(home: Path) -> None:
    running = Cli(home).start("doctor", "--json")
    scratch = _scratch_of(running, home)
    out, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 0, err
    told = json.loads(out)
    assert told["ok"] is True
    assert all({"name", "state", "detail", "remedy"} <= set(check) for check in told["checks"])
    assert {check["state"] for check in told["checks"]} <= {"ok", "warn"}
    assert [check["name"] for check in told["checks"][-2:]] == ["freeze and restore", "shared clones"]
    assert _left_of(scratch) == NOTHING


def test_the_doctor_names_what_is_missing_and_its_remedy(home: Path) -> None:
    done = Cli(home, (("THAWBOX_CRIU", "/nowhere/criu"), ("THAWBOX_NATIVE", "/nowhere")))("doctor", "--json")
    assert done.status == 104
    told = json.loads(done.out)
    assert told["ok"] is False
    failed = {check["name"]: check for check in told["checks"] if check["state"] == "fail"}
    assert {"own programs", "criu", "freeze and restore"} <= set(failed)
    assert all(check["remedy"] for check in failed.values())
