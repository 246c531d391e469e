# ruff: noqa: ARG002 - bare criu has no use for some of what the protocol passes
"""The peer: CRIU's own command line, with the options thawbox gives it and its feature cache warm.

It is upstream's, of the same release and settings as ours: what one would have without thawbox's patches.
Two of them. `BareCriu` is an engine: the same sandbox, the same images, namespaces made beforehand, and nothing but
`criu` within its clock: the floor. `PlainProcess` owes thawbox nothing: a program in namespaces that `unshare` made,
as a person would freeze it by hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from thawbox.bench import agent
from thawbox.engines import ALONE, DumpReport, Parents, Place, RestoreReport, nothing
from thawbox.engines.criu import GHOST_LIMIT, CriuEngine, CriuProgram
from thawbox.engines.criu_images import read_dump_stats
from thawbox.errors import DumpFailed, RestoreFailed
from thawbox.host.namespaces import Entrance, enter_program
from thawbox.host.proc import children, start_program

_BUILD = Path(__file__).parents[3] / "native" / "criu" / "build"
_CACHE_DESCRIPTOR = 1000
"""Where our build of criu looks for its feature cache."""
_SAME_OPTIONS = ("-v2", "--file-locks", "--tcp-established", "--manage-cgroups=ignore", "--network-lock", "skip")
_DUMP_OPTIONS = ("--leave-running", "--link-remap", "--force-irmap", "--ghost-limit", str(GHOST_LIMIT), *_SAME_OPTIONS)
_RESTORE_OPTIONS = ("--restore-detached", *_SAME_OPTIONS)
_LOG = "criu.log"


@contextlib.contextmanager
def upstream(program: CriuProgram) -> Generator[CriuProgram]:
    """CRIU without a patch of ours, with a feature cache of its own; built if need be, which takes half a minute.

    Where thawbox was installed without its sources there is none, and `program` itself is the peer.
    """
    if not _BUILD.exists():
        yield program
        return
    built = subprocess.run([_BUILD, "--upstream"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory(dir=program.cache.parent, prefix=f"{program.cache.name}-upstream-") as cache:
        yield replace(program, binary=Path(built), cache=Path(cache))


@dataclass(frozen=True, slots=True)
class BareTimes:
    """Milliseconds: of the whole command, and (dumps only) of CRIU's own count of the frozen moment."""

    whole_ms: float
    frozen_ms: float = 0.0
    answer_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BareCriu(CriuEngine):
    """The engine, but for dump and restore, which are the criu command and a clock. `last` is what it showed.

    A restore's `answer_ms` ends with the first answer of the program in it, which `ask` asks right after criu's exit
    and by default is the agent.
    """

    ask: Callable[[int], object] = agent.ask
    _seen: list[BareTimes] = field(default_factory=list[BareTimes])

    @property
    def last(self) -> BareTimes:
        return self._seen[-1]

    def dump(
        self,
        place: Place,
        images: Path,
        *,
        while_stopped: Callable[[], None],
        when_running: Callable[[], None] = nothing,
        established: bool = True,
        tracked: str = "",
        why_plain: str = "",
        parents: Parents = ALONE,
    ) -> DumpReport:
        """As `Engine.dump`, of a tree that runs; nothing is done `while_stopped`, which bare criu has not."""
        with _work_directory(self.scratch) as work:
            begun = time.perf_counter()
            status = _enter_criu(
                self.program, Entrance(place.keeper), ("dump", "--tree", str(place.root), *_DUMP_OPTIONS),
                images, work,
            )  # fmt: skip
            whole_ms = (time.perf_counter() - begun) * 1000
            if status:
                raise DumpFailed("bare criu could not dump", log=_tail(work))
            self._seen.append(BareTimes(whole_ms, frozen_ms=_frozen_ms(work)))
        return DumpReport(self.last.frozen_ms, whole_ms, 0)

    def restore(
        self,
        place: Place,
        images: Path,
        *,
        before_resume: Callable[[], None] | None = None,
        established: bool = True,
        eager: bool = False,
    ) -> RestoreReport:
        with _work_directory(self.scratch) as work:
            begun = time.perf_counter()
            status = _enter_criu(
                self.program, Entrance(place.keeper, place.cgroup_procs), ("restore", *_RESTORE_OPTIONS),
                images, work,
            )  # fmt: skip
            whole_ms = (time.perf_counter() - begun) * 1000
            if status:
                raise RestoreFailed("bare criu could not restore", log=_tail(work))
            self.ask(place.keeper)
            self._seen.append(BareTimes(whole_ms, answer_ms=(time.perf_counter() - begun) * 1000))
        return RestoreReport(whole_ms)


def _enter_criu(program: CriuProgram, entrance: Entrance, words: Sequence[str], images: Path, work: Path) -> int:
    with ExitStack() as undo:
        fds = [_opened(path, undo) for path in (images, work, program.binary, program.cache)]
        places = ("--images-dir", f"/proc/self/fd/{fds[0]}", "--work-dir", f"/proc/self/fd/{fds[1]}")
        running = enter_program(
            program.launcher, entrance, fds[2], ["criu", *words, *places, "--log-file", _LOG],
            run_directory_fd=fds[3], keep=fds[:2],
        )  # fmt: skip
        return running.wait()


