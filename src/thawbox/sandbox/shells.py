"""Bringing up and taking down what a sandbox lives in: directories, cgroups, network, namespaces.

Rule 1: `raise_shell` leaves nothing when it fails; `remove_remains` may be called for anything, any number of times.
Rule 2: the journal names a thing before it is made (see journal.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import uuid
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from thawbox.errors import Incompatible
from thawbox.host import network
from thawbox.host.cgroup import remove_node_group
from thawbox.host.cgroup_limits import Limits
from thawbox.host.files import remove_tree
from thawbox.host.inside import open_inside
from thawbox.host.mounts import OverlayMount, ShellPlan, prepared_steps, remaining_steps, shell_steps
from thawbox.host.namespaces import WaitingShell, begin_shell, destroy_shell, encode_plan, reap, start_shell
from thawbox.host.proc import send_signal, start_time, wait_gone
from thawbox.host.rootfs import Rootfs, RootfsKind, reopen, resolve
from thawbox.host.tree_copies import copy_attributes
from thawbox.model import Net, Spec
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.uppers import PRIVATE, overlay_name, prepare_upper, write_names

_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Shell:
    """A raised shell: pid 1 of its namespaces, by host pid and start time."""

    keeper: int
    started: int


def generation_directory(context: Context, record: Record) -> Path:
    return context.directory(record.id) / str(record.generation)


def upper_directory(context: Context, record: Record, overlay: str) -> Path:
    """The writable layer of the overlay called `root`, `usr`, …"""
    return generation_directory(context, record) / overlay / "upper"


def open_private(context: Context, record: Record, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of `/.thawbox/NAME` in the sandbox's own writable layer, whether it runs or not.

    No link on the way is followed: the sandbox could have planted one. Raises OSError as os.open does.
    """
    upper = os.open(upper_directory(context, record, "root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_inside(upper, f"/{PRIVATE}/{name}", flags, follow_symlinks=False)
    finally:
        os.close(upper)


def open_log(context: Context, record: Record) -> int:
    """A descriptor of the directory in which init keeps its log: whole there after a restore too."""
    return open_private(context, record, "log", os.O_RDONLY | os.O_DIRECTORY)


def rootfs_of(context: Context, spec: Spec, kind: RootfsKind, *, digest: str) -> Rootfs:
    """The rootfs that a sandbox or snapshot was made over; raises Incompatible when this node has another."""
    if kind is RootfsKind.DIRECTORY:
        return resolve(spec.rootfs, context.rootfs_cache)
    found = reopen(kind, digest, context.rootfs_cache) or resolve(spec.rootfs, context.rootfs_cache)
    if found.digest != digest:
        raise Incompatible(
            f"it was made over another {spec.rootfs} rootfs ({digest[:12]}) than this node has ({found.digest[:12]})",
            remediation="restore it on the node that made it, or bring that rootfs here",
        )
    return found


def root_layers(context: Context, record: Record) -> tuple[Path, ...]:
    """Every directory that makes up the sandbox's `/`, topmost first."""
    rootfs = rootfs_of(context, record.spec, record.rootfs_kind, digest=record.rootfs_digest)
    return (upper_directory(context, record, "root"), *_frozen_layers(context, record, "root"), *rootfs.root_lowers)


def _frozen_layers(context: Context, record: Record, overlay: str) -> tuple[Path, ...]:
    return tuple(context.store.layout.tree(digest) for digest in reversed(record.layers.get(overlay, ())))


def raise_shell(
    context: Context, record: Record, rootfs: Rootfs, *, start_init: bool, clock_offsets: str = ""
) -> Shell:
    """Make the sandbox's directories, cgroups, network and namespaces; with `start_init`, its init and program run.

    `clock_offsets` are written into its time namespace.

    Raises StartFailed, InvalidSpec, Unsupported; everything made so far is then gone.
    """
    with ExitStack() as undo, _filter(context) as filter_fd:
        plan = _make_place(context, record, rootfs, undo, start_init=start_init, filter_fd=filter_fd)
        plan = replace(plan, wait_for_network=record.spec.net is Net.NAT, clock_offsets=clock_offsets)
        undo.callback(_remove_network, context, record)
        keeper = start_shell(
            context.programs.launcher, shell_steps(plan), filter_fd=filter_fd,
            before_go=lambda pid: _add_network(context, record, pid),
        )  # fmt: skip
        undo.callback(destroy_shell, keeper)
        started = start_time(keeper) or 0  # a short program has ended already: nothing runs that started then
        undo.pop_all()
        return Shell(keeper, started)


@dataclass(frozen=True, slots=True)
class ReadyShell:
    """A shell kept ready for a restored tree. `record` says whose it is unless it is given another name.

    It ends with the process that prepared it; its directories and cgroups are then removed by the next node.
    """

    record: Record
    waiting: WaitingShell
    started: int
    plan: ShellPlan

    def is_alive(self) -> bool:
        return start_time(self.waiting.pid) == self.started


def prepare_shell(context: Context, record: Record, rootfs: Rootfs) -> ReadyShell:
    """Make a shell as `raise_shell` does, less what is not known yet: name, network and clocks.

    Raises as `raise_shell`; everything made so far is then gone.
    """
    with ExitStack() as undo, _filter(context) as filter_fd:
        plan = _make_place(context, record, rootfs, undo, start_init=False, filter_fd=filter_fd)
        waiting = begin_shell(context.programs.launcher, prepared_steps(plan), filter_fd=filter_fd)
        undo.callback(waiting.destroy)
        ready = ReadyShell(record, waiting, start_time(waiting.pid) or 0, plan)
        undo.pop_all()
        return ready


def use_shell(context: Context, ready: ReadyShell, record: Record, *, clock_offsets: str) -> Shell:
    """Let a shell become the one of `record`, which has its id and machine id; a tree may be restored into it now.

    Its last steps are under way: `ready.waiting.wait_done` tells how they went. The caller destroys it on failure.
    """
    if (record.hostname, record.address) != (ready.record.hostname, ready.record.address):
        # nothing has looked into the overlay yet, so nothing remembers what stood there
        overlay = ready.plan.overlays[0]
        write_names(record, overlay.upper, overlay.lowers)
    plan = replace(ready.plan, hostname=record.hostname, clock_offsets=clock_offsets)
    ready.waiting.go_on(encode_plan(remaining_steps(plan)))
    _add_network(context, record, ready.waiting.pid)
    return Shell(ready.waiting.pid, ready.started)


@contextlib.contextmanager
def _filter(context: Context) -> Generator[int]:
    """A descriptor of the seccomp filter, to be read by the launcher."""
    with os.fdopen(os.memfd_create("seccomp"), "wb") as compiled:
        compiled.write(context.seccomp_filter)
        compiled.flush()
        yield compiled.fileno()


def _make_place(
    context: Context, record: Record, rootfs: Rootfs, undo: ExitStack, *, start_init: bool, filter_fd: int
) -> ShellPlan:
    """Make a sandbox's directories and cgroups, which `undo` removes; the plan of its namespaces."""
    directory = generation_directory(context, record)
    undo.callback(remove_tree, directory)
    directory.mkdir(mode=0o700, parents=True)
    overlays = tuple(
        _overlay(context, record, directory, overlay.mountpoint, overlay.lowers) for overlay in rootfs.overlays
    )
    prepare_upper(context, record, rootfs, overlays[0].upper, overlays[0].lowers, fresh=start_init)
    root = directory / "mount"
    root.mkdir(mode=0o755)
    cgroup = context.cgroup(record.id)
    undo.callback(cgroup.remove)
    cgroup.create(_limits(record))
    return ShellPlan(
        root=root, overlays=overlays, hostname=record.hostname, keeper_procs=cgroup.keeper_procs,
        tree_procs=cgroup.tree_procs, capabilities=context.capabilities, mounts=record.spec.mounts,
        read_only=record.spec.read_only, filter_fd=filter_fd, start_init=start_init,
        boot_id=_write_boot_id(directory, record), placeholder=record.placeholder,
    )  # fmt: skip


def _limits(record: Record) -> Limits:
    """Its own limits; in a placeholder the pod's hold, which the cluster's scheduler counted on."""
    if record.placeholder:
        return Limits()
    return Limits(memory=record.spec.memory, cpus=record.spec.cpus, pids=record.spec.pids)


def _write_boot_id(directory: Path, record: Record) -> Path:
    """A file with the sandbox's own boot id: the same after every restore, another in every clone."""
    path = directory / "boot_id"
    digest = hashlib.sha256(f"boot {record.id} {record.machine_id}".encode()).digest()
    path.write_text(f"{uuid.UUID(bytes=digest[:16], version=4)}\n")
    path.chmod(0o444)
    return path


def _overlay(context: Context, record: Record, directory: Path, target: str, lowers: tuple[Path, ...]) -> OverlayMount:
    name = overlay_name(target)
    own = directory / name
    for part in ("upper", "work"):
        (own / part).mkdir(mode=0o755, parents=True)
    frozen = _frozen_layers(context, record, name)
    if frozen:  # an overlay's own directory has the attributes of its writable layer
        copy_attributes(str(frozen[0]), str(own / "upper"), frozen[0].stat())
    return OverlayMount(target, frozen + lowers, own / "upper", own / "work")


def remove_remains(context: Context, record: Record) -> None:
    """End every process of the sandbox and remove what the kernel holds of it; its files stay. Any number of times."""
    if record.keeper_pid:
        send_signal(record.keeper_pid, signal.SIGKILL, started=record.keeper_started)
    cgroup = context.cgroup(record.id)
    cgroup.kill_all()  # thaws what was frozen: a frozen task dies only then, and pid 1 waits for all of them
    if record.keeper_pid:
        # It left its cgroup when it began to end, and is no child to be collected until it has ended.
        wait_gone(record.keeper_pid, started=record.keeper_started, timeout=_END_SECONDS)
        reap(record.keeper_pid, block=False)
    cgroup.remove()
    if record.placeholder:
        remove_node_group(cgroup.layout, context.tag, cgroup.placement)
    _remove_network(context, record)


def _link_of(context: Context, record: Record) -> network.NatLink:
    return network.NatLink(
        node_tag=context.tag, sandbox_id=record.id, address=IPv4Address(record.address),
        subnet=IPv4Network(context.settings.subnet), publish=record.spec.publish,
    )  # fmt: skip


def _add_network(context: Context, record: Record, keeper: int) -> None:
    if record.spec.net is Net.NAT:
        _link_of(context, record).create(pid=keeper)


def _remove_network(context: Context, record: Record) -> None:
    if record.spec.net is Net.NAT and record.address:
        _link_of(context, record).remove()
