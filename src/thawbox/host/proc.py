"""Programs and processes: the only place that starts programs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


def run_program(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> Outcome:
    """Run a program to its end and collect its output; it is killed after `timeout` seconds.

    Raises Unsupported when the program is not there, subprocess.TimeoutExpired when it was killed for its time.
    """
    try:
        done = subprocess.run(
            list(argv), capture_output=True, timeout=timeout, env=env, input=stdin or b"",
            pass_fds=tuple(pass_fds), check=False, cwd=cwd,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unsupported(f"the program {argv[0]!r} is not on this host", remediation="run `make setup`") from None
    return Outcome(done.returncode, done.stdout, done.stderr)


def start_program(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program with no standard input and return it; the caller waits for it."""
    try:
        return subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            pass_fds=tuple(pass_fds), env=env, close_fds=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unsupported(f"the program {argv[0]!r} is not on this host", remediation="run `make setup`") from None


def start_detached(argv: Sequence[str], *, pass_fds: Sequence[int]) -> int:
    """Start a program in a session of its own, which may outlive us, and return its pid.

    The numbers that the descriptors have there are appended to its arguments. While we live, we owe it a `waitpid`.
    """
    there = range(_FIRST_PASSED, _FIRST_PASSED + len(pass_fds))
    with contextlib.ExitStack() as closing:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, there.stop) for fd in pass_fds]
        for fd in high:
            closing.callback(os.close, fd)
        return os.posix_spawnp(
            argv[0], [*argv, *map(str, there)], os.environ, setsid=True,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(_FIRST_PASSED)),
                *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(high, there, strict=True)),
            ],
        )  # fmt: skip


_FIRST_PASSED = 3


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which process `pid` started (field 22 of /proc/PID/stat); None if there is none.

    With the pid it names a process for good: a pid alone is reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields_after_name = stat[stat.rindex(b")") + 2 :].split()
    return None if fields_after_name[0] in (b"Z", b"X") else int(fields_after_name[19])


def open_process(pid: int) -> int:
    """A pidfd of process `pid`; raises ProcessLookupError when it is gone.

    It is gone also where its number is a mere thread's by now, for which the kernel says ENOENT (Linux 6.15) or EINVAL.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        raise


@contextlib.contextmanager
def _pidfd(pid: int, started: int | None) -> Generator[int | None]:
    try:
        fd = open_process(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd if started is None or start_time(pid) == started else None
    finally:
        os.close(fd)


def send_signal(pid: int, sig: signal.Signals, *, started: int | None = None) -> bool:
    """Signal exactly the process that had `pid` and start time `started`; False if it is gone."""
    with _pidfd(pid, started) as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError:
            return False
        return True


def wait_gone(pid: int, *, started: int | None = None, timeout: float) -> bool:
    """Wait until the process has ended, without polling; False if it still runs after `timeout` seconds."""
    with _pidfd(pid, started) as fd:
        if fd is None:
            return True
        readable, _, _ = select.select([fd], [], [], timeout)
        return bool(readable)


def children(pid: int) -> list[int]:
    """Direct children of a process (of all its threads), empty if it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def command_name(pid: int) -> str:
    """The name of the program a process runs (/proc/PID/comm), `?` if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "?"


def pid_inside(pid: int) -> int | None:
    """The number that a process has in its own pid namespace; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)


def kill_session(pids: Iterable[int], session: int) -> None:
    """Kill those of the processes that belong to a session, named by its number in their own pid namespace."""
    for pid in pids:
        with _pidfd(pid, None) as fd:
            if fd is not None and _session_inside(pid) == session:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)


def _session_inside(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSsid:")), None)
