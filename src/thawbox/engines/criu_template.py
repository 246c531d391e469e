"""Template servers: a CRIU process that holds a snapshot's memory and forks its restores, copy on write.

Needs our patch 0005 to CRIU (native/criu/README.md). A clone made this way differs in nothing from
one restored from the files, but that it shares every page it does not write.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from thawbox.engines.criu_rpc import LOG, RPC_CONFIG, CriuGone, CriuProgram, Notified, converse, learn_kernel
from thawbox.engines.proto import rpc_pb2
from thawbox.errors import EngineError, RestoreFailed, Unsupported
from thawbox.host.namespaces import Entrance
from thawbox.host.proc import start_program
from thawbox.telemetry import NOBODY, Telemetry

_IMAGES_FD, _WORK_FD = 901, 902
_NAMESPACES = ("cgroup", "time", "uts", "net", "mnt")
_LOAD_SECONDS = 120.0
_END_SECONDS = 10.0
_LAST_STEPS = 1.0
"""Seconds after which a server whose connection has ended, and who is there still, did not end."""
_PHASES = ("fork", "cgroups", "namespaces")
"""Those that the server answers with, in its order."""
_CREDENTIALS = struct.Struct("=3i")  # struct ucred, unix(7): pid, uid, gid


if TYPE_CHECKING:
    from thawbox.engines.criu_template_table import Table


class TemplateGone(Exception):
    """The server died before it took the request: nothing has happened yet, and the files are still there."""


class TemplateServers:
    """The template servers of one node, by snapshot, each until it dies or is dropped. How many is for others to say.

    Safe to use from several threads. A restore that runs keeps its server's process alive by itself.
    """

    def __init__(self, *, telemetry: Telemetry = NOBODY) -> None:
        self._lock = threading.Lock()
        self._telemetry = telemetry
        self._servers: dict[Path, TemplateServer] = {}

    def find(self, images: Path) -> TemplateServer | None:
        """The living server of this images directory."""
        with self._lock:
            server = self._servers.get(images)
            if server is None or server.is_alive():
                return server
            del self._servers[images]
        server.close()
        return None

    def start(self, program: CriuProgram, chain: Sequence[Path]) -> bool:
        """See that the newest of `chain` has a server; False where criu has not our patch or cannot load it."""
        if self.find(chain[-1]) is not None:
            return True
        try:
            server = TemplateServer(program, chain)
        except (EngineError, Unsupported) as error:
            self._telemetry.happened("engine.warm-refused", code=error.code)
            return False
        with self._lock:
            superfluous = self._servers.get(chain[-1])
            if superfluous is not None and superfluous.is_alive():  # somebody was faster, and may have clones of it
                superfluous = server
            else:
                self._servers[chain[-1]] = server
        if superfluous is not None:
            superfluous.close()
        return True

    def drop(self, images: Path) -> None:
        """End the server of this images directory, if there is one."""
        with self._lock:
            server = self._servers.pop(images, None)
        if server is not None:
            server.close()

    def close(self) -> None:
        """End every server; clones run on."""
        with self._lock:
            servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.close()


class TemplateServer:
    """The memory of one snapshot, held by a process of its own. Usable from several threads; `close` ends it.

    Its end harms no clone. Raises Unsupported where this criu has no template servers, RestoreFailed when the images
    cannot be loaded.
    """

    def __init__(self, program: CriuProgram, chain: Sequence[Path]) -> None:
        self._lock = threading.Lock()
        self._program = program
        self._images = chain[-1]
        from thawbox.engines.criu_template_table import make_table  # numpy: 0.15 s, and only needed here

        learn_kernel(program, timeout=_LOAD_SECONDS)
        table = make_table(chain)
        with ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(ours)
            with theirs:
                self._process = start_program(
                    [str(program.binary), "template", str(theirs.fileno())], pass_fds=[theirs.fileno()]
                )
            undo.callback(_end, self._process)
            _load(ours, self._process, program.cache, table)
            self._socket = ours
            self._undo = undo.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _has_ended(self) -> bool:
        """Whether it is dead, or on its last steps: its connections end a moment before it does."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_STEPS)
        return not self.is_alive()

    def close(self) -> None:
        self._undo.close()

    def request(
        self, entrance: Entrance, message: rpc_pb2.criu_req, *, work: Path, timeout: float, on: Notified,
        forked: Callable[[int, Mapping[str, float]], None],
    ) -> rpc_pb2.criu_resp:  # fmt: skip
        """One restore, as `criu_rpc.request`, by a fork of the server; `forked` is told its pid and the seconds of its
        phases.

        Raises TemplateGone when the server is dead, CriuGone as `criu_rpc.request`.
        """
        message.opts.images_dir_fd = -1
        message.opts.images_dir = f"/proc/self/fd/{_IMAGES_FD}"
        (work / RPC_CONFIG).write_text(f"work-dir /proc/self/fd/{_WORK_FD}\n")
        message.opts.config_file = f"/proc/self/fd/{_WORK_FD}/{RPC_CONFIG}"
        message.opts.log_file = LOG
        message.opts.notify_scripts = bool(on)
        with ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(ours)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with theirs, _descriptors(entrance, self._images, work) as fds:
                try:
                    with self._lock:
                        socket.send_fds(self._socket, [b"clone %d" % entrance.pids_above], [theirs.fileno(), *fds])
                except OSError as error:
                    raise TemplateGone(f"the template server is gone: {error}") from error
            answer = _answer(ours, timeout=timeout)
            if answer is None and self._has_ended():
                raise TemplateGone("the template server ended before it forked")
            if answer is None:
                raise CriuGone("the template server's fork could not enter the sandbox")
            forked(*answer)
            return converse(ours, message, on, timeout=timeout)


