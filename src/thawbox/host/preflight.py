"""What in a process tree cannot be frozen: seen through /proc before anything is stopped, and named.

Each rule stands for a refusal in CRIU 4.2 (criu/files.c, sockets.c, tty.c, files-reg.c, cr-dump.c). A finding blocks
only where CRIU is sure to fail; what may go well is a warning, since a checkpoint must not be refused for nothing.
"""

# Before every checkpoint, for every descriptor: plain calls take half the time of Path's.
# ruff: noqa: PTH115, PTH116, PTH208

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import NotFound
from thawbox.host.proc import children, command_name, pid_inside
from thawbox.host.unix_sockets import UNKNOWN, unix_peers

GHOST_LIMIT = 256 << 20
"""Bytes on disk of an unlinked open file that the engine still carries along (`engines/criu.py` asks for as many)."""

_KNOWN_ANONYMOUS = frozenset(
    {"[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]"}
)
_REMEDIES = {
    "[io_uring]": "run it where io_uring is refused, as thawbox's sandboxes do, or with UV_USE_IO_URING=0",
    "[userfaultfd]": "turn the program's user-space paging off",
    "[perf_event]": "stop the profiler before the checkpoint",
    "kvm": "a virtual machine cannot be checkpointed from outside: end it first",
    "[fuse]": "unmount it before the checkpoint",
}
_KNOWN_PROTOCOLS = re.compile(rb"TCP|UDP|RAW|PING|UNIX|NETLINK|PACKET|ICMP")
_MEMORY_DEVICES = frozenset({3, 5, 7, 8, 9, 11})  # null, zero, full, random, urandom, kmsg
_MEM, _TTY, _TTYAUX, _MISC, _TUN = 1, 4, 5, 10, 200
_PTY = range(128, 144)
_SERIAL = frozenset({204, 188})
_SHARED_NAMESPACES = ("user", "pid", "mnt", "net", "uts")
_WATCHLESS = {"proc", "sysfs", "devpts"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that cannot be frozen. `pid` is the number inside the sandbox, `program` its name.

    `where` is `descriptor 7`, `mapping …` or `process`; `what` the thing itself; without `blocking` it may go well.
    """

    pid: int
    program: str
    where: str
    what: str
    cause: str
    remediation: str
    blocking: bool = True

    def __str__(self) -> str:
        return f"process {self.pid} ({self.program}), {self.where}: {self.what}: {self.cause}"


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with one descriptor or process, before it is known whose it is."""

    where: str
    what: str
    cause: str
    remediation: str
    blocking: bool = True


@dataclass(frozen=True, slots=True)
class _UnixSocket:
    """A descriptor of process `pid` (the host's number)."""

    pid: int
    where: str
    inode: int


def examine(pids: Iterable[int], *, keeper: int, thorough: bool = False) -> tuple[Finding, ...]:
    """Everything in the processes `pids` (the host's numbers) that cannot be frozen, by process and descriptor.

    `keeper` is the host pid of a process in the sandbox's own namespaces. `thorough` also reads every process's
    mappings and watches, which costs about a millisecond each. Processes that end meanwhile are left out.
    """
    own = _namespaces(keeper)
    inside = set(pids) - {keeper}
    found: list[Finding] = []
    sockets: list[_UnixSocket] = []
    for pid in sorted(inside):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            faults = [*_process_faults(pid, own, inside), *_descriptor_faults(pid, sockets, thorough=thorough)]
            if thorough:
                faults += _mapping_faults(pid)
            found += _findings(pid, faults)
    for pid, fault in _far_end_faults(keeper, sockets):
        found += _findings(pid, [fault])
    return tuple(sorted(found, key=lambda one: (one.pid, one.where)))


def _findings(pid: int, faults: Iterable[_Fault]) -> list[Finding]:
    return [
        Finding(
            pid_inside(pid) or 0, command_name(pid), fault.where, fault.what, fault.cause, fault.remediation,
            fault.blocking,
        )
        for fault in faults
    ]  # fmt: skip


def _namespaces(pid: int) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in _SHARED_NAMESPACES}


