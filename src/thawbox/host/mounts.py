"""What a sandbox sees: the plan of namespaces, mounts and privileges that thawbox-launch carries out.

Rule 1: this module decides and does nothing; `namespaces.start_shell` carries the plan out.
Rule 2: every mount is made in the sandbox's own mount namespace, so that the host has nothing to unmount.
Rule 3: no path is resolved inside the rootfs before the pivot, and no path of the host after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import Unsupported
from thawbox.host.namespaces import PLACED_NAMESPACES, SHELL_NAMESPACES, Step
from thawbox.model import Mount

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4

OVERLAY_OPTIONS_LIMIT = 4095
"""mount(2) takes one page of options."""

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
"""Device nodes a sandbox has, bound from the host's; its own mounts forbid devices, so it cannot make others."""

# The field's default lists (runc, containerd, CRI-O): what of /proc and /sys says or does too much.
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/cgroup",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
ALWAYS_WRITABLE = ("/.thawbox", "/dev/shm")  # noqa: S108 - a directory of the sandbox's own overlay, not a tmpfs

INIT = "/.thawbox/init"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class OverlayMount:
    """One overlay: where it is seen (`/` first), its lower directories, newest first, and its writable pair."""

    target: str
    lowers: tuple[Path, ...]
    upper: Path
    work: Path


@dataclass(frozen=True, slots=True)
class ShellPlan:
    """Everything that decides how a sandbox's namespaces look. `capabilities` is a bit mask.

    `start_init` starts pid 2 from the rootfs; without it the shell waits for a restored tree. `clock_offsets` are for
    its time namespace (time_namespaces(7)); empty: the machine's clocks. `boot_id` is a file that is seen as the
    kernel's boot id, which all sandboxes of a machine share. `placeholder` is the host pid of a process whose network,
    host name and pid namespace the shell is to be made in; 0: none.
    """

    root: Path
    overlays: tuple[OverlayMount, ...]
    hostname: str
    keeper_procs: tuple[Path, ...]
    tree_procs: tuple[Path, ...]
    capabilities: int
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False
    filter_fd: int | None = None
    wait_for_network: bool = False
    start_init: bool = True
    clock_offsets: str = ""
    boot_id: Path | None = None
    placeholder: int = 0


def shell_steps(plan: ShellPlan) -> list[Step]:
    """The steps that make the shell; raises Unsupported when an overlay has more layers than mount(2) can name."""
    return _until_mounted(plan) + _to_the_end(plan)


def prepared_steps(plan: ShellPlan) -> list[Step]:
    """The steps of a shell that is kept ready: all that can be done before it is known whose it will be."""
    return [*_until_mounted(plan), ("rest",)]


def remaining_steps(plan: ShellPlan) -> list[Step]:
    """The steps that make a shell kept ready the one of `plan`, which may have another hostname and other clocks."""
    retime: list[Step] = [("retime", plan.clock_offsets)] if plan.clock_offsets else []
    return [("hostname", plan.hostname), *retime, *_to_the_end(plan)]


def _until_mounted(plan: ShellPlan) -> list[Step]:
    steps: list[Step] = [("cgroup", str(path)) for path in plan.keeper_procs]
    steps += [("tree", str(path)) for path in plan.tree_procs]
    if plan.clock_offsets:
        steps.append(("clock", plan.clock_offsets))
    if plan.placeholder:
        steps.append(("join", str(plan.placeholder)))
    steps.append(("unshare", hex(PLACED_NAMESPACES if plan.placeholder else SHELL_NAMESPACES)))
    if plan.wait_for_network:
        steps.append(("wait",))
    steps += [("hostname", plan.hostname), ("loopback",)]
    steps += [_overlay_step(plan.root, overlay) for overlay in plan.overlays]
    mounts = [*plan.mounts, *([Mount(str(plan.boot_id), BOOT_ID, read_only=True)] if plan.boot_id else [])]
    sources = [f"/dev/{name}" for name in DEVICES] + [mount.source for mount in mounts]
    steps += [("source", source) for source in sources]
    steps.append(("pivot", str(plan.root)))
    steps += _kernel_mounts()
    steps += [("bind", str(index), f"/dev/{name}", "0") for index, name in enumerate(DEVICES)]
    steps += [_bind_step(len(DEVICES) + index, mount) for index, mount in enumerate(mounts)]
    if plan.read_only:
        steps += [("writable", path) for path in ALWAYS_WRITABLE]
        steps += [("seal", overlay.target) for overlay in plan.overlays]
    steps += [("readonly", path) for path in READ_ONLY]
    steps += [("mask", path) for path in MASKED]
    return steps


def _to_the_end(plan: ShellPlan) -> list[Step]:
    steps: list[Step] = [("capabilities", hex(plan.capabilities))]
    if plan.filter_fd is not None:
        steps.append(("seccomp", str(plan.filter_fd)))
    if plan.start_init:
        steps.append(("spawn", INIT, "init"))
    steps.append(("become", INIT, "hold"))
    return steps


def _overlay_step(root: Path, overlay: OverlayMount) -> Step:
    lowers = ":".join(_escaped(path) for path in overlay.lowers)
    # volatile: unmounting need not write the disk; a snapshot is made durable in the store, not here.
    # index, nfs_export: file handles, so that inotify watches can be dumped and hard links stay links.
    options = (
        f"lowerdir={lowers},upperdir={_escaped(overlay.upper)},workdir={_escaped(overlay.work)},"
        "volatile,index=on,nfs_export=on,redirect_dir=nofollow,metacopy=off"
    )
    if len(options) > OVERLAY_OPTIONS_LIMIT:
        raise Unsupported(
            f"the rootfs has {len(overlay.lowers)} layers, more than one overlay mount can name",
            remediation="flatten the snapshot with `thawbox snapshots flatten`",
        )
    target = str(root) if overlay.target == "/" else f"{root}{overlay.target}"
    return ("mount", "overlay", target, str(MS_NOSUID | MS_NODEV), options)


def _escaped(path: Path) -> str:
    text = str(path)
    for special in ("\\", ":", ","):
        text = text.replace(special, "\\" + special)
    return text


def _kernel_mounts() -> list[Step]:
    closed = MS_NOSUID | MS_NODEV | MS_NOEXEC
    return [
        ("mount", "proc", "/proc", str(closed), ""),
        ("mount", "sysfs", "/sys", str(closed | MS_RDONLY), ""),
        ("mount", "devpts", "/dev/pts", str(MS_NOSUID | MS_NOEXEC), "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ]


def _bind_step(index: int, mount: Mount) -> Step:
    attributes = ATTR_NOSUID | ATTR_NODEV | (ATTR_RDONLY if mount.read_only else 0)
    return ("bind", str(index), mount.target, str(attributes))
