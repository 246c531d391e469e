"""A scratch sandbox for init alone: real namespaces, a root of bind mounts, and the real program as real pid 1."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from thawbox.host.init_client import InitLink
from thawbox.host.init_wire import ExecRequest, encode_config
from thawbox.host.proc import children, wait_gone

NATIVE = Path(__file__).parents[3] / "native" / "init"
SHARED = ("usr", "bin", "lib", "lib64", "sbin", "etc")
PATH = "/usr/local/bin:/usr/bin:/bin"

_MOUNT = """
set -e
root=$1; kind=$2; last_pid=$3
mount --bind $root $root
for name in {shared}; do [ -d /$name ] && mkdir -p $root/$name && mount --bind /$name $root/$name; done
mkdir -p $root/proc $root/tmp $root/dev/pts $root/work
mount -t proc proc $root/proc
for name in null zero full random urandom tty; do touch $root/dev/$name; mount --bind /dev/$name $root/dev/$name; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts $root/dev/pts
ln -sf pts/ptmx $root/dev/ptmx
{extra}
cd $root
pivot_root . .
umount -l .
cd /
echo $last_pid > /proc/sys/kernel/ns_last_pid
exec /.thawbox/init $kind
"""


@dataclass(frozen=True, slots=True)
class Shell:
    """A pid namespace with a keeper in it. `keeper` and `init` are pids on the host."""

    root: Path
    unshare: subprocess.Popen[bytes]
    keeper: int

    @property
    def init(self) -> int:
        (pid,) = children(self.keeper)
        return pid

    def link(self) -> InitLink:
        return InitLink.connect(self.init)

    def wait(self) -> int:
        """The keeper's exit status, as unshare passes it on."""
        return self.unshare.wait(timeout=30)

    def log_fd(self) -> int:
        return os.open(self.root / ".thawbox/log", os.O_RDONLY | os.O_DIRECTORY)


StartShell = Callable[..., Shell]


def build(target: str) -> Path:
    subprocess.run(["make", "-s", "-C", NATIVE, f"build/{target}"], check=True, timeout=120)
    return NATIVE / "build" / target


@pytest.fixture(scope="session")
def init_binary() -> Path:
    return build("thawbox-init")


@pytest.fixture(scope="session")
def sanitized_binary() -> Path:
    return build("thawbox-init-sanitized")


def start(
    root: Path, binary: Path, main: Sequence[str], *, raw_config: bytes | None = None, extra: str = "", **config: object
) -> Shell:
    own = root / ".thawbox"
    own.mkdir(mode=0o700, parents=True)
    shutil.copy2(binary, own / "init")
    request = ExecRequest(argv=main, env={"PATH": PATH, "HOME": "/work", "LAYER": "main"})
    encoded = encode_config(request, **config) if raw_config is None else raw_config  # type: ignore[arg-type]
    (own / "config").write_bytes(encoded)
    return start_keeper(root, "keeper", extra=extra)


def start_keeper(root: Path, kind: str, *, extra: str = "") -> Shell:
    script = _MOUNT.format(shared=" ".join(SHARED), extra=extra)
    read_fd, write_fd = os.pipe()
    with contextlib.closing(os.fdopen(read_fd, "rb", buffering=0)) as ready:
        unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--uts",
             "--ipc", "--cgroup", "--time", "--fork", "--kill-child",
             "--propagation", "private", "sh", "-c", script, "sh", str(root), f"{kind} {write_fd}",
             "1" if kind == "keeper" else "5000"],
            pass_fds=[write_fd], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(write_fd)
        assert select.select([ready], [], [], 20)[0], "the keeper says nothing"
        ready.read(1024)
    found = children(unshare.pid)
    return Shell(root, unshare, found[0] if found else 0)


def end(shell: Shell) -> None:
    if shell.unshare.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(shell.keeper, signal.SIGKILL)
        wait_gone(shell.keeper, timeout=20)
        shell.unshare.wait(timeout=20)


@pytest.fixture
def start_shell(tmp_path: Path, init_binary: Path) -> Iterator[StartShell]:
    """Starts shells, each with its own root, and ends them after the test."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def begin(*main: str, binary: Path = init_binary, **config: object) -> Shell:
            shell = start(tmp_path / f"root{next(count)}", binary, main or ("sleep", "1000"), **config)
            stack.callback(end, shell)
            return shell

        yield begin


@pytest.fixture
def hold_shell(tmp_path: Path) -> Iterator[Callable[[Path], Shell]]:
    """Starts a keeper that holds, over a copy of another shell's root."""
    with contextlib.ExitStack() as stack:

        def begin(root: Path) -> Shell:
            shell = start_keeper(root, "hold")
            stack.callback(end, shell)
            return shell

        yield begin