def _process_faults(pid: int, own: dict[str, str], inside: Collection[int]) -> Iterator[_Fault]:
    status = Path(f"/proc/{pid}/status").read_text()
    if "\nState:\tZ" in status:
        return
    tracer = re.search(r"^TracerPid:\t(\d+)", status, re.MULTILINE)
    if tracer and tracer[1] != "0":
        yield _Fault(
            "process", "ptrace", f"{_tracer_name(int(tracer[1]), inside)} traces it",
            "detach the debugger, strace or profiler first",
        )  # fmt: skip
    for name, mine in own.items():
        theirs = os.readlink(f"/proc/{pid}/ns/{name}")
        if theirs != mine:
            yield _Fault(
                "process", f"{name} namespace", f"it lives in a {name} namespace of its own",
                "run it without namespaces of its own (Chromium: --no-sandbox)", blocking=name in {"user", "pid"},
            )  # fmt: skip


def _tracer_name(tracer: int, inside: Collection[int]) -> str:
    if tracer in inside:
        return f"process {pid_inside(tracer)} ({command_name(tracer)})"
    return f"process {tracer} of the host ({command_name(tracer)})"


def _descriptor_faults(pid: int, sockets: list[_UnixSocket], *, thorough: bool) -> Iterator[_Fault]:
    """What is wrong with each descriptor by itself; unix sockets are added to `sockets`, to be seen together."""
    directory = f"/proc/{pid}/fd"
    for fd in os.listdir(directory):
        path = f"{directory}/{fd}"
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(path)
            where = f"descriptor {fd}"
            if target.startswith("anon_inode:"):
                yield from _anonymous_faults(where, target.removeprefix("anon_inode:"))
                if thorough and target == "anon_inode:inotify":
                    yield from _watch_faults(pid, fd)
            elif target.startswith("socket:"):
                yield from _socket_faults(pid, where, target, path, sockets)
            elif target.startswith("/"):
                yield from _file_faults(where, target, path)
                if (thorough or target.rfind("/") == 0) and not target.startswith("/memfd:"):
                    yield from _mount_faults(pid, fd, target)


def _anonymous_faults(where: str, kind: str) -> Iterator[_Fault]:
    if kind not in _KNOWN_ANONYMOUS:
        remedy = next((text for key, text in _REMEDIES.items() if key in kind), "close it before the checkpoint")
        yield _Fault(where, kind, "the kernel gives no way to save and rebuild it", remedy)


def _socket_faults(
    pid: int, where: str, target: str, path: str, sockets: list[_UnixSocket]
) -> Iterator[_Fault]:  # fmt: skip
    try:
        protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0")
    except OSError:
        return  # an older kernel does not say
    if protocol.startswith(b"UNIX"):
        sockets.append(_UnixSocket(pid, where, int(target[len("socket:[") : -1])))
    elif not _KNOWN_PROTOCOLS.match(protocol):
        name = protocol.decode(errors="replace")
        yield _Fault(where, target, f"a socket of protocol {name} cannot be rebuilt", "close it before the checkpoint")


def _far_end_faults(keeper: int, sockets: list[_UnixSocket]) -> Iterator[tuple[int, _Fault]]:
    """Unix sockets whose other end no process of the tree holds, by the host's pid of who has them.

    `keeper` stands for the network namespace; what init has is left out: its callers are away during a dump.
    """
    init = children(keeper)
    seen = [one for one in sockets if one.pid not in init]
    if not seen:
        return
    try:
        elsewhere = {pid for pid in {one.pid for one in seen} if _network_of(pid) != _network_of(keeper)}
        peers = unix_peers(keeper)
    except (NotFound, OSError):
        return  # a process is gone, or the kernel does not tell
    held = {one.inode for one in sockets}
    # What is on its way from one process to another is held by no descriptor, and goes along.
    outside = [one for one in seen if one.pid not in elsewhere and peers.get(one.inode, UNKNOWN) not in {0, *held}]
    blocking = not (outside and any(map(_carries_descriptors, sockets)))
    for one in outside:
        yield one.pid, _Fault(
            one.where, f"socket:[{one.inode}]", "the other end of this unix socket is outside the sandbox",
            "close it before the checkpoint (a before_checkpoint hook may), and connect anew after it", blocking,
        )  # fmt: skip


