"""Trials: something done in a child process, whose namespaces, mounts and descriptors go with it.

Rule 1: what a trial does is undone by the end of its process; files it makes lie in a directory its caller removes.
Rule 2: a trial starts no program and takes no lock, so that forking is safe whatever threads there are.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from thawbox.errors import Unsupported

MS_REC, MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def in_child(trial: Callable[[], str], *, timeout: float = 5.0) -> str:
    """What `trial` returns, called in a forked child; raises Unsupported with its error's words, or when it hangs."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_and_exit(trial, write_end)
    os.close(write_end)
    try:
        said = _read_to_end(read_end, time.monotonic() + timeout)
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said is None:
        raise Unsupported(f"no answer within {timeout:g} s")
    if not said.startswith(b"+"):
        raise Unsupported(said[1:].decode(errors="replace") or "the trial's process died")
    return said[1:].decode(errors="replace")


def _run_and_exit(trial: Callable[[], str], answer: int) -> None:
    said = "-"
    try:
        said = "+" + trial()
    except Unsupported as error:
        said = f"-{error.cause}"
    except OSError as error:
        said = f"-{error.strerror or error}"
    finally:
        os.write(answer, said.encode())
        os._exit(0)


def _read_to_end(fd: int, deadline: float) -> bytes | None:
    said = b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(fd, 4096)
        if not chunk:
            return said
        said += chunk


def call_libc(name: str, *arguments: object, what: str = "") -> int:
    """The result of a C function; raises OSError, naming `what`, when it is -1."""
    result = int(getattr(_libc, name)(*arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what or name}: {os.strerror(code)}")
    return result


def call_kernel(number: int, *arguments: object, what: str) -> int:
    """The result of a system call by number; raises OSError, naming `what`, when it fails."""
    return call_libc("syscall", ctypes.c_long(number), *arguments, what=what)


def unshare(flags: int, *, what: str) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    call_libc("unshare", ctypes.c_int(flags), what=what)


def mount(source: str, target: Path, *, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    words = [os.fsencode(word) for word in (source, str(target), kind, options)]
    call_libc(
        "mount", words[0], words[1], words[2] or None, ctypes.c_ulong(flags), words[3] or None,
        what=f"mount {kind or source} ({options})" if options else f"mount {kind or source}",
    )  # fmt: skip
