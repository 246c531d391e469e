"""Findings about the host: what a failed look becomes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from thawbox.errors import Unsupported
from thawbox.host.probe import Check, State, can_run, is_static
from thawbox.host.proc import children
from thawbox.host.trial import in_child


def check(state: State) -> Check:
    return Check("some", state, "", "", "")


@pytest.mark.parametrize(("worst", "runs"), [(State.OK, True), (State.WARN, True), (State.FAIL, False)])
def test_only_a_failed_check_means_that_the_main_job_cannot_run(worst: State, runs: bool) -> None:
    assert can_run([check(State.OK), check(worst), check(State.OK)]) is runs


def test_a_dynamic_program_is_told_from_a_file_that_is_no_program(tmp_path: Path) -> None:
    assert not is_static(Path(shutil.which("true") or "/bin/true"))
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ValueError, match="no 64-bit program"):
        is_static(script)


def test_a_trial_answers_from_a_process_that_is_gone_afterwards() -> None:
    pid = int(in_child(lambda: str(os.getpid())))
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_trials_error_is_told_in_its_own_words() -> None:
    def missing() -> str:
        return Path("/no/such/file").read_text()

    with pytest.raises(Unsupported, match="No such file"):
        in_child(missing)


def test_a_trial_that_dies_or_hangs_is_a_finding_too() -> None:
    def die() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def hang() -> str:
        time.sleep(3600)
        return ""

    before = children(os.getpid())
    with pytest.raises(Unsupported, match="died"):
        in_child(die)
    with pytest.raises(Unsupported, match=r"no answer within 0\.05 s"):
        in_child(hang, timeout=0.05)
    assert children(os.getpid()) == before
