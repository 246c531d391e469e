"""The writable layer of a sandbox: what stands in it before the first program runs, and its copy in a snapshot."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from thawbox.host.identity import Identity, lookup_user, write_identity
from thawbox.host.init_client import CONTROL_SOCKET
from thawbox.host.init_wire import ExecRequest, encode_config
from thawbox.host.layers import Layers
from thawbox.host.network import host_nameservers
from thawbox.host.rootfs import Rootfs
from thawbox.model import Net
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record

PRIVATE = ".thawbox"
"""Init's own directory at the root of every sandbox: its program, configuration, socket, logs."""

_DEVICE_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}  # fmt: skip

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SANDBOX_ENVIRONMENT = {
    "PATH": DEFAULT_PATH,
    "LANG": "C.UTF-8",
    # libuv asks for io_uring, which CRIU cannot freeze; seccomp refuses it, this saves the attempt
    "UV_USE_IO_URING": "0",
}


def overlay_name(mountpoint: str) -> str:
    """The word for an overlay in snapshots: `/` is `root`, `/usr` is `usr`."""
    return mountpoint.strip("/").replace("/", "_") or "root"


def overlay_path(name: str) -> str:
    """Where the overlay of that word is seen, without the first slash: `root` is the empty path."""
    return "" if name == overlay_name("/") else name


def prepare_upper(
    context: Context, record: Record, rootfs: Rootfs, upper: Path, lowers: tuple[Path, ...], *, fresh: bool
) -> None:
    """Fill the new, empty writable layer of `/`: identity always; with `fresh`, also devices and init's directory."""
    write_names(record, upper, lowers)
    if fresh:
        upper.chmod(0o755)
        _make_directories(upper)
        _make_private(context, record, rootfs, upper / PRIVATE)
    else:
        _bring_log(lowers, upper / PRIVATE)
        _hide_socket(lowers, upper / PRIVATE)


def write_names(record: Record, upper: Path, lowers: tuple[Path, ...]) -> None:
    """Write what names the sandbox into the layer, in place of what names another."""
    nameservers = host_nameservers() if record.spec.net is Net.NAT else ()
    write_identity(upper, lowers, Identity(record.hostname, record.machine_id, record.address, nameservers))


def _bring_log(lowers: tuple[Path, ...], private: Path) -> None:
    """Copy init's log files up: the log of a restored sandbox is whole in its own layer, readable when it is dead.

    The layers hold what a sandbox wrote: no link in them may lead to a file of the host.
    """
    private.mkdir(mode=0o700)
    log = private / "log"
    log.mkdir(mode=0o700)
    found = Layers(lowers).find(f"/{PRIVATE}/log")
    if found.inside != (PRIVATE, "log"):
        return
    seen: set[str] = set()
    for directory in found.real:
        for file in directory.iterdir():
            if file.name not in seen and stat.S_ISREG(file.lstat().st_mode):
                source = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                with os.fdopen(source, "rb") as content, (log / file.name).open("xb") as target:
                    shutil.copyfileobj(content, target)
                    os.fchmod(target.fileno(), stat.S_IMODE(os.fstat(source).st_mode))
            seen.add(file.name)


def _hide_socket(lowers: tuple[Path, ...], private: Path) -> None:
    """Hide init's old socket: a restore removes it before it listens anew, which costs a mounted overlay more."""
    if Layers(lowers).find(CONTROL_SOCKET).real:
        os.mknod(private / Path(CONTROL_SOCKET).name, stat.S_IFCHR, 0)


def _make_directories(upper: Path) -> None:
    for name, mode in (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("dev/pts", 0o755), ("dev/shm", 0o1777)):
        directory = upper / name
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
    # What the rootfs itself has below /dev is hidden: an opaque directory.
    os.setxattr(upper / "dev", "trusted.overlay.opaque", b"y")
    for name, target in _DEVICE_LINKS.items():
        (upper / "dev" / name).symlink_to(target)


def _make_private(context: Context, record: Record, rootfs: Rootfs, private: Path) -> None:
    spec = record.spec
    user = lookup_user(rootfs.root_lowers, spec.user)
    private.mkdir(mode=0o700)
    (private / "log").mkdir(mode=0o700)
    shutil.copyfile(context.programs.init, private / "init")
    (private / "init").chmod(0o755)
    environment = SANDBOX_ENVIRONMENT | rootfs.defaults.env | {"HOME": user.home} | spec.env
    main = ExecRequest(
        argv=spec.command, env=environment, uid=user.uid, gid=user.gid, groups=user.groups,
        cwd=spec.workdir if spec.workdir != "/" else rootfs.defaults.workdir,
    )  # fmt: skip
    (private / "config").write_bytes(encode_config(main))
