"""CRIU's RPC: one request over a socket pair to `criu swrk`, run inside a sandbox's namespaces.

Message formats: `images/rpc.proto` of CRIU; the protocol: https://criu.org/RPC.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from thawbox.engines.proto import rpc_pb2
from thawbox.host.namespaces import ANY_PID, Entrance, enter_program
from thawbox.host.proc import wait_gone

MESSAGE_LIMIT = 1 << 20
"""More than CRIU ever sends; a message is one packet."""

FEATURES = "criu.kdat"
RPC_CONFIG = "rpc.conf"
LOG = "criu.log"
STDERR = "criu.stderr"


class CriuGone(Exception):
    """CRIU ended, or was ended for its time, without an answer."""


@dataclass(frozen=True, slots=True)
class CriuProgram:
    """A statically linked criu, the tmpfs directory of its kernel-feature cache, and the launcher that starts it."""

    binary: Path
    cache: Path
    launcher: Path


Notified = Mapping[str, Callable[[], None]]


def request(
    program: CriuProgram,
    entrance: Entrance,
    message: rpc_pb2.criu_req,
    *,
    images: Path,
    work: Path,
    timeout: float,
    on: Notified,
    freezer: Path | None = None,
) -> rpc_pb2.criu_resp:
    """Run one dump or restore and return CRIU's answer.

    `on` maps names of CRIU's notifications (`post-dump`, `post-restore`, …) to what is done then; an exception from
    one makes CRIU abort and roll back, and is raised again from here. `freezer` is the cgroup directory that holds a
    frozen tree; like every other path it is given as a descriptor, since criu sees the sandbox's mounts. Log and
    statistics are written to `work`.
    Raises CriuGone when CRIU dies or takes longer than `timeout` seconds.
    """
    learn_kernel(program, timeout=timeout)
    with ExitStack() as undo:
        images_fd = undo.enter_context(_opened(images))
        work_fd = undo.enter_context(_opened(work))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.enter_context(ours)
        undo.enter_context(theirs)
        (work / RPC_CONFIG).write_text(f"work-dir /proc/self/fd/{work_fd}\n")
        message.opts.images_dir_fd = -1
        message.opts.images_dir = f"/proc/self/fd/{images_fd}"
        message.opts.config_file = f"/proc/self/fd/{work_fd}/{RPC_CONFIG}"
        message.opts.log_file = LOG
        message.opts.notify_scripts = bool(on)
        errors = undo.enter_context((work / STDERR).open("wb"))
        keep = [theirs.fileno(), images_fd, work_fd]
        if freezer is not None:
            keep.append(undo.enter_context(_opened(freezer)))
            message.opts.freeze_cgroup = f"/proc/self/fd/{keep[-1]}"
        running = enter_program(
            program.launcher, entrance, undo.enter_context(_opened(program.binary)),
            ["criu", "swrk", str(theirs.fileno())], run_directory_fd=undo.enter_context(_opened(program.cache)),
            keep=keep, stderr=errors.fileno(),
        )  # fmt: skip
        undo.callback(_finish, running)
        theirs.close()
        return converse(ours, message, on, timeout=timeout)


def learn_kernel(program: CriuProgram, *, timeout: float) -> None:
    """Fill the kernel-feature cache if it is empty.

    It is done on the host: criu makes directories in /tmp meanwhile, which a sandbox may not have or may be keeping
    read-only. What goes wrong here is told by the dump or restore that follows.
    """
    if (program.cache / FEATURES).is_file():
        return
    with _opened(program.cache) as cache, _opened(program.binary) as binary:
        running = enter_program(
            program.launcher, Entrance(os.getpid(), pids_above=ANY_PID), binary, ["criu", "check"],
            run_directory_fd=cache, keep=(),
        )  # fmt: skip
        try:
            running.wait(timeout)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def converse(ours: socket.socket, message: rpc_pb2.criu_req, on: Notified, *, timeout: float) -> rpc_pb2.criu_resp:
    """Ask over a connection to `criu swrk` and answer its notifications; see `request`."""
    deadline = time.monotonic() + timeout
    kind = message.type
    try:
        ours.send(message.SerializeToString())
    except OSError as error:
        raise CriuGone(f"criu does not listen: {error}") from error
    failure: BaseException | None = None
    while True:
        answer = _receive(ours, deadline)
        if answer.type != rpc_pb2.NOTIFY:
            if failure is not None:
                raise failure
            if answer.type not in (kind, rpc_pb2.EMPTY):
                raise CriuGone(f"criu answered with message type {answer.type}")
            return answer
        try:
            on.get(answer.notify.script, _nothing)()
        except BaseException as error:  # noqa: BLE001 - raised again once CRIU has rolled back
            failure = error
        reply = rpc_pb2.criu_req(type=rpc_pb2.NOTIFY, notify_success=failure is None)
        try:
            ours.send(reply.SerializeToString())
        except BrokenPipeError:
            raise failure or CriuGone("criu ended in the middle of its work") from None


def _receive(ours: socket.socket, deadline: float) -> rpc_pb2.criu_resp:
    ours.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        packet = ours.recv(MESSAGE_LIMIT)
    except TimeoutError:
        raise CriuGone("criu did not answer in time and was ended") from None
    except ConnectionResetError:
        packet = b""
    if not packet:
        raise CriuGone("criu ended without an answer")
    answer = rpc_pb2.criu_resp()
    try:
        answer.ParseFromString(packet)
    except DecodeError as error:
        raise CriuGone(f"criu's answer cannot be read: {error}") from None
    return answer


def _finish(running: subprocess.Popen[bytes]) -> None:
    """Give CRIU, which has answered or is to be ended, a moment to leave by itself."""
    if not wait_gone(running.pid, timeout=1.0):
        running.send_signal(signal.SIGKILL)
    running.wait()


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _nothing() -> None:
    pass
