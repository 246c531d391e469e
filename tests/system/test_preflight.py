"""Preflight against real sandboxes: what CRIU cannot freeze is named before it is tried, and nothing else is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guests import SETUP, evaluate, interpreter, run
from thawbox.errors import DumpFailed, Unsupported
from thawbox.host.preflight import GHOST_LIMIT, examine
from thawbox.host.proc import children
from thawbox.model import Mount, Phase
from thawbox.node import Node

IO_URING_SETUP, USERFAULTFD = 425, 323


def test_a_sandbox_with_everything_that_can_be_frozen_has_no_findings_and_is_frozen(node: Node) -> None:
    setup = (
        SETUP
        + """
import ctypes, mmap, pty, select, signal, subprocess, tempfile, threading
libc = ctypes.CDLL(None)
held = [os.eventfd(0), libc.timerfd_create(1, 0), libc.inotify_init1(0), os.pidfd_open(os.getpid()), select.epoll(),
        os.memfd_create("some"), tempfile.TemporaryFile(), *socket.socketpair(), *os.pipe(), *pty.openpty(),
        open("/dev/null"), open("/dev/urandom", "rb"), open("/dev/zero", "rb"), open("/proc/self/status"),
        socket.socket(socket.AF_INET6), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_NETLINK, 3, 0),
        socket.create_server(("127.0.0.1", 7100)), socket.create_connection(("127.0.0.1", 7100)), mmap.mmap(-1, 9999)]
mask = ctypes.create_string_buffer(b"\\0\\2" + bytes(126), 128)
held.append(libc.signalfd(-1, mask, 8, 0))
child = subprocess.Popen(["sleep", "1000"])
if os.fork() == 0: os._exit(0)
"""
    )
    sandbox = interpreter(node, setup)
    assert sandbox.preflight() == ()
    assert sandbox.checkpoint().clone().state is Phase.RUNNING


def test_a_traced_process_is_named_with_its_tracer_and_nothing_is_stopped(node: Node) -> None:
    setup = """
import ctypes, signal
libc = ctypes.CDLL(None)
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
"""
    sandbox = interpreter(node, setup)
    (finding,) = sandbox.preflight()
    assert (finding.where, finding.what, finding.blocking) == ("process", "ptrace", True)
    assert [finding.pid, finding.cause] == evaluate(sandbox, "[child, f'process {os.getpid()} (python3) traces it']")
    with pytest.raises(Unsupported, match=rf"process {finding.pid} \(python3\).*ptrace.*python3.*traces it"):
        sandbox.checkpoint()
    assert sandbox.state is Phase.RUNNING
    run(sandbox, "os.kill(child, 9)\nos.waitpid(child, 0)")
    assert sandbox.preflight() == ()
    sandbox.checkpoint()


def test_a_big_unlinked_file_is_named_and_can_be_frozen_once_it_is_small(node: Node) -> None:
    sandbox = interpreter(node, "file = open('/var/big', 'wb')\nos.unlink('/var/big')")
    run(sandbox, f"os.posix_fallocate(file.fileno(), 0, {GHOST_LIMIT + (1 << 20)})")
    with pytest.raises(Unsupported, match=r"descriptor .*/var/big.*unlinked file of 257 MiB"):
        sandbox.checkpoint()
    run(sandbox, "file.truncate(10)")
    sandbox.checkpoint()


def test_the_engine_carries_what_preflight_says_it_carries() -> None:
    from thawbox.engines import criu

    assert criu.GHOST_LIMIT == GHOST_LIMIT


def test_watches_on_kernel_file_systems_are_a_warning(node: Node) -> None:
    setup = "import ctypes\nlibc = ctypes.CDLL(None)\nwatch = libc.inotify_init1(0)\n"
    sandbox = interpreter(node, setup + "libc.inotify_add_watch(watch, b'/proc/self/status', 2)")
    (finding,) = sandbox.preflight()
    assert (finding.what, finding.blocking) == ("inotify", False)
    assert "proc" in finding.cause


CONNECT = "import socket\nlink = socket.socket(socket.AF_UNIX)\nlink.connect('/mnt/listens')"
ACCEPT = """
import os, socket
server = socket.socket(socket.AF_UNIX); server.bind('/mnt/accepts'); server.listen(); os.chmod('/mnt/accepts', 0o666)
"""


@pytest.mark.parametrize("who", ["the sandbox", "the sandbox, unheard", "the host"])
def test_a_unix_socket_whose_other_end_is_outside_is_named_until_it_is_closed(
    node: Node, tmp_path: Path, who: str
) -> None:
    (shown := tmp_path / "shown").mkdir()
    mounts = (Mount(str(shown), "/mnt"),)
    with socket.socket(socket.AF_UNIX) as host:
        if who != "the host":
            host.bind(str(shown / "listens"))
            host.listen()
            sandbox = interpreter(node, CONNECT, mounts=mounts)
            ends = [host.accept()[0]] if who == "the sandbox" else []
        else:
            ends = []
            sandbox = interpreter(node, ACCEPT, mounts=mounts)
            host.connect(str(shown / "accepts"))
            run(sandbox, "link, _ = server.accept()")
        descriptor, process = evaluate(sandbox, "[link.fileno(), os.getpid()]")
        (finding,) = sandbox.preflight()
        assert (finding.pid, finding.where, finding.blocking) == (process, f"descriptor {descriptor}", True)
        assert "outside" in finding.cause
        with pytest.raises(Unsupported, match=rf"process {process} \(python3\), descriptor {descriptor}: socket"):
            sandbox.checkpoint()
        assert sandbox.state is Phase.RUNNING
        run(sandbox, "link.close()")
        for end in ends:
            end.close()
        assert sandbox.preflight() == ()
        sandbox.checkpoint()


def test_a_socket_on_its_way_between_processes_is_not_taken_for_one_outside(node: Node) -> None:
    setup = """
