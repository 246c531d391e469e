"""Sandboxes inside a placeholder: namespaces and limits that somebody else made, a Kubernetes pod's for instance.

The placeholder's main process does nothing. A sandbox that is made in it has its network, its host name and, through a
group below its own, its limits. The sandbox's pid namespace is a child of the placeholder's: every pid of the tree is
free in there, whatever the placeholder runs, and the kernel ends the tree with the placeholder. Its files are the
snapshot's, not the placeholder's, whose own overlay nobody touches.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from thawbox.errors import InvalidRequest, NotFound
from thawbox.model import Net
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record


def enter_placeholder(context: Context, record: Record, undo: ExitStack) -> None:
    """Note whose groups the sandbox's own are made below; `undo` notes again what was before.

    Raises NotFound, InvalidRequest.
    """
    groups = read_groups(record.placeholder)
    if record.spec.net is not Net.NONE:
        raise InvalidRequest(
            f"{record.name} brings a network of its own into a placeholder, which has one",
            remediation="make the template without --net nat",
        )
    _note(context, record, groups, undo)


def leave_placeholder(context: Context, record: Record, undo: ExitStack) -> None:
    """Have the groups of a sandbox below the node's own from now on; `undo` notes again what was before."""
    _note(context, record, None, undo)


def _note(context: Context, record: Record, groups: str | None, undo: ExitStack) -> None:
    file = context.placeholder_groups(record.id)
    try:
        before = file.read_text()
    except FileNotFoundError:
        before = None
    if before != groups:
        undo.callback(_write, file, before)
        _write(file, groups)


def _write(file: Path, groups: str | None) -> None:
    if groups is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_text(groups)


def read_groups(pid: int) -> str:
    """The `/proc/PID/cgroup` of a placeholder; raises NotFound, and InvalidRequest for a process of the host itself."""
    try:
        if Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink():
            raise InvalidRequest(
                f"process {pid} has no pid namespace of its own",
                remediation="name the main process of a pod that does not share the host's (hostPID: false)",
            )
        return Path(f"/proc/{pid}/cgroup").read_text()
    except FileNotFoundError:
        raise NotFound(f"there is no placeholder {pid}", remediation="name the pid of its main process") from None