def _network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _carries_descriptors(one: _UnixSocket) -> bool:
    fd = one.where.removeprefix("descriptor ")
    try:
        return re.search(r"^scm_fds:\s+[1-9]", Path(f"/proc/{one.pid}/fdinfo/{fd}").read_text(), re.M) is not None
    except (FileNotFoundError, ProcessLookupError):
        return False


def _mount_faults(pid: int, fd: str, target: str) -> Iterator[_Fault]:
    """A file on no mount that the process sees: the engine has no way to open it again."""
    mount = re.search(r"^mnt_id:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text(), re.MULTILINE)
    mounts = {line.partition(" ")[0] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    if mount and mount[1] not in mounts:
        yield _Fault(
            f"descriptor {fd}", target, "it is a POSIX message queue, or was opened outside the sandbox",
            "close it before the checkpoint",
        )  # fmt: skip


def _file_faults(where: str, target: str, path: str) -> Iterator[_Fault]:
    if not target.startswith("/dev/") and not target.endswith(" (deleted)"):
        return
    status = os.stat(path)
    if stat.S_ISCHR(status.st_mode) and not _is_known_device(os.major(status.st_rdev), os.minor(status.st_rdev)):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        yield _Fault(where, target, f"the state in device {number} cannot be saved", "close it before the checkpoint")
    elif stat.S_ISBLK(status.st_mode):
        yield _Fault(where, target, "a block device cannot be saved", "close it before the checkpoint")
    elif stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_blocks * 512 > GHOST_LIMIT:
        size = f"{status.st_blocks * 512 >> 20} MiB"
        yield _Fault(
            where, target, f"an unlinked file of {size} is more than the {GHOST_LIMIT >> 20} MiB that can go along",
            "close it, shorten it, or give it a name again",
        )  # fmt: skip


def _is_known_device(major: int, minor: int) -> bool:
    if major == _MEM:
        return minor in _MEMORY_DEVICES
    if major == _MISC:
        return minor == _TUN
    return major in (_TTY, _TTYAUX) or major in _PTY or major in _SERIAL


def _watch_faults(pid: int, fd: str) -> Iterator[_Fault]:
    """Watches on file systems that hand out no file handles: the watched file cannot be named again."""
    watched = re.findall(r"sdev:([0-9a-f]+) .*", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
    if not watched:
        return
    kinds = _file_systems(pid)
    for device in sorted(set(watched)):
        kind = kinds.get(int(device, 16), "")
        if kind in _WATCHLESS:
            yield _Fault(
                f"descriptor {fd}", "inotify", f"it watches something on {kind}, which cannot be named again",
                "remove that watch before the checkpoint", blocking=False,
            )  # fmt: skip


def _file_systems(pid: int) -> dict[int, str]:
    """Types of the mounted file systems by device number, as inotify's fdinfo writes it (major << 20 | minor)."""
    kinds: dict[int, str] = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        major, minor = fields[2].split(":")
        kinds[int(major) << 20 | int(minor)] = fields[fields.index("-") + 1]
    return kinds


def _mapping_faults(pid: int) -> Iterator[_Fault]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        name = fields[5] if len(fields) > 5 else ""
        if name.startswith("anon_inode:") and "aio" not in name:
            yield _Fault(f"mapping {fields[0]}", name, "memory of this kind cannot be saved", "unmap it first")
        elif name.startswith("/dev/") and not name.startswith(("/dev/zero", "/dev/shm/", "/dev/null")):  # noqa: S108
            yield _Fault(f"mapping {fields[0]}", name, "memory of a device cannot be saved", "close the device first")