import socket
a, b = socket.socketpair()
c, d = socket.socketpair()
socket.send_fds(a, [b"x"], [c.fileno()])
c.close()
"""
    sandbox = interpreter(node, setup)
    assert not [finding for finding in sandbox.preflight() if finding.blocking]
    clone = sandbox.checkpoint().clone()
    sent = "_, (fd,), _, _ = socket.recv_fds(b, 9, 1)\nos.write(fd, b'hello')\nanswer = d.recv(9).decode()"
    assert run(clone, sent) == "hello"


def test_a_message_queue_is_named(node: Node) -> None:
    setup = "import ctypes\nqueue = ctypes.CDLL(None).mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None)"
    sandbox = interpreter(node, setup)
    queue = evaluate(sandbox, "queue")
    assert queue > 0
    (finding,) = sandbox.preflight()
    assert (finding.where, finding.what, finding.blocking) == (f"descriptor {queue}", "/queue", True)
    with pytest.raises(Unsupported, match=rf"descriptor {queue}: /queue: it is a POSIX message queue"):
        sandbox.checkpoint()
    run(sandbox, "os.close(queue)")
    sandbox.checkpoint()


def test_what_only_the_engine_finds_is_named_in_its_failure(node: Node, tmp_path: Path) -> None:
    (shown := tmp_path / "shown").mkdir()
    with socket.socket(socket.AF_UNIX) as host, (tmp_path / "outside").open("w") as file:
        sandbox = interpreter(node, ACCEPT, mounts=(Mount(str(shown), "/mnt"),))
        host.connect(str(shown / "accepts"))
        socket.send_fds(host, [b"x"], [file.fileno()])
        run(sandbox, "link, _ = server.accept()\n_, (fd,), _, _ = socket.recv_fds(link, 9, 1)\nlink.close()")
    descriptor, process = evaluate(sandbox, "[fd, os.getpid()]")
    with pytest.raises(DumpFailed) as failed:
        sandbox.checkpoint()
    named = rf"\(process {process}, descriptor {descriptor}\): process {process} \(python3\), descriptor {descriptor}: "
    assert re.search(named, failed.value.cause)
    assert failed.value.remediation == "close it before the checkpoint"
    assert sandbox.state is Phase.RUNNING


@pytest.fixture
def stranger() -> Iterator[Callable[[str], int]]:
    """Starts a Python program beside us that holds something no sandbox could get; gives its pid once it has it."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> int:
        program = f"import ctypes, os, socket\nlibc = ctypes.CDLL(None)\n{code}\nprint(flush=True)\ninput()"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("code", "what", "remedy"),
    [
        (f"libc.syscall({IO_URING_SETUP}, 8, ctypes.create_string_buffer(256))", "[io_uring]", "UV_USE_IO_URING"),
        (f"libc.syscall({USERFAULTFD}, 1)", "[userfaultfd]", "paging"),
        ("fd = os.open('/dev/kvm', os.O_RDWR)", "/dev/kvm", "close"),
        ("fd = os.open('/dev/fuse', os.O_RDWR)", "/dev/fuse", "close"),
        ("s = socket.socket(socket.AF_VSOCK)", "socket", "close"),
    ],
)
def test_what_no_sandbox_should_hold_is_named(
    stranger: Callable[[str], int], code: str, what: str, remedy: str
) -> None:
    device = Path(what)
    if device.is_absolute() and not device.exists():
        pytest.skip(f"this machine has no {what}")
    pid = stranger(code)
    found = [one for one in examine([pid], keeper=os.getpid(), thorough=True) if what in one.what]
    assert [one.blocking for one in found][:1] == [True]
    assert found[0].where.startswith(("descriptor ", "mapping "))
    assert any(remedy in one.remediation for one in found)


def test_a_tracer_outside_is_named_by_the_number_that_the_host_has_for_it(stranger: Callable[[str], int]) -> None:
    begin_and_stop = "libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19); os._exit(0)"
    tracer = stranger(f"traced = os.fork()\nif traced == 0: {begin_and_stop}\nos.waitpid(traced, os.WUNTRACED)")
    (traced,) = children(tracer)
    (finding,) = examine([traced], keeper=os.getpid())
    assert re.fullmatch(rf"process {tracer} of the host \(.*\) traces it", finding.cause)


def test_a_process_in_a_user_namespace_of_its_own_is_named(stranger: Callable[[str], int]) -> None:
    pid = stranger("assert libc.unshare(0x10000000) == 0")
    (finding,) = examine([pid], keeper=os.getpid())
    assert (finding.what, finding.blocking) == ("user namespace", True)


def test_sandboxes_cannot_make_rings_or_fault_descriptors(node: Node) -> None:
    sandbox = interpreter(node, "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)")
    for number in (IO_URING_SETUP, USERFAULTFD):
        assert evaluate(sandbox, f"[libc.syscall({number}, 8, 0), ctypes.get_errno()]") == [-1, 38]
    assert evaluate(sandbox, "os.environ['UV_USE_IO_URING']") == "0"


def test_processes_that_are_gone_are_left_out() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert examine([ended.pid, 2**22 - 1], keeper=os.getpid()) == ()
