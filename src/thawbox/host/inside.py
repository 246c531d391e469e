"""Opening what lies inside a running sandbox's root, so that nothing planted in there can lead out to the host.

Every path is resolved by the kernel (openat2) as if the sandbox's root were the file system's root: absolute symlinks
and `..` stay inside, magic links (`/proc/PID/root`, `/proc/PID/fd/N`) are refused. Linux 5.6 or later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct

from thawbox.errors import InvalidRequest, NotFound
from thawbox.host.proc import start_time

_SYS_OPENAT2 = 437  # the same number on every architecture (syscalls added since 5.0 share one table)
_RESOLVE_NO_MAGICLINKS = 0x02  # linux/openat2.h
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_RACES = 64  # openat2 answers EAGAIN when a rename races with `..`; it says nothing about the next try

_TIMEVAL = struct.Struct("@ll")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_root(pid: int, *, started: int | None = None) -> int:
    """An O_PATH descriptor of the root directory that process `pid` sees; the caller closes it.

    With `started` (see `proc.start_time`) the pid must still belong to the process it was noted for.
    Raises NotFound when that process is gone.
    """
    try:
        root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} is gone") from None
    if started is not None and start_time(pid) != started:
        os.close(root_fd)
        raise NotFound(f"process {pid} is gone and its number was given to another")
    return root_fd


def open_inside(
    root_fd: int, path: str | bytes, flags: int = os.O_RDONLY, mode: int = 0, *, follow_symlinks: bool = True
) -> int:
    """Open `path` inside the root that `root_fd` names, as `os.open` would after a chroot; the caller closes it.

    `mode` counts only with O_CREAT. A FIFO or device never blocks the open (O_NONBLOCK is added), but the caller
    must look at what it got. Raises OSError as `os.open` does; ELOOP for a magic link, or for any symlink where
    `follow_symlinks` is false; InvalidRequest for a path that holds a NUL byte.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise InvalidRequest("the path holds a NUL byte")
    extra = os.O_CLOEXEC if flags & os.O_PATH else os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    resolve = _RESOLVE_IN_ROOT | (_RESOLVE_NO_MAGICLINKS if follow_symlinks else _RESOLVE_NO_SYMLINKS)
    how = _OpenHow(flags | extra, mode if flags & (os.O_CREAT | os.O_TMPFILE) else 0, resolve)
    cause = errno.EAGAIN
    for _ in range(_RACES):
        fd = _libc.syscall(
            _SYS_OPENAT2, root_fd, ctypes.c_char_p(raw), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if fd >= 0:
            return int(fd)
        if (cause := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(cause, os.strerror(cause), os.fsdecode(raw))


def connect_inside(pid: int, path: str, *, started: int | None = None, timeout: float = 10.0) -> socket.socket:
    """A stream connection to the unix socket `path` inside the root of process `pid`; `timeout` is seconds.

    No symlink is followed on the way. Raises NotFound when the process or the socket is not there, or when nobody
    listens on it; TimeoutError when its queue of connections stayed full.
    """
    root_fd = open_root(pid, started=started)
    try:
        fd = open_inside(root_fd, path, os.O_PATH, follow_symlinks=False)
    except FileNotFoundError:
        raise NotFound(f"there is no {path} inside process {pid}'s root") from None
    finally:
        os.close(root_fd)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise NotFound(f"{path} inside process {pid}'s root is not a socket")
        return _connected(f"/proc/self/fd/{fd}", path, timeout)
    finally:
        os.close(fd)


def _connected(address: str, path: str, timeout: float) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Blocking, with the kernel's own limit: a non-blocking connect fails at once where the queue is full.
        link.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(int(timeout * 1_000_000), 1_000_000))
        )
        link.connect(address)
        link.settimeout(timeout)
    except BlockingIOError:
        link.close()
        raise TimeoutError(f"nobody took a connection to {path} within {timeout:g} s") from None
    except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
        link.close()
        raise NotFound(f"nobody listens on {path}") from None
    except BaseException:
        link.close()
        raise
    return link
