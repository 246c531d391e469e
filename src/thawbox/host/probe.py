"""Whether this host can run sandboxes, freeze and restore them: facts found by doing, one `Check` each.

A probe is a row of the table below: what it is called, why it matters, what to do when it fails, and a function that
returns what it saw or raises. The rows that are `needed` decide whether the main job can run.
"""

from __future__ import annotations

import datetime
import enum
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import ThawboxError, Unsupported
from thawbox.host import kernel_trials
from thawbox.host.cgroup import Cgroup, remove_node_group
from thawbox.host.cgroup_layout import detect_layout
from thawbox.host.cgroup_limits import Limits
from thawbox.host.proc import run_program
from thawbox.host.seccomp import compile_filter
from thawbox.model import SandboxId

CRIU_MINIMUM = (4, 2)
"""4.1 cannot dump INET sockets on current kernels, 3.17 nothing at all (docs/decisions/0002)."""

COPY_MEMORY_FEATURE = "copy_memory"
"""What `criu check --feature` calls copy-on-write dumps, where our patch 0008 is in it."""

SPACE_NEEDED = 256 << 20
MEMORY_NEEDED = 256 << 20

_CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12,
    "SYS_CHROOT": 18, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31,
}  # fmt: skip
"""What thawbox and CRIU use; numbers from linux/capability.h."""


class State(enum.Enum):
    """Fine; works, with something lost; the main job cannot run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `detail` is what was seen, `why` what it is for, `remedy` what to do (empty when ok)."""

    name: str
    state: State
    detail: str
    remedy: str
    why: str


@dataclass(frozen=True, slots=True)
class Ground:
    """The places that are checked; none needs to exist.

    `home` is the node's home directory, `run_directory` the directory of CRIU's kernel-feature cache.
    """

    home: Path
    criu: Path
    init: Path
    launcher: Path
    run_directory: Path


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    needed: bool
    look: Callable[[Ground], str]
    why: str
    remedy: str


def probe_host(ground: Ground) -> tuple[Check, ...]:
    """Every check, in the order in which their failures should be mended; leaves nothing behind.

    A probe that fails in a way nobody foresaw is a failed check too, never an exception.
    """
    return tuple(_carry_out(probe, ground) for probe in _PROBES)


def can_run(checks: Sequence[Check]) -> bool:
    """Whether the main job can run: no check failed."""
    return all(check.state is not State.FAIL for check in checks)


def _carry_out(probe: _Probe, ground: Ground) -> Check:
    try:
        detail = probe.look(ground)
    except ThawboxError as error:
        detail, failed = error.cause, True
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        detail, failed = str(error), True
    else:
        failed = False
    bad = State.FAIL if probe.needed else State.WARN
    return Check(probe.name, bad if failed else State.OK, detail, probe.remedy if failed else "", probe.why)


def _privileges(_: Ground) -> str:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, flags=re.MULTILINE)
    held = int(found[1], 16) if found else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if os.geteuid() != 0:
        raise Unsupported(f"this is user {os.geteuid()}, not root")
    if missing:
        raise Unsupported(f"root without the capabilities {', '.join(missing)}")
    return "root, with every capability that is used"


def _cgroups(_: Ground) -> str:
    """A group with all three limits, in which a process is frozen, thawed and killed."""
    layout = detect_layout()
    cgroup = Cgroup(layout, f"doctor-{os.getpid()}", SandboxId(f"sb-{secrets.token_hex(6)}"))
    versions = {name: seat.version for name in ("memory", "cpu", "pids", "freezer") if (seat := layout.seat(name))}
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        cgroup.create(Limits(memory=64 << 20, cpus=1.0, pids=16))
        for procs in (*cgroup.keeper_procs, *cgroup.tree_procs):
            procs.write_text(str(child))
        cgroup.freeze()
        if not cgroup.is_frozen():
            raise Unsupported("a frozen group is not frozen")
        cgroup.thaw()
    finally:
        os.kill(child, signal.SIGKILL)
        cgroup.kill_all()
        os.waitpid(child, 0)
        cgroup.remove()
        remove_node_group(layout, cgroup.node_tag)
    return ", ".join(f"{name} on version {version}" for name, version in versions.items())


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _space(ground: Ground) -> str:
    place = _existing(ground.home)
    free = shutil.disk_usage(place).free
    if free < SPACE_NEEDED:
        raise Unsupported(f"{free >> 20} MiB are free at {place}")
    return f"{free / (1 << 30):.1f} GiB free at {place}"


