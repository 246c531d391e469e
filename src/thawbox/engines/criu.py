"""The engine that freezes real process trees: CRIU, run inside the sandbox's own namespaces.

Because criu shares every namespace with the tree but ipc, its images name no mount, network, pid or uts namespace:
a restore goes into whatever shell was prepared for it (docs/decisions/0001).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.engines import ALONE, DumpReport, Freeze, Parents, Place, RestoreReport, nothing
from thawbox.engines.criu_connections import close_outside
from thawbox.engines.criu_images import PARENT_LINK, read_dump_stats, read_tasks
from thawbox.engines.criu_phases import Phases
from thawbox.engines.criu_rpc import LOG, STDERR, CriuGone, CriuProgram, Notified, request
from thawbox.engines.criu_template import TemplateGone, TemplateServers
from thawbox.engines.proto import rpc_pb2
from thawbox.errors import CopyLost, DumpFailed, EngineError, RestoreFailed, ThawboxError, Unsupported
from thawbox.host.kernel_trials import soft_dirty
from thawbox.host.namespaces import PIDS_ABOVE, Entrance
from thawbox.host.proc import run_program
from thawbox.telemetry import NOBODY, Telemetry

GHOST_LIMIT = 256 << 20
"""Bytes of an unlinked open file that may be carried in the images."""

MINIMUM = (4, 2)
"""4.1 cannot dump INET sockets on current kernels, 3.17 nothing at all (shared/RUNTIME.md)."""

LOG_TAIL = 30

COPY_MEMORY = b"\xc8\xb2\x04\x01"
"""Field 9001 of `criu_opts`, true: our patch 0008. A CRIU without it does not know the field and passes over it."""

_PLAIN_DUMP = "cow: A plain dump:"
"""What CRIU says in its log when it could not copy the tasks (criu/cow-dump.c in the patch)."""

_OWN_PIDS = 256
"""More than criu ever takes for itself during a restore."""


@dataclass(frozen=True, slots=True)
class CriuEngine:
    """CRIU behind the Engine protocol. `scratch` holds one short-lived directory per operation."""

    program: CriuProgram
    scratch: Path
    timeout: float = 120.0
    templates: TemplateServers = field(default_factory=TemplateServers)
    telemetry: Telemetry = NOBODY

    @property
    def name(self) -> str:
        return "criu"

    def version(self) -> str:
        said = run_program([str(self.program.binary), "--version"], timeout=10).stdout.decode(errors="replace")
        found = re.search(r"Version: (\d+)\.(\d+)(\.\d+)?", said)
        if not found:
            raise Unsupported(f"{self.program.binary} does not say a version", remediation="run `make setup`")
        if (int(found[1]), int(found[2])) < MINIMUM:
            raise Unsupported(
                f"criu {found[0][9:]} is too old for current kernels", remediation="run `make setup` to build 4.2"
            )
        return found[0][9:]

    def dump(
        self, place: Place, images: Path, *, while_stopped: Callable[[], None],
        when_running: Callable[[], None] = nothing, established: bool = True, tracked: str = "", why_plain: str = "",
        parents: Parents = ALONE,
    ) -> DumpReport:  # fmt: skip
        message = rpc_pb2.criu_req(type=rpc_pb2.DUMP)
        options = message.opts
        options.pid = place.root
        options.leave_running = True
        options.link_remap = True
        options.force_irmap = True
        options.ghost_limit = GHOST_LIMIT
        options.tcp_skip_in_flight = True  # nobody inside has seen a connection that was not accepted
        _shared_options(options, established=established)
        why_plain = why_plain or _why_plain(place)
        if kernel_tracks_writes():
            options.track_mem = True
            if tracked:
                options.parent_img = tracked
        if not why_plain:
            options.MergeFromString(COPY_MEMORY)
        begun = time.perf_counter()
        phases = Phases(self.telemetry)
        with _work_directory(self.scratch, images) as work:
            reader = _Reader(work, place, images, parents, when_running)
            if not why_plain:
                reader.prepare()
            try:
                answer = request(
                    self.program, Entrance(place.keeper), message, images=images, work=work, timeout=self.timeout,
                    on=phases.of({"post-dump": while_stopped, "post-resume": reader.read}), freezer=place.freezer,
                )  # fmt: skip
            except CriuGone as error:
                # Once copies were there to be read, the tree ran again: all that is lost is the dump.
                kind = CopyLost if reader.began and not why_plain else DumpFailed
                raise _failure(kind, f"the dump failed: {error}; the sandbox runs on", work) from error
            if not answer.success:
                raise _failure(DumpFailed, "the dump failed; the sandbox runs on", work)
            phases.end()
            stats = read_dump_stats(work)
            why_plain = why_plain or ("" if reader.found else _why_not_copied(work))
        if why_plain:
            when_running()
        # CRIU counts from its first stop of a task to its last thaw, and has more to do before and after.
        frozen_ms = (stats.freezing_us + stats.frozen_us) / 1000
        return DumpReport(
            frozen_ms, (time.perf_counter() - begun) * 1000, stats.pages_written,
            freeze=Freeze.PLAIN if why_plain else Freeze.COW, why_plain=why_plain, shrunk=reader.found,
            clean=reader.clean,
        )  # fmt: skip

    def restore(
        self, place: Place, images: Path, *, before_resume: Callable[[], None] | None = None, established: bool = True,
        eager: bool = False,
    ) -> RestoreReport:  # fmt: skip
        message = rpc_pb2.criu_req(type=rpc_pb2.RESTORE)
        _shared_options(message.opts, established=established)
        started = time.perf_counter()
        phases = Phases(self.telemetry)
        entrance = Entrance(place.keeper, place.cgroup_procs, pids_above=_pids_above(images))
        with _work_directory(self.scratch, images) as work:
            try:
                on = phases.of({} if before_resume is None else {"post-restore": before_resume})
                answer = self._ask_to_restore(entrance, message, images, work, on=on, phases=phases, eager=eager)
            except CriuGone as error:
                raise _failure(RestoreFailed, f"the restore failed: {error}", work) from error
            if not answer.success:
                raise _failure(RestoreFailed, "the restore failed", work)
            phases.end()
        return RestoreReport((time.perf_counter() - started) * 1000)

    def _ask_to_restore(
        self, entrance: Entrance, message: rpc_pb2.criu_req, images: Path, work: Path, *, on: Notified, phases: Phases,
        eager: bool,
    ) -> rpc_pb2.criu_resp:  # fmt: skip
        """By the snapshot's template server where there is one, else from the files."""
        server = None if eager else self.templates.find(images)
        if server is not None:
            try:
                return server.request(
                    entrance, message, work=work, timeout=self.timeout, on=on, forked=phases.forked
                )  # fmt: skip
            except TemplateGone:
                self.templates.drop(images)
        return request(self.program, entrance, message, images=images, work=work, timeout=self.timeout, on=on)

    def warm(self, chain: Sequence[Path]) -> bool:
        return self.templates.start(self.program, chain)

    def is_warm(self, images: Path) -> bool:
        return self.templates.find(images) is not None

    def cool(self, images: Path) -> None:
        self.templates.drop(images)

    def close(self) -> None:
        self.templates.close()

    def shrink(self, images: Path, *, parents: Sequence[Path] = (), parent_link: str = "") -> bool:
        from thawbox.engines.criu_delta import is_clean, make_delta, make_full  # numpy: 0.15 s, and only needed here

        close_outside(images)
        if (images / PARENT_LINK).is_symlink():
            return False  # the kernel told CRIU what was written, and CRIU wrote a delta
        if not parents:
            make_full(images)
            return False
        return is_clean(make_delta(images, parents, parent_link=parent_link))

    def find_pairs(self, chain: Sequence[Path], task: int, pairs: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
        from thawbox.engines.criu_search import find_pairs

        return find_pairs(chain, task, pairs)

    def flatten(self, chain: Sequence[Path], out: Path) -> None:
        from thawbox.engines.criu_delta import flatten

        flatten(chain, out)


@dataclass(slots=True)
class _Reader:
    """Reads the copies that a copy-on-write dump left, as soon as the tree runs: what comes of it are the images that
    `shrink` makes of a plain dump. `began` once the tree ran again, `found` once there were copies, `clean` as `shrink`
    answers."""

    work: Path
    place: Place
    images: Path
    parents: Parents
    when_running: Callable[[], None]
    began: bool = False
    found: bool = False
    clean: bool = False

    def prepare(self) -> None:
        """Have ready what is slow to load: copies cost memory for as long as they are there."""
        importlib.import_module("thawbox.engines.criu_delta")

    def read(self) -> None:
        from thawbox.engines.criu_copies import expose, find_copies
        from thawbox.engines.criu_delta import is_clean, make_delta, make_full

        self.began = True
        self.when_running()
        copies = find_copies(self.work, self.place.keeper)
        expose(copies)
        close_outside(self.images)
        self.found = True
        if not self.parents.images:
            make_full(self.images, copies=copies)
            return
        made = make_delta(self.images, self.parents.images, parent_link=self.parents.link, copies=copies)
        self.clean = is_clean(made)


def _why_plain(place: Place) -> str:
    """Why a dump from this place cannot be short; empty when it can."""
    if place.freezer is not None:
        return "the sandbox is frozen anyway"
    if kernel_tracks_writes():
        return "this kernel tracks writes, and only what was written is dumped"
    return ""


def _why_not_copied(work: Path) -> str:
    """Why CRIU made a plain dump though it was asked for a short freeze."""
    for line in _log_lines(work):
        if _PLAIN_DUMP in line:
            return line.partition(_PLAIN_DUMP)[2].strip()
    return "this criu cannot copy tasks: it lacks our patch 0008 (native/criu/README.md)"


@functools.cache
def kernel_tracks_writes() -> bool:
    """Whether this kernel marks written pages (CONFIG_MEM_SOFT_DIRTY), found out by doing, once."""
    try:
        soft_dirty()
    except (ThawboxError, OSError):
        return False
    return True


def _shared_options(options: rpc_pb2.criu_opts, *, established: bool) -> None:
    options.log_level = 2
    options.file_locks = True
    options.tcp_established = established
    options.tcp_close = not established
    options.manage_cgroups = True
    options.manage_cgroups_mode = rpc_pb2.IGNORE
    options.network_lock = rpc_pb2.SKIP


def _pids_above(images: Path) -> int:
    """From where criu's own processes may take pids: as high as may be, clear of every id that the tree will have.

    A tree that forks much, or was restored before, has pids everywhere.
    """
    taken = {number for task in read_tasks(images) for number in (task.pid, task.pgid, task.sid, *task.threads)}
    for lowest in range(PIDS_ABOVE, _OWN_PIDS, -_OWN_PIDS):
        if taken.isdisjoint(range(lowest, lowest + _OWN_PIDS)):
            return lowest
    return PIDS_ABOVE


@contextlib.contextmanager
def _work_directory(scratch: Path, images: Path) -> Generator[Path]:
    work = scratch / f"criu-{images.parent.name}-{time.monotonic_ns():x}"
    work.mkdir(mode=0o700, parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# CRIU's own words, and what a person can do about them. First match wins; groups are quoted in the cause.
_KNOWN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Can't dump.*io_uring|io_uring"), "the program uses io_uring; run it with UV_USE_IO_URING=0"),
    (re.compile(r"ptrace: .*already.*traced|is traced|TracerPid"), "a debugger is attached; detach it first"),
    (re.compile(r"Can't dump ghost file.*size"), f"close deleted files larger than {GHOST_LIMIT >> 20} MiB"),
    (re.compile(r"[Uu]nix socket .*not found|External socket is used"), "close connections to the outside first"),
    (re.compile(r"No space left on device"), "free disk space, or move THAWBOX_HOME"),
    (re.compile(r"Cannot allocate memory|[Oo]ut of memory"), "raise the memory limit of the sandbox"),
    (re.compile(r"Can't lookup mount"), "a message queue, or what was opened outside the sandbox: close it first"),
    (re.compile(r"nested|user ns|userns"), "nested user namespaces cannot be checkpointed"),
    (re.compile(r"Permission denied|Operation not permitted"), "run as root with CAP_SYS_ADMIN and CAP_SYS_PTRACE"),
)

_NOISE = ("tun: Unable to create tun", "RLIMIT_NOFILE")


def _failure(kind: type[EngineError], what: str, work: Path) -> EngineError:
    """An error that carries CRIU's last words: its first error line in the cause, its tail in `.log`."""
    lines = _log_lines(work)
    errors = [line for line in lines if "Error" in line and not any(noise in line for noise in _NOISE)]
    words = f": {errors[0]}{_whose(errors)}" if errors else ""
    text = "\n".join(errors)
    remedy = next((remedy for pattern, remedy in _KNOWN if pattern.search(text)), "read the log; `thawbox doctor`")
    return kind(f"{what}{words}", remediation=remedy, log="\n".join(lines[-LOG_TAIL:]))


def _whose(errors: Sequence[str]) -> str:
    """Which process and descriptor CRIU was at: the one it says where it gives up, the other in its first error."""
    process = next((found[1] for line in errors if (found := re.search(r"\(pid: (\d+)\)", line))), "")
    descriptor = re.search(r"\bfd[= ](\d+)\b", errors[0])
    if not process:
        return ""
    return f" (process {process}{f', descriptor {descriptor[1]}' if descriptor else ''})"


def _log_lines(work: Path) -> list[str]:
    lines: list[str] = []
    for name in (LOG, STDERR):
        with contextlib.suppress(FileNotFoundError):
            lines += (work / name).read_text(errors="replace").splitlines()
    return lines


__all__ = ["CriuEngine", "CriuProgram"]
