"""Shells and entrances: making a sandbox's namespaces, and starting a program inside them.

Both are done by the small static program `thawbox-launch` (native/init/launch.c): namespaces cannot be changed one by
one in a process with threads, and a plan carried out in C is ready in two milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from thawbox.errors import StartFailed
from thawbox.host.proc import send_signal, start_program

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PLACED_NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWTIME
"""What a shell inside a placeholder makes of its own; network and host name are the placeholder's."""
SHELL_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWTIME
)

PIDS_ABOVE = 30_000
"""Helper processes inside a pid namespace take pids from here on, above those of any ordinary tree."""
ANY_PID = 0
"""Or the next one, as everybody: in the namespace of the host, whose pids are not ours to number."""

Step = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entrance:
    """Namespaces to enter (by the host pid of a process in them), cgroups to join first, and pids to take inside."""

    pid: int
    cgroup_procs: tuple[Path, ...] = ()
    pids_above: int = PIDS_ABOVE


def encode_plan(steps: Sequence[Step]) -> bytes:
    """The plan as thawbox-launch reads it: every field followed by a NUL byte."""
    return b"".join(os.fsencode(field) + b"\0" for step in steps for field in step)


def start_shell(
    launcher: Path,
    steps: Sequence[Step],
    *,
    filter_fd: int | None = None,
    before_go: Callable[[int], None] | None = None,
    timeout: float = 30.0,
) -> int:
    """Carry out a shell's plan and return the host pid of its pid 1, which is our child.

    `before_go(pid)` runs while the plan waits at its `wait` step; `filter_fd` is the descriptor that a `seccomp`
    step names. Raises StartFailed with the step that failed, and then no process is left.
    """
    with ExitStack() as undo:
        shell = _begin(launcher, steps, filter_fd=filter_fd, deadline=time.monotonic() + timeout)
        undo.callback(shell.destroy)
        if before_go is not None:
            before_go(shell.pid)
        shell.go_on(b"g")
        shell.wait_done(timeout=timeout)
        undo.pop_all()
        return shell.pid


class WaitingShell:
    """A shell whose plan goes on when it is told how. `pid` is the host's number of its pid 1, which is our child.

    It ends by itself when we do. One thread at a time uses it; `destroy` is for whoever does not want it any more.
    """

    def __init__(self, pid: int, status: FileIO, go: FileIO, said: bytes) -> None:
        self.pid = pid
        self._status = status
        self._go = go
        self._said = said

    def wait_prepared(self, *, timeout: float = 30.0) -> None:
        """Return once every step before `rest` is done; raises StartFailed, naming the step that failed."""
        deadline = time.monotonic() + timeout
        while _WAITING not in self._said:
            _wait_readable(self._status.fileno(), deadline)
            part = os.read(self._status.fileno(), 4096)
            if not part:
                raise _refusal(self._said)
            self._said += part
        self._said = self._said.replace(_WAITING, b"", 1)

    def go_on(self, word: bytes) -> None:
        """Let it go on with this; `wait_done` tells how that went."""
        with contextlib.suppress(BrokenPipeError), self._go:  # a plan that does not wait does not listen
            self._go.write(word)

    def wait_done(self, *, timeout: float = 30.0) -> None:
        """Return once the plan is carried out; raises StartFailed, naming the step that failed."""
        with self._status:
            _check_start(self._said + _read_to_end(self._status.fileno(), time.monotonic() + timeout))

    def destroy(self) -> None:
        """End it, and with it every process and mount of its namespaces."""
        destroy_shell(self.pid)
        self._go.close()
        self._status.close()


_WAITING = b"waiting\n"


def begin_shell(
    launcher: Path, steps: Sequence[Step], *, filter_fd: int | None = None, timeout: float = 30.0
) -> WaitingShell:
    """Carry out a plan that ends with the step `rest`, and return once the shell waits for what is to follow.

    Raises StartFailed with the step that failed, and then no process is left.
    """
    with ExitStack() as undo:
        shell = _begin(launcher, steps, filter_fd=filter_fd, deadline=time.monotonic() + timeout)
        undo.callback(shell.destroy)
        shell.wait_prepared(timeout=timeout)
        undo.pop_all()
        return shell