_UNSHARE = (
    "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--time", "--cgroup", "--fork",
    "--kill-child", "sh", "-c",
)  # fmt: skip
_PREPARE = "set -e; ip link set lo up; mount -t proc proc /proc; "
_START_SCRIPT = _PREPARE + 'cd "$1"; shift; setsid "$@" </dev/null >/dev/null 2>&1 & wait'
# criu's own processes must not take the pids of the tree
_RESTORE_SCRIPT = (
    _PREPARE + 'echo 30000 >/proc/sys/kernel/ns_last_pid; said=$1; shift; "$@"; echo >$said; exec sleep inf'
)


class PlainProcess:
    """The agent without thawbox: alone in namespaces of `unshare`, dumped and restored by the criu command."""

    def __init__(self, program: CriuProgram, scratch: Path, *, mib: int) -> None:
        self._program = program
        self._scratch = scratch
        self._images = scratch / "plain-images"
        self._undo = ExitStack()
        self._home = scratch / "plain-home"
        self._home.mkdir()
        with self._undo as undo:
            shell = _start([*_UNSHARE, _START_SCRIPT, "sh", str(self._home), *agent.command(mib)], undo)
            first = _only_child(shell.pid)
            self.original = agent.ask(first, whole=True)
            self._root = _pid_inside(_only_child(first))
            self._dump(first, self._images)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def restore(self) -> tuple[BareTimes, int]:
        """Restore into new namespaces; the clock covers unshare, its shell, criu, and the first answer.

        Returns the times and the host pid of a process beside the agent; `end` ends it.
        """
        undo = self._undo
        with _work_directory(self._scratch) as work:
            read, write = os.pipe()
            undo.callback(os.close, read)
            fds = [_opened(path, undo) for path in (self._images, work, self._program.binary)]
            words = (
                f"/proc/self/fd/{fds[2]}", "restore", *_RESTORE_OPTIONS, "--images-dir", f"/proc/self/fd/{fds[0]}",
                "--work-dir", f"/proc/self/fd/{fds[1]}", "--log-file", _LOG,
            )  # fmt: skip
            cache = _opened(self._program.cache, undo)
            os.dup2(cache, _CACHE_DESCRIPTOR)
            undo.callback(os.close, _CACHE_DESCRIPTOR)
            begun = time.perf_counter()
            script = [*_UNSHARE, _RESTORE_SCRIPT, "sh", f"/proc/self/fd/{write}", *words]
            shell = _start(script, undo, keep=(*fds, write, _CACHE_DESCRIPTOR))
            os.close(write)
            if not os.read(read, 1):
                raise RestoreFailed("bare criu could not restore the plain process", log=_tail(work))
            whole_ms = (time.perf_counter() - begun) * 1000
            first = _only_child(shell.pid)
            agent.ask(first)
            return BareTimes(whole_ms, answer_ms=(time.perf_counter() - begun) * 1000), first

    def dump(self, first: int) -> BareTimes:
        """Dump the agent that `restore` gave, and let it run on."""
        images = self._scratch / "plain-again"
        try:
            return self._dump(first, images)
        finally:
            shutil.rmtree(images)

    def end(self) -> None:
        """End what `restore` started."""
        self._undo.close()
        self._undo = ExitStack()

    def _dump(self, first: int, images: Path) -> BareTimes:
        images.mkdir()
        with _work_directory(self._scratch) as work:
            words = ("dump", "--tree", str(self._root), *_DUMP_OPTIONS)
            begun = time.perf_counter()
            status = _enter_criu(self._program, Entrance(first), words, images, work)
            whole_ms = (time.perf_counter() - begun) * 1000
            if status:
                raise DumpFailed("bare criu could not dump the plain process", log=_tail(work))
            return BareTimes(whole_ms, frozen_ms=_frozen_ms(work))


def _start(argv: Sequence[str], undo: ExitStack, *, keep: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    running = start_program(argv, pass_fds=keep)

    def end() -> None:
        running.send_signal(signal.SIGKILL)  # --kill-child takes the namespaces along
        running.wait()

    undo.callback(end)
    return running


def _only_child(pid: int, *, timeout: float = 10.0) -> int:
    deadline = time.monotonic() + timeout
    while len(found := children(pid)) != 1:
        if time.monotonic() > deadline:
            raise RestoreFailed(f"process {pid} has children {found}, not one")
        time.sleep(agent.PAUSE)
    return found[0]


def _pid_inside(pid: int) -> int:
    """The pid of a process in its innermost pid namespace."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise RestoreFailed(f"process {pid} names no pid of its own namespace")


def _opened(path: Path, undo: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _work_directory(scratch: Path) -> Generator[Path]:
    work = scratch / f"work-{time.monotonic_ns():x}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _frozen_ms(work: Path) -> float:
    stats = read_dump_stats(work)
    return (stats.freezing_us + stats.frozen_us) / 1000


def _tail(work: Path) -> str:
    log = work / _LOG
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:]) if log.exists() else ""
