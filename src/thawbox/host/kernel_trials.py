"""What the kernel must be able to do for thawbox, found out by doing it. Each function returns what it saw.

All raise OSError or Unsupported when the kernel cannot, and leave nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import tempfile
import time
from pathlib import Path

from thawbox.errors import Unsupported
from thawbox.host.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
)
from thawbox.host.trial import MS_PRIVATE, MS_REC, call_kernel, call_libc, in_child, mount, unshare

_NAMESPACES = {
    "mount": CLONE_NEWNS, "pid": CLONE_NEWPID, "network": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC,
    "cgroup": CLONE_NEWCGROUP,
}  # fmt: skip

# System calls that got their number after 2019 have the same one on every architecture.
_OPEN_TREE, _CLONE3, _OPENAT2, _PIDFD_GETFD, _MOUNT_SETATTR = 428, 435, 437, 438, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _ATTR_RDONLY = 1, 0x1000, 1
_RESOLVE_IN_ROOT = 0x10

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg), include/uapi/linux/fs.h; the structure has 96 bytes."""
_PAGE_IS_PRESENT = 1 << 3
_SOFT_DIRTY_BIT = 1 << 55
"""Of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)."""


def namespaces() -> str:
    """Every kind of namespace but time, made in one step as a sandbox makes them."""

    def trial() -> str:
        for name, flag in _NAMESPACES.items():
            unshare(flag, what=f"a {name} namespace")
        return ", ".join(_NAMESPACES)

    return in_child(trial)


def time_namespace() -> str:
    """A time namespace in which the monotonic clock is shifted."""
    shift = 86_400

    def trial() -> str:
        before = time.monotonic()
        unshare(CLONE_NEWTIME, what="a time namespace")
        Path("/proc/self/timens_offsets").write_text(f"monotonic {shift} 0\n")

        def look() -> str:
            if not shift <= time.monotonic() - before < shift + 60:
                raise Unsupported("the monotonic clock was not shifted")
            return "the monotonic clock can be shifted"

        return in_child(look)

    return in_child(trial)


def chosen_pids() -> str:
    """A process with the pid asked for, both ways: the last pid of a pid namespace, and clone3 with set_tid."""

    def trial() -> str:
        unshare(CLONE_NEWPID | CLONE_NEWNS, what="a pid namespace")
        return in_child(inside)

    def inside() -> str:
        mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
        mount("proc", Path("/proc"), kind="proc")
        Path("/proc/sys/kernel/ns_last_pid").write_text("4999")
        if (got := _child_pid(os.fork())) != 5000:
            raise Unsupported(f"ns_last_pid was set to 4999, and the next process got pid {got}")
        if (got := _child_pid(_fork_with_pid(7000))) != 7000:
            raise Unsupported(f"clone3 was asked for pid 7000 and gave {got}")
        return "ns_last_pid and clone3 with set_tid"

    return in_child(trial)


def _child_pid(forked: int) -> int:
    if forked == 0:
        os._exit(0)
    os.waitpid(forked, 0)
    return forked