def _answer(connection: socket.socket, *, timeout: float) -> tuple[int, dict[str, float]] | None:
    """The pid, by the kernel's word, of the fork at the other end, and the seconds that each phase took it; None if
    it ended without a word, or there never was one."""
    connection.settimeout(timeout)
    try:
        said, credentials, _, _ = connection.recvmsg(256, socket.CMSG_SPACE(_CREDENTIALS.size))
    except TimeoutError:
        raise CriuGone("the template server did not answer in time") from None
    except ConnectionResetError:
        said, credentials = b"", []
    if not said:
        return None
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    pid = _CREDENTIALS.unpack(credentials[0][2])[0]
    return pid, {name: int(word) / 1e9 for name, word in zip(_PHASES, said.split(), strict=True)}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def _descriptors(entrance: Entrance, images: Path, work: Path) -> Generator[list[int]]:
    """What a clone needs, in the order of enum template_fd, less the connection."""
    process = f"/proc/{entrance.pid}/ns"
    paths: list[tuple[str | Path, int]] = [
        (images, os.O_RDONLY), (work, os.O_RDONLY),
        ("/proc/sys/kernel/ns_last_pid", os.O_WRONLY),
        *((f"{process}/{name}", os.O_RDONLY) for name in (*_NAMESPACES, "pid")),
        *((procs, os.O_WRONLY) for procs in entrance.cgroup_procs),
    ]  # fmt: skip
    with ExitStack() as undo:
        fds: list[int] = []
        for path, flags in paths:
            fds.append(os.open(path, flags | os.O_CLOEXEC))
            undo.callback(os.close, fds[-1])
        yield fds


def _load(connection: socket.socket, process: subprocess.Popen[bytes], cache: Path, table: Table) -> None:
    with ExitStack() as undo:
        cache_fd = os.open(cache, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, cache_fd)
        holder = undo.enter_context(os.fdopen(os.memfd_create("template"), "wb"))
        holder.write(table.content)
        holder.flush()
        opened = [undo.enter_context(file.open("rb")) for file in table.files]
        fds = [cache_fd, holder.fileno(), *(file.fileno() for file in opened)]
        connection.settimeout(_LOAD_SECONDS)
        try:
            socket.send_fds(connection, [b"load"], fds)
            answer = connection.recv(256)
        except OSError:
            answer = b""
        if not answer and _does_not_know_the_command(process):
            raise Unsupported(
                "this criu has no template servers: it lacks our patch 0005",
                remediation="unset THAWBOX_CRIU and run `make setup`; till then clones read their memory from files",
            )
        if answer != b"ready":
            raise RestoreFailed(f"the template server could not load its snapshot: {answer.decode() or 'it ended'}")
        connection.settimeout(None)


def _does_not_know_the_command(process: subprocess.Popen[bytes]) -> bool:
    """Whether this is a criu that ended for want of the command; a server says why before it ends, or was killed."""
    try:
        return process.wait(timeout=_END_SECONDS) > 0
    except subprocess.TimeoutExpired:
        return False
