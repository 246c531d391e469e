"""Durable writes: the only place that calls fsync, and the only way state reaches the disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from thawbox.errors import LockTimeout


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


def remove_tree(path: Path) -> None:
    """Remove a directory tree; nothing happens if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def private_directory(path: Path) -> Path:
    """Make `path` (and its parents) root-only if it is missing, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path, *, timeout: float, shared: bool = False, what: str = "") -> Iterator[None]:
    """Hold an advisory lock on the file `path` (made if missing) for the block.

    Raises LockTimeout after `timeout` seconds. The lock goes with the process, however it dies.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, flags)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeout(
                        f"{what or path} was held by another command for {timeout:g} s",
                        remediation="wait for that command to end, then retry",
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        os.close(fd)