def _fork_with_pid(pid: int) -> int:
    wanted = (ctypes.c_int * 1)(pid)
    # struct clone_args, linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size
    arguments = struct.pack("10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    return call_kernel(_CLONE3, arguments, ctypes.c_size_t(len(arguments)), what="clone3 with set_tid")


def overlay(directory: Path) -> str:
    """An overlay with thawbox's options whose writable layer lies in `directory`, written to and deleted from."""
    with tempfile.TemporaryDirectory(prefix=".thawbox-doctor-", dir=directory) as scratch:
        places = {name: Path(scratch, name) for name in ("lower", "upper", "work", "merged")}
        for place in places.values():
            place.mkdir()
        (places["lower"] / "old").write_text("old")
        options = (
            f"lowerdir={places['lower']},upperdir={places['upper']},workdir={places['work']},"
            "volatile,index=on,nfs_export=on,redirect_dir=nofollow,metacopy=off"
        )

        def trial() -> str:
            unshare(CLONE_NEWNS, what="a mount namespace")
            mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
            mount("overlay", places["merged"], kind="overlay", options=options)
            (places["merged"] / "new").write_text("new")
            (places["merged"] / "old").unlink()
            return "overlay with volatile, index, nfs_export"

        said = in_child(trial)
        whiteout = (places["upper"] / "old").lstat()
        if whiteout.st_rdev != 0 or (places["upper"] / "new").read_text() != "new":
            raise Unsupported("what was written to the overlay is not in its upper directory")
    return said


def mount_attributes() -> str:
    """A bind mount taken by descriptor and made read-only before anything can see it."""

    def trial() -> str:
        unshare(CLONE_NEWNS, what="a mount namespace")
        tree = call_kernel(_OPEN_TREE, -1, b"/", _OPEN_TREE_CLONE, what="open_tree")
        attributes = struct.pack("4Q", _ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns_fd
        call_kernel(
            _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(len(attributes)),
            what="mount_setattr",
        )  # fmt: skip
        if not os.fstatvfs(tree).f_flag & os.ST_RDONLY:
            raise Unsupported("mount_setattr did not make a mount read-only")
        return "open_tree and mount_setattr"

    return in_child(trial)


def tmpfs(directory: Path) -> str:
    """That `directory`, where CRIU keeps what it found out about the kernel, is on a tmpfs."""
    magic = 0x01021994  # TMPFS_MAGIC, linux/magic.h
    place = directory
    while not place.exists():
        place = place.parent
    # struct statfs begins with f_type, a word; 256 bytes hold all of it on every architecture.
    buffer = ctypes.create_string_buffer(256)
    call_libc("statfs", os.fsencode(place), buffer, what=f"statfs {place}")
    if struct.unpack_from("l", buffer.raw)[0] != magic:
        raise Unsupported(f"{place} is not on a tmpfs")
    return str(place)


def seccomp_filter() -> str:
    """A seccomp filter that answers one system call with an error and lets all others pass."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        raise Unsupported(f"no system call numbers known for {os.uname().machine}")
    getppid = 110 if os.uname().machine == "x86_64" else 173

    def trial() -> str:
        # Classic BPF: load the number; equal to getppid: fail with EXDEV (18); else allow (linux/seccomp.h).
        program = b"".join(
            struct.pack("HBBI", *instruction)
            for instruction in ((0x20, 0, 0, 0), (0x15, 0, 1, getppid), (6, 0, 0, 0x00050012), (6, 0, 0, 0x7FFF0000))
        )
        code = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        call_libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, what="no_new_privs")
        call_libc("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0, what="a seccomp filter")
        with contextlib.suppress(OSError):
            call_kernel(getppid, what="getppid")
            raise Unsupported("the filter was accepted and does not filter")
        return "filters work"

    return in_child(trial)


def pidfds() -> str:
    """Descriptors for processes: opened, signalled, waited for, and one taken from another process."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        fd = os.pidfd_open(pid)
        try:
            os.close(call_kernel(_PIDFD_GETFD, fd, 2, 0, what="pidfd_getfd"))
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not select.select([fd], [], [], 5)[0]:
                raise Unsupported("a pidfd did not tell the end of its process")
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return "open, signal, wait, getfd"


def confined_open() -> str:
    """openat2 with RESOLVE_IN_ROOT: an absolute link inside a directory that leads nowhere else."""
    with tempfile.TemporaryDirectory(prefix="thawbox-doctor-") as scratch:
        Path(scratch, "link").symlink_to("/etc/passwd")
        root = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
        try:
            how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
            os.close(call_kernel(_OPENAT2, root, b"link", how, ctypes.c_size_t(len(how)), what="openat2"))
        except FileNotFoundError:
            return "links stay inside"
        finally:
            os.close(root)
    raise Unsupported("openat2 followed a link out of its root")


def soft_dirty() -> str:
    """Soft-dirty bits: clear with a page written before, set again by a write after clear_refs."""

    def trial() -> str:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        Path("/proc/self/clear_refs").write_text("4")
        clean = _pagemap_entry(address)
        page[0] = 2
        dirty = _pagemap_entry(address)
        if clean & _SOFT_DIRTY_BIT or not dirty & _SOFT_DIRTY_BIT:
            raise Unsupported("writes leave no soft-dirty bit")
        return "the kernel tracks written pages"

    return in_child(trial)


def _pagemap_entry(address: int) -> int:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        return int.from_bytes(pagemap.read(8), "little")


def pagemap_scan() -> str:
    """The PAGEMAP_SCAN ioctl finding one present page."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    view = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(view)
    try:
        regions = ctypes.create_string_buffer(24)
        # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
        # category_mask, category_anyof_mask, return_mask
        argument = struct.pack(
            "12Q", 96, 0, address, address + mmap.PAGESIZE, 0, ctypes.addressof(regions), 1, 0,
            0, _PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT,
        )  # fmt: skip
        with Path("/proc/self/pagemap").open("rb") as pagemap:
            found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(argument))
    finally:
        del view
        page.close()
    if found != 1:
        raise Unsupported(f"one page is present and {found} regions were found")
    return "PAGEMAP_SCAN works"


def netfilter() -> str:
    """A network namespace in which nftables can be spoken to."""

    def trial() -> str:
        unshare(CLONE_NEWNET, what="a network namespace")
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as link:  # NETLINK_NETFILTER
            link.bind((0, 0))
            # nlmsghdr and nfgenmsg: NFT_MSG_GETGEN (16) of subsystem nftables (10), flags request
            link.send(struct.pack("=IHHII", 20, (10 << 8) | 16, 1, 1, 0) + struct.pack("=BBH", 0, 0, 0))
            kind = struct.unpack_from("=IH", link.recv(4096))[1]
            if kind != (10 << 8) | 15:  # NFT_MSG_NEWGEN
                raise Unsupported("the kernel knows no nftables")
        return "nftables answers"

    return in_child(trial)
