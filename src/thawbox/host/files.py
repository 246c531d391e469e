"""Files of ours. Durable writes: the only place that calls fsync, and the only way state reaches the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Generator
from pathlib import Path

from thawbox.errors import LockTimeout
from thawbox.host.proc import run_program

_CHUNK = 1 << 16


def fsync_path(path: Path) -> None:
    """Flush one file or directory entry list to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `content` so that a crash leaves the old file or the new one, whole."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.rename(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `content`, whole or not at all for whoever reads it; not made to outlive a power failure."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        staging.rename(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def flush(fd: int) -> None:
    """Flush what was written through an open descriptor, without its times, to the disk."""
    os.fdatasync(fd)


def names_in(directory: Path) -> list[str]:
    """The names in a directory, as text; empty if it is not there."""
    try:
        return os.listdir(directory)  # noqa: PTH208 — names are wanted, not a Path for each
    except FileNotFoundError:
        return []


def is_same_content(one: Path, other: Path) -> bool:
    """Whether two regular files hold the same bytes; reads them, 64 KiB at a time."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as mine, other.open("rb") as theirs:
        return all(chunk == theirs.read(_CHUNK) for chunk in iter(lambda: mine.read(_CHUNK), b""))


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one filesystem and flush the directory it arrives in: a crash leaves it here or there, whole."""
    source.rename(target)
    fsync_path(target.parent)


_SYNCFS_FROM = 32
"""Files from which one flush of the whole filesystem is cheaper than a flush of each file (200 small files: 5 to 13 ms
against 66 to 112 on ext4)."""


def sync_tree(root: Path) -> None:
    """Flush every file and directory of a tree to the disk. Links, devices and sockets go with their directory."""
    directories: list[Path] = [root]
    found: list[Path] = []
    for directory in directories:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
    if len(found) + len(directories) >= _SYNCFS_FROM:
        sync_filesystem(root)
        return
    for path in (*found, *reversed(directories)):
        fsync_path(path)


def sync_filesystem(path: Path) -> None:
    """Flush the whole filesystem that `path` is on."""
    import ctypes

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed", str(path))
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory tree, however deep; nothing happens if it is not there."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):  # somebody else is removing it too, and got ahead of us somewhere below
            remove_tree(path)
    except (RecursionError, OSError) as error:
        # rmtree keeps a frame and a descriptor per level; a program in a sandbox may nest deeper than that.
        # And a program whose caller was killed may write into the tree until it notices.
        tried = {errno.EMFILE, errno.ENAMETOOLONG, errno.ENOTEMPTY}
        if isinstance(error, OSError) and error.errno not in tried:
            raise
        removed = run_program(["rm", "-rf", "--", str(path)], timeout=600)
        if removed.status != 0:
            raise OSError(
                errno.ENOTEMPTY, f"cannot be removed: {removed.stderr.decode(errors='replace')}", str(path)
            ) from error


def private_directory(path: Path) -> Path:
    """Make `path` (and its parents) root-only if it is missing, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path, *, timeout: float, shared: bool = False, what: str = "") -> Generator[None]:
    """Hold an advisory lock on the file `path` (made if missing) for the block.

    Raises LockTimeout after `timeout` seconds. The lock goes with the process, however it dies. A lock file may be
    removed by whoever holds it alone: those who waited for it then take the new one.
    """
    fd = take_lock(path, timeout=timeout, shared=shared, what=what)
    try:
        yield
    finally:
        os.close(fd)


def take_lock(path: Path, *, timeout: float, shared: bool = False, what: str = "") -> int:
    """The same lock as a descriptor: held until it is closed, here and wherever it was passed on to."""
    deadline = time.monotonic() + timeout
    while (fd := _lock(path, shared=shared)) is None:
        if time.monotonic() >= deadline:
            raise LockTimeout(
                f"{what or path} was held by another command for {timeout:g} s",
                remediation="wait for that command to end, then retry",
            )
        time.sleep(_LOCK_PAUSE)
    return fd


_LOCK_PAUSE = 0.002
"""flock cannot wait for a time: seconds between two tries."""


def _lock(path: Path, *, shared: bool) -> int | None:
    """A descriptor that holds the lock, or None if another has it or removed the file meanwhile."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