def _begin(launcher: Path, steps: Sequence[Step], *, filter_fd: int | None, deadline: float) -> WaitingShell:
    """Start the launcher; return when its pid 1 exists."""
    with ExitStack() as descriptors:
        # File objects, not numbers: closing one twice must not close what another thread has opened since.
        plan_read, plan_write = _pipe(descriptors)
        status_read, status_write = _pipe(descriptors)
        go_read, go_write = _pipe(descriptors)
        keep = [end.fileno() for end in (plan_read, status_write, go_read)]
        argv = [str(launcher), "shell", *map(str, keep)]
        started = start_program(argv, pass_fds=keep if filter_fd is None else [*keep, filter_fd])
        for end in (plan_read, status_write, go_read):
            end.close()
        with contextlib.suppress(BrokenPipeError), plan_write:
            plan_write.write(encode_plan(steps))
        pid, said = _read_pid(status_read.fileno(), deadline)
        started.wait()
        if pid is None:
            raise _refusal(said)
        descriptors.pop_all()
        return WaitingShell(pid, status_read, go_write, said)


def _pipe(descriptors: ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return descriptors.enter_context(FileIO(read, "rb")), descriptors.enter_context(FileIO(write, "wb"))


def _check_start(said: bytes) -> None:
    """Raise StartFailed unless init said `0 PID`, or nobody said anything (a shell without a program)."""
    word, _, rest = said.decode(errors="replace").strip().partition(" ")
    if word in ("", "0"):
        return
    if word == "error":
        raise _refusal(said)
    raise StartFailed(f"the program could not be started: {rest}", remediation="name a program that the rootfs has")


def destroy_shell(pid: int, *, started: int | None = None) -> None:
    """End pid 1 of a shell, and with it every process and mount of its namespaces; reap it if it is our child."""
    send_signal(pid, signal.SIGKILL, started=started)
    reap(pid)


def reap(pid: int, *, block: bool = True) -> None:
    """Collect an ended child; nothing happens when it is not (or no longer) our child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0 if block else os.WNOHANG)


def enter_program(
    launcher: Path,
    entrance: Entrance,
    binary_fd: int,
    argv: Sequence[str],
    *,
    run_directory_fd: int,
    keep: Sequence[int],
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start the statically linked program open at `binary_fd` inside a sandbox's namespaces (all but ipc and user).

    It finds `run_directory_fd` as descriptor 1000 and the descriptors in `keep` under their own numbers. The process
    returned is the launcher, which waits for the program, ends with its status and takes it along when killed.
    """
    numbers = (entrance.pid, entrance.pids_above, binary_fd, run_directory_fd)
    command = [str(launcher), "enter", *map(str, numbers), *map(str, entrance.cgroup_procs), "--", *argv]
    return start_program(command, pass_fds=(binary_fd, run_directory_fd, *keep), stderr=stderr)


def _wait_readable(fd: int, deadline: float) -> None:
    if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise StartFailed("the sandbox's namespaces were not ready in time")


def _read_pid(fd: int, deadline: float) -> tuple[int | None, bytes]:
    first, more = _read_line(fd, b"", deadline)
    word, _, rest = first.partition(b" ")
    if word == b"helper":  # it enters a placeholder, ends once pid 1 is there, and is our child
        with contextlib.ExitStack() as undo:
            undo.callback(reap, int(rest))
            first, more = _read_line(fd, more, deadline)
        word, _, rest = first.partition(b" ")
    return (int(rest), more) if word == b"pid" else (None, first + b"\n" + more)


def _read_line(fd: int, said: bytes, deadline: float) -> tuple[bytes, bytes]:
    """The next line, or what comes before the end, and what was read beyond it."""
    while b"\n" not in said:
        _wait_readable(fd, deadline)
        part = os.read(fd, 4096)
        if not part:
            break
        said += part
    first, _, more = said.partition(b"\n")
    return first, more


def _read_to_end(fd: int, deadline: float) -> bytes:
    said = b""
    while True:
        _wait_readable(fd, deadline)
        part = os.read(fd, 4096)
        if not part:
            return said
        said += part


def _refusal(said: bytes) -> StartFailed:
    text = said.decode(errors="replace").strip().removeprefix("error ")
    is_mismatch = text.startswith("bind ") and text.endswith("attach: Invalid argument")
    return StartFailed(
        f"the sandbox could not be set up: {text or 'the launcher ended without a word'}",
        remediation=_MOUNT_LIKE if is_mismatch else "run `thawbox doctor`",
    )


_MOUNT_LIKE = "mount a directory where a directory is or nothing, and a file where a file is or nothing"