def _memory(_: Ground) -> str:
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
    available = int(found[1]) << 10 if found else 0
    if available < MEMORY_NEEDED:
        raise Unsupported(f"{available >> 20} MiB of memory are available")
    return f"{available / (1 << 30):.1f} GiB available"


def _clock(_: Ground) -> str:
    installed = Path(__file__).stat().st_mtime
    if time.time() < installed - 86_400:
        raise Unsupported(f"it says {_date(time.time())}, and this program was installed on {_date(installed)}")
    return _date(time.time())


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def is_static(program: Path) -> bool:
    """Whether a 64-bit ELF program names no interpreter, and so runs where no library is.

    Header layout: elf(5); PT_INTERP is 3. Raises OSError when it cannot be read, ValueError when it is no such file.
    """
    with program.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:5] != b"\x7fELF\x02":
            raise ValueError(f"{program} is no 64-bit program")
        file.seek(int.from_bytes(header[32:40], "little"))
        size, count = (int.from_bytes(header[at : at + 2], "little") for at in (54, 56))
        table = file.read(size * count)
    return all(int.from_bytes(table[at : at + 4], "little") != 3 for at in range(0, len(table), size))


def _own_programs(ground: Ground) -> str:
    for program in (ground.init, ground.launcher):
        if not os.access(program, os.X_OK):
            raise Unsupported(f"{program} is not there or not executable")
        if not is_static(program):
            raise Unsupported(f"{program} is not static, so it cannot run in every rootfs")
    return f"{ground.init.name} and {ground.launcher.name} in {ground.init.parent}"


def _criu_version(criu: Path) -> tuple[str, str]:
    """The version and the build's name (empty for an upstream release) that `criu --version` prints."""
    said = run_program([str(criu), "--version"], timeout=5).stdout.decode(errors="replace")
    version = re.search(r"^Version: *(\d[\d.]*)", said, flags=re.MULTILINE)
    build = re.search(r"^GitID: *(\S+)", said, flags=re.MULTILINE)
    if not version:
        raise Unsupported(f"{criu} does not say which version it is")
    return version[1], build[1] if build else ""


def _criu(ground: Ground) -> str:
    version, _ = _criu_version(ground.criu)
    if tuple(int(part) for part in version.split(".")[:2]) < CRIU_MINIMUM:
        raise Unsupported(f"{ground.criu} is {version}; 4.2 is the first that works on current kernels")
    if not is_static(ground.criu):
        raise Unsupported(f"{ground.criu} is not static, so it cannot run inside a sandbox's mount namespace")
    check = run_program([str(ground.criu), "check"], timeout=10)
    if check.status != 0:
        raise Unsupported(f"criu check: {check.stderr.decode(errors='replace').strip()}")
    return f"{version}, static; criu check is content"


def _criu_build(ground: Ground) -> str:
    _, build = _criu_version(ground.criu)
    if not build.startswith("thawbox-"):
        raise Unsupported(f"{ground.criu} is not the build of this project")
    return build


def _short_freezes(ground: Ground) -> str:
    asked = run_program([str(ground.criu), "check", "--feature", COPY_MEMORY_FEATURE], timeout=10)
    if asked.status != 0:
        raise Unsupported(f"{ground.criu} lacks our patch 0008, which copies tasks in the frozen moment")
    return "tasks are copied in the frozen moment, and read while they run"


def _libseccomp(_: Ground) -> str:
    with tempfile.TemporaryDirectory(prefix="thawbox-doctor-") as cache:
        compiled = compile_filter(Path(cache))
    return f"the profile compiles to {len(compiled) // 8} instructions"


def _program(name: str) -> Callable[[Ground], str]:
    def look(_: Ground) -> str:
        found = shutil.which(name)
        if found is None:
            raise Unsupported(f"no program {name!r} in PATH")
        return found

    return look


def _trial(look: Callable[[], str]) -> Callable[[Ground], str]:
    return lambda _: look()


_SETUP = "run `make setup`"
_NEWER = "use a kernel of 5.12 or newer"

