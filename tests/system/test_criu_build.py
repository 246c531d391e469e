"""The CRIU that set-up built does what its patches and build settings are for."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CRIU = ROOT / "native/build/bin/criu"
HOLDER = ROOT / "tests/workloads/pty_holder.py"
RUN_DIRECTORY_FD = 1000


def is_our_build() -> bool:
    version = subprocess.run([CRIU, "--version"], capture_output=True, text=True, check=True).stdout
    return "GitID: thawbox-" in version


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
    pytest.mark.skipif(not is_our_build(), reason="set-up found a CRIU of the machine's own and did not build ours"),
]


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A root-only directory on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="thawbox-test-") as path:
        yield Path(path)


def run_in_namespaces(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a bash script as pid 1 of its own pid and mount namespaces; everything it starts dies with it."""
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "bash", "-euc", script, "script"]
    return subprocess.run(argv + [str(word) for word in words], capture_output=True, text=True, check=False, timeout=60)


def test_the_kernel_feature_cache_is_kept_behind_a_descriptor_from_another_mount_namespace(
    run_directory: Path, tmp_path: Path
) -> None:
    script = f'exec {RUN_DIRECTORY_FD}<"$2"; mount -t tmpfs none "$2"; "$1" check -v4 --log-file "$3/$4"'
    for log in ("first", "second"):
        done = run_in_namespaces(script, CRIU, run_directory, tmp_path, log)
        assert done.returncode == 0, done.stderr + (tmp_path / log).read_text()
    assert "Loaded kdat cache" not in (tmp_path / "first").read_text()
    assert f"Loaded kdat cache from /proc/self/fd/{RUN_DIRECTORY_FD}/" in (tmp_path / "second").read_text()
    assert [path.name for path in run_directory.iterdir()] == ["criu.kdat"]


def test_an_interactive_dash_whose_pty_another_process_holds_comes_back(tmp_path: Path) -> None:
    script = """
        criu=$1 holder=$2 dir=$3
        cd "$dir"; mkdir images; mkfifo answers
        # Far above the pids that CRIU itself takes in this namespace.
        echo 1000 >/proc/sys/kernel/ns_last_pid
        setsid /usr/bin/python3 "$holder" answers </dev/null >/dev/null 2>&1 &
        pid=$!
        cat answers
        kill -USR1 $pid; cat answers
        echo 2000 >/proc/sys/kernel/ns_last_pid
        "$criu" dump -t $pid -D images -v4 -o dump.log || { grep Error images/dump.log >&2; exit 1; }
        wait $pid || true
        echo 3000 >/proc/sys/kernel/ns_last_pid
        "$criu" restore -d -D images -v4 -o restore.log || { grep Error images/restore.log >&2; exit 1; }
        kill -USR1 $pid; cat answers
    """
    done = run_in_namespaces(script, CRIU, HOLDER, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ready", "held-answer-1", "held-answer-2"]
