"""What a node leaves behind: everything that is there because of one home directory, and of this process.

Other nodes and other programs run on the same machine, so things count only if they can be traced to the home: by its
path, or by the node's tag, which names its cgroups, devices and nftables table.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from thawbox.node import node_tag

CGROUPS = Path("/sys/fs/cgroup")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "uts", "user")
TMPFS = (Path("/run"), Path("/dev/shm"))
_OF_SQLITE = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Traces:
    """Each field is sorted text, so that pytest shows what came and what went."""

    mounts: tuple[str, ...]
    cgroups: tuple[str, ...]
    namespaces: tuple[str, ...]
    processes: tuple[str, ...]
    zombies: tuple[str, ...]
    devices: tuple[str, ...]
    caches: tuple[str, ...]
    files: tuple[str, ...]
    descriptors: tuple[str, ...]
    threads: tuple[str, ...]

    def of_kernel(self) -> dict[str, tuple[str, ...]]:
        """What must be gone when the node's last sandbox is: all but files, descriptors and threads of this process."""
        kept = {"files", "descriptors", "threads"}
        return {name: found for name, found in asdict(self).items() if found and name not in kept}


def assert_unchanged(before: Traces, after: Traces) -> None:
    """Fail with everything that came or went; what CRIU keeps on tmpfs for the next time is none of it."""
    old, new = asdict(replace(before, caches=())), asdict(replace(after, caches=()))
    came = [f"{name} + {one}" for name in new for one in new[name] if one not in old[name]]
    went = [f"{name} - {one}" for name in old for one in old[name] if one not in new[name]]
    if came or went:
        pytest.fail("\n".join(came + went), pytrace=False)


def take_traces(home: Path) -> Traces:
    tag = node_tag(home)
    processes = dict(_processes(str(home), tag))
    return Traces(
        mounts=_lines(Path("/proc/self/mountinfo"), str(home)),
        cgroups=_sorted(_cgroups(f"thawbox-{tag}")),
        namespaces=_sorted({name for pid in processes for name in _namespaces(pid)} - set(_namespaces(os.getpid()))),
        processes=_sorted(f"{pid} {what}" for pid, what in processes.items()),
        zombies=_sorted(_zombies()),
        devices=_sorted(_devices(tag)),
        caches=_sorted(str(path) for tmpfs in TMPFS for path in tmpfs.glob(f"thawbox-{tag}")),
        files=_sorted(_files(home)),
        descriptors=_sorted(_descriptors()),
        threads=_sorted(thread.name for thread in threading.enumerate()),
    )


def _sorted(found: Iterator[str] | set[str]) -> tuple[str, ...]:
    return tuple(sorted(found))


def _lines(path: Path, holding: str) -> tuple[str, ...]:
    return tuple(line for line in path.read_text().splitlines() if holding in line)


def _cgroups(group: str) -> Iterator[str]:
    """The groups below the node's own, of every hierarchy. Others come and go meanwhile, which os.walk forgives."""
    for directory, names, _files in os.walk(CGROUPS):
        if directory.endswith(f"/{group}"):
            yield from (f"{directory}/{name}" for name in names)


def _processes(home: str, tag: str) -> Iterator[tuple[int, str]]:
    """Processes in one of the node's cgroups, over one of its overlays, or started with its home or tag as argument."""
    for directory in Path("/proc").glob("[0-9]*"):
        if int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # a zombie has no mounts and cannot be asked for them
            seen = command + (directory / "cgroup").read_text()
            with contextlib.suppress(OSError):
                seen += (directory / "mountinfo").read_text()
            if home in seen or f"thawbox-{tag}" in seen:
                yield int(directory.name), command.strip() or (directory / "comm").read_text().strip()


def _namespaces(pid: int) -> list[str]:
    found = []
    for name in NAMESPACES:
        with contextlib.suppress(OSError):
            found.append(str(Path(f"/proc/{pid}/ns/{name}").readlink()))
    return found


def _zombies() -> Iterator[str]:
    """Children of this process that ended and were not waited for."""
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                stat = Path(f"/proc/{pid}/stat").read_text()
                if stat[stat.rindex(")") + 2] == "Z":
                    yield f"{pid} {stat}"


def _devices(tag: str) -> Iterator[str]:
    for device in Path("/sys/class/net").iterdir():
        with contextlib.suppress(OSError):
            if tag in (device / "ifalias").read_text():
                yield device.name


def _files(home: Path) -> Iterator[str]:
    for directory, names, files in os.walk(home):
        yield from (f"{directory}/{name}" for name in (*names, *files) if not name.endswith(_OF_SQLITE))


def _descriptors() -> Iterator[str]:
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(fd.readlink())
            if not target.endswith("/fd"):  # the directory that is being listed
                yield f"{fd.name} {target}"
