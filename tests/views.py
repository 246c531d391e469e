"""A process tree as the host sees it through /proc, with what must differ between two lives of it taken out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from thawbox.node import Node
from thawbox.sandbox import Sandbox

_NUMBERED = re.compile(r"^(socket|pipe):\[\d+\]$")
_OPENING_FLAGS = os.O_DIRECTORY | os.O_TMPFILE | 0o100000
"""Flags that matter while a file is opened (and O_LARGEFILE, which CRIU always gives): they are not kept."""
INIT, MAIN = 2, 3
"""Our own init: it is questioned between two looks, so its memory is not compared."""
_STATUS = (
    "Name", "Umask", "NSpid", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt",
    "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """One process. Descriptors are `fd: target flags`, maps are `from-to rights offset path` with neighbours joined."""

    descriptors: tuple[str, ...]
    maps: tuple[str, ...]
    environment: bytes
    command: bytes
    executable: str
    directory: str
    root: str
    status: tuple[str, ...]
    limits: str
    threads: tuple[str, ...]
    parent: int


def tree_of(node: Node, sandbox: Sandbox) -> dict[int, View]:
    """Every process of the sandbox by its pid inside, the keeper left out; zombies have no descriptors and no maps.

    The sandbox is frozen, or else does not change its descriptors and maps meanwhile.
    """
    members = node.context.cgroup(sandbox.id).pids() - {sandbox.record.keeper_pid}
    inner = {pid: _inner_pid(pid) for pid in members}
    return {inner[pid]: _view(pid, inner) for pid in sorted(members, key=inner.__getitem__)}


def seen_while_frozen(node: Node, sandbox: Sandbox, *, at_rest: Mapping[str, Any] | None = None) -> dict[int, View]:
    """The tree at a moment in which its main program is as `at_rest` says (workloads/answering.py), or at any."""
    while True:
        sandbox.freeze()
        seen = tree_of(node, sandbox)
        sandbox.thaw()
        if at_rest is None or _is_at_rest(seen[MAIN], at_rest):
            return seen


def _is_at_rest(program: View, at_rest: Mapping[str, Any]) -> bool:
    """A moment in which it answers has a descriptor more, one in which it handles a signal blocks that signal."""
    return len(program.descriptors) == at_rest["descriptors"] and f"SigBlk: {at_rest['blocked']}" in program.status


def host_pid(node: Node, sandbox: Sandbox, inner: int) -> int:
    """The host's pid of the process that is `inner` in the sandbox."""
    (found,) = [pid for pid in node.context.cgroup(sandbox.id).pids() if _inner_pid(pid) == inner]
    return found


def _inner_pid(pid: int) -> int:
    return int(_status(pid)["NSpid"].split()[-1])


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _view(pid: int, inner: dict[int, int]) -> View:
    proc = Path(f"/proc/{pid}")
    status = _status(pid)
    status["NSpid"] = status["NSpid"].split()[-1]
    for pending in ("SigPnd", "ShdPnd"):  # what is not blocked is only just arriving
        status[pending] = f"{int(status[pending], 16) & int(status['SigBlk'], 16):x}"
    tasks = sorted((proc / "task").iterdir(), key=lambda task: int(task.name))
    return View(
        descriptors=_descriptors(proc),
        maps=_maps(proc) if int(status["NSpid"]) != INIT else (),
        environment=(proc / "environ").read_bytes(),
        command=(proc / "cmdline").read_bytes(),
        executable=_link(proc / "exe"),
        directory=_link(proc / "cwd"),
        root=_link(proc / "root"),
        status=tuple(f"{key}: {status[key]}" for key in _STATUS if key in status),
        limits=(proc / "limits").read_text(),
        threads=tuple((task / "comm").read_text().strip() for task in tasks),
        parent=inner.get(int(status["PPid"]), 0),
    )


def _link(path: Path) -> str:
    with contextlib.suppress(OSError):
        return _NUMBERED.sub(r"\1", str(path.readlink()))
    return ""


def _descriptors(proc: Path) -> tuple[str, ...]:
    found = {}
    for fd in (proc / "fd").iterdir():
        detail = (proc / "fdinfo" / fd.name).read_text()
        flags, offset = (re.search(rf"{name}:\s*(\d+)", detail) for name in ("flags", "pos"))
        assert flags is not None
        assert offset is not None
        kept = int(flags[1], 8) & ~_OPENING_FLAGS
        found[int(fd.name)] = f"{_link(fd)} flags {kept:o} offset {offset[1]}"
    return tuple(f"{fd}: {found[fd]}" for fd in sorted(found))


def _maps(proc: Path) -> tuple[str, ...]:
    """The kernel joins and splits neighbours of the same kind as it likes, so they are joined here."""
    joined: list[tuple[int, int, str, int, str]] = []
    with contextlib.suppress(ProcessLookupError):
        for line in (proc / "maps").read_text().splitlines():
            span, rights, offset, _device, inode, *path = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in span.split("-"))
            name = (path[0] if path else "").replace("/memfd:/dev/zero", "/dev/zero")  # CRIU's way to make it again
            at = int(offset, 16)
            last = joined[-1] if joined else (0, 0, "", 0, "")
            goes_on = inode == "0" or at == last[3] + begin - last[0]
            if last[1:3] == (begin, rights) and last[4] == name and goes_on:
                joined[-1] = (last[0], end, rights, last[3], name)
            else:
                joined.append((begin, end, rights, at, name))
    return tuple(f"{begin:x}-{end:x} {rights} {offset:x} {name}" for begin, end, rights, offset, name in joined)


def assert_same(before: dict[int, View], after: dict[int, View], *, own_memory: bool = True) -> None:
    """Fail with every line in which two trees differ.

    Without `own_memory`, maps of files alone are compared: a garbage collector takes and gives back the others.
    """
    found = _differences(before, after)
    if not own_memory:
        found = [line for line in found if " maps " not in line or " /" in line]
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def _differences(before: dict[int, View], after: dict[int, View]) -> list[str]:
    found = [f"process {pid} is only in one of them" for pid in sorted(set(before) ^ set(after))]
    for pid in sorted(set(before) & set(after)):
        old, new = asdict(before[pid]), asdict(after[pid])
        for name in old:
            if old[name] == new[name]:
                continue
            if isinstance(old[name], tuple):
                found += [f"{pid} {name} before: {line}" for line in old[name] if line not in new[name]]
                found += [f"{pid} {name} after: {line}" for line in new[name] if line not in old[name]]
            else:
                found.append(f"{pid} {name} before: {old[name]!r} after: {new[name]!r}")
    return found