_PROBES = (
    _Probe("privileges", True, _privileges,
           why="namespaces, mounts and freezing other processes are root's",
           remedy="run as root (sudo); in a container: --privileged"),
    _Probe("namespaces", True, _trial(kernel_trials.namespaces),
           why="a sandbox is a set of them",
           remedy="allow them (in a container: --privileged)"),
    _Probe("time namespace", True, _trial(kernel_trials.time_namespace),
           why="a restored sandbox's monotonic clock must go on where it stopped",
           remedy="use a kernel with CONFIG_TIME_NS (5.6 or newer)"),
    _Probe("overlay", True, lambda ground: kernel_trials.overlay(_existing(ground.home)),
           why="a sandbox's root is a writable layer over a shared one",
           remedy="put THAWBOX_HOME on ext4, xfs or btrfs, not on an overlay or a network filesystem"),
    _Probe("mount attributes", True, _trial(kernel_trials.mount_attributes),
           why="a path inside a hostile rootfs must never be a mount's source or target by name",
           remedy=_NEWER),
    _Probe("cgroups", True, _cgroups,
           why="limits, and freezing a whole tree at one moment",
           remedy="mount the cgroup hierarchies writable, with memory, cpu, pids and freezer"),
    _Probe("chosen pids", True, _trial(kernel_trials.chosen_pids),
           why="restored processes have the pids they had",
           remedy="use a kernel with CONFIG_CHECKPOINT_RESTORE, and have CAP_SYS_ADMIN"),
    _Probe("pidfds", True, _trial(kernel_trials.pidfds),
           why="a pid may be reused between a look and a signal",
           remedy=_NEWER),
    _Probe("confined open", True, _trial(kernel_trials.confined_open),
           why="a path inside a sandbox must not lead out of it",
           remedy=_NEWER),
    _Probe("seccomp", True, _trial(kernel_trials.seccomp_filter),
           why="the system calls a sandbox may use are a short list",
           remedy="use a kernel with CONFIG_SECCOMP_FILTER"),
    _Probe("libseccomp", True, _libseccomp,
           why="compiles that list for this machine",
           remedy=_SETUP),
    _Probe("own programs", True, _own_programs,
           why="pid 1 of every sandbox, and what makes its namespaces",
           remedy=_SETUP),
    _Probe("criu", True, _criu,
           why="dumps and restores",
           remedy=_SETUP),
    _Probe("criu build", False, _criu_build,
           why="brings fixes that upstream does not have (native/criu/README.md)",
           remedy="unset THAWBOX_CRIU and run `make setup`"),
    _Probe("short freezes", False, _short_freezes,
           why="a checkpoint then holds a sandbox for as long as it takes to copy page tables, not memory",
           remedy="unset THAWBOX_CRIU and run `make setup`; until then checkpoints freeze for longer"),
    _Probe("criu cache", False, lambda ground: kernel_trials.tmpfs(ground.run_directory),
           why="without it every dump and restore probes the kernel anew, for some 40 ms",
           remedy="mount a tmpfs on /run"),
    _Probe("space", True, _space,
           why="snapshots are written below THAWBOX_HOME",
           remedy="free some space, or `thawbox snapshots gc`"),
    _Probe("memory", False, _memory,
           why="a restore needs as much as the sandbox had",
           remedy="stop something"),
    _Probe("clock", False, _clock,
           why="programs in a restored sandbox see the wall clock",
           remedy="set the clock"),
    _Probe("soft-dirty", False, _trial(kernel_trials.soft_dirty),
           why="without it deltas are found by comparing pages, after the sandbox runs again",
           remedy="none needed; a kernel with CONFIG_MEM_SOFT_DIRTY spares that work"),
    _Probe("pagemap scan", False, _trial(kernel_trials.pagemap_scan),
           why="CRIU walks sparse memory faster with it",
           remedy="use a kernel of 6.7 or newer"),
    _Probe("nftables", False, _trial(kernel_trials.netfilter),
           why="--net nat translates addresses with it",
           remedy="load nf_tables (modprobe nf_tables)"),
    _Probe("nft", False, _program("nft"),
           why="sets the rules of --net nat",
           remedy=_SETUP),
    _Probe("umoci", False, _program("umoci"),
           why="unpacks OCI images for --rootfs",
           remedy=_SETUP),
)  # fmt: skip
