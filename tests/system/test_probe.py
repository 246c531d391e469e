"""The doctor's probes on a real host: what they say here, and that they leave nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thawbox.host import kernel_trials
from thawbox.host.probe import Check, Ground, State, can_run, is_static, probe_host
from thawbox.host.proc import children
from thawbox.host.trial import in_child

PROGRAMS = Path(__file__).resolve().parents[2] / "native/build/bin"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")


def probe(home: Path) -> tuple[Check, ...]:
    names = ("criu", "thawbox-init", "thawbox-launch")
    return probe_host(Ground(home, *(PROGRAMS / name for name in names), Path("/dev/shm")))


def doctors_traces(home: Path) -> dict[str, list[str]]:
    cgroups = Path("/sys/fs/cgroup").glob("**/thawbox-doctor-*")
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "cgroups": sorted(str(path) for path in cgroups),
        "files": sorted(path.name for path in home.iterdir()),
        "temporary": sorted(path.name for path in Path("/tmp").glob("thawbox-doctor-*")),
        "descriptors": sorted(path.name for path in Path("/proc/self/fd").iterdir()),
        "children": [str(pid) for pid in children(os.getpid())],
        "namespaces": sorted(str(path.readlink()) for path in Path("/proc/self/ns").iterdir()),
    }


def test_a_machine_that_set_up_made_ready_passes_and_keeps_no_trace(tmp_path: Path) -> None:
    probe(tmp_path)  # the first call may load a kernel module or import a library for good
    before = doctors_traces(tmp_path)
    checks = probe(tmp_path)
    assert [check for check in checks if check.state is State.FAIL] == []
    assert can_run(checks)
    assert doctors_traces(tmp_path) == before


def test_a_host_without_our_programs_gets_findings_and_no_exception(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    ground = Ground(nowhere / "home", nowhere / "criu", nowhere / "init", nowhere / "launch", nowhere / "run")
    checks = {check.name: check for check in probe_host(ground)}
    assert not can_run(list(checks.values()))
    for name in ("own programs", "criu"):
        assert checks[name].state is State.FAIL
        assert "make setup" in checks[name].remedy
    assert list(tmp_path.iterdir()) == []


def test_every_finding_says_why_it_matters_and_every_bad_one_what_to_do(tmp_path: Path) -> None:
    checks = probe_host(Ground(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path))
    assert all(check.detail and check.why for check in checks)
    assert all(bool(check.remedy) is (check.state is not State.OK) for check in checks)
    assert len({check.name for check in checks}) == len(checks)


def test_without_root_the_doctor_says_so_and_says_that_nothing_can_run(tmp_path: Path) -> None:
    def as_nobody() -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        checks = {check.name: check for check in probe(tmp_path)}
        failed = sorted(name for name, check in checks.items() if check.state is State.FAIL)
        return f"{checks['privileges'].detail}: {failed} {can_run(list(checks.values()))}"

    said = in_child(as_nobody, timeout=30)
    assert said.startswith("this is user 65534, not root: ")
    assert "'cgroups'" in said and "'namespaces'" in said and said.endswith("False")


def test_the_overlay_trial_tells_a_filesystem_that_cannot_hold_the_writable_layer() -> None:
    with pytest.raises(OSError, match=r".+"):
        kernel_trials.overlay(Path("/proc/self"))


@pytest.mark.parametrize("name", ["thawbox-init", "thawbox-launch"])
def test_our_programs_are_static(name: str) -> None:
    assert is_static(PROGRAMS / name)
