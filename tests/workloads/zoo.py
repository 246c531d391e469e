"""One of everything that a process can hold and CRIU says it can carry. Each creature tells what must stay true of it.

A creature that would be used up by looking at it (bytes in a pipe, a pending signal) is put back as it was.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

from answering import serve

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]

creatures: dict[str, Callable[[], object]] = {}
moving: dict[str, Callable[[], int]] = {}
grown: list[Callable[[], object]] = []
held: list[object] = []


def creature(make: Callable[[], Callable[[], object]]) -> None:
    creatures[make.__name__] = make()


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@creature
def shared_anonymous_memory() -> Callable[[], object]:
    """A child counts into a page that both have mapped."""
    page = mmap.mmap(-1, 4096)
    page[8:24] = os.urandom(16)
    if os.fork() == 0:
        while True:
            page[:8] = (int.from_bytes(page[:8], "little") + 1).to_bytes(8, "little")
            time.sleep(0.003)
    moving["shared_memory"] = lambda: int.from_bytes(page[:8], "little")
    return lambda: page[8:24].hex()


@creature
def memory_file() -> Callable[[], object]:
    fd = os.memfd_create("zoo", os.MFD_ALLOW_SEALING)
    os.write(fd, os.urandom(10_000))
    fcntl.fcntl(fd, 1033, 0x2)  # F_ADD_SEALS, F_SEAL_SHRINK
    mapped = mmap.mmap(fd, 10_000)
    grown.append(lambda: mapped.__setitem__(slice(0, 8), os.urandom(8)))
    return lambda: [mapped[:64].hex(), os.fstat(fd).st_size, fcntl.fcntl(fd, 1034), os.lseek(fd, 0, os.SEEK_CUR)]


@creature
def pipe_with_bytes() -> Callable[[], object]:
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 1 << 17)  # F_SETPIPE_SZ
    os.write(write, os.urandom(5000))

    def look() -> object:
        waiting = array.array("i", [0])
        fcntl.ioctl(read, termios.FIONREAD, waiting)
        content = os.read(read, waiting[0])
        os.write(write, content)
        return [waiting[0], content[:32].hex(), fcntl.fcntl(write, 1032)]

    grown.append(lambda: os.write(write, b"more"))
    return look


@creature
def named_pipe() -> Callable[[], object]:
    os.mkfifo("/tmp/fifo")
    fd = os.open("/tmp/fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"waiting")

    def look() -> object:
        content = os.read(fd, 100)
        os.write(fd, content)
        return content.decode()

    return look


@creature
def event_counter() -> Callable[[], object]:
    fd = os.eventfd(41, os.EFD_NONBLOCK)

    def look() -> object:
        value = os.eventfd_read(fd)
        os.eventfd_write(fd, value)
        return value

    grown.append(lambda: os.eventfd_write(fd, 1))
    return look


@creature
def timer_descriptor() -> Callable[[], object]:
    fd = checked(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK))
    checked(libc.timerfd_settime(fd, 0, struct.pack("4q", 0, 7_000_000, 0, 7_000_000), None))
    expired = [0]

    def count() -> int:
        with contextlib.suppress(BlockingIOError):
            expired[0] += int.from_bytes(os.read(fd, 8), "little")
        return expired[0]

    moving["timerfd"] = count

    def interval() -> object:
        now = ctypes.create_string_buffer(32)
        checked(libc.timerfd_gettime(fd, now))
        return struct.unpack("4q", now.raw)[:2]

    return interval


@creature
def interval_timer() -> Callable[[], object]:
    fired = [0]
    signal.signal(signal.SIGALRM, lambda *_: fired.__setitem__(0, fired[0] + 1))
    signal.setitimer(signal.ITIMER_REAL, 0.009, 0.009)
    moving["itimer"] = lambda: fired[0]
    return lambda: signal.getitimer(signal.ITIMER_REAL)[1]


@creature
def posix_timer() -> Callable[[], object]:
    fired = [0]
    signal.signal(signal.SIGVTALRM, lambda *_: fired.__setitem__(0, fired[0] + 1))
    timer = ctypes.c_void_p()
    event = struct.pack("QiiQ40x", 0, signal.SIGVTALRM, 0, 0)
    rt = ctypes.CDLL("libc.so.6", use_errno=True)
    checked(rt.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(timer)))
    checked(rt.timer_settime(timer, 0, struct.pack("4q", 0, 11_000_000, 0, 11_000_000), None))
    moving["posix_timer"] = lambda: fired[0]
    held.append(timer)
    return lambda: "armed"


@creature
def pending_signals() -> Callable[[], object]:
    """A blocked signal waits, and a signalfd can see it. (Another waits twice.)"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGRTMIN + 3})
    fd = checked(libc.signalfd(-1, struct.pack("Q", 1 << (signal.SIGUSR2 - 1)), os.O_NONBLOCK))
    os.kill(os.getpid(), signal.SIGUSR2)
    libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    for value in (5, 6):
        checked(libc.sigqueue(os.getpid(), signal.SIGRTMIN + 3, value))
    return lambda: [
        sorted(signal.sigpending()),
        bool(select.select([fd], [], [], 0)[0]),
        sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    ]


@creature
def event_poll() -> Callable[[], object]:
    read, write = os.pipe()
    quiet, _keep = os.pipe()
    os.write(write, b"x")
    poll = select.epoll()
    poll.register(read, select.EPOLLIN)
    poll.register(quiet, select.EPOLLIN | select.EPOLLET)
    held.append((write, _keep))
    return lambda: poll.poll(0)


@creature
def system_v_shared_memory() -> Callable[[], object]:
    segment = checked(libc.shmget(0x7A6F6F, 8192, 0o1600))
    address = libc.shmat(segment, None, 0)
    content = (ctypes.c_char * 8192).from_address(address)
    content[:16] = os.urandom(16)
    grown.append(lambda: content.__setitem__(slice(16, 24), os.urandom(8)))
    return lambda: [segment, checked(libc.shmget(0x7A6F6F, 8192, 0o600)), content[:24].hex()]


@creature
def system_v_messages_and_semaphores() -> Callable[[], object]:
    queue = checked(libc.msgget(0x7A6F6F, 0o1600))
    checked(libc.msgsnd(queue, struct.pack("q", 3) + b"message!", 8, 0))
    semaphores = checked(libc.semget(0x7A6F6F, 1, 0o1600))
    checked(libc.semctl(semaphores, 0, 16, 9))  # SETVAL
    tables = ("msg", "sem")
    return lambda: (
        [len(Path(f"/proc/sysvipc/{name}").read_text().splitlines()) for name in tables]
        + [
            checked(libc.semctl(semaphores, 0, 12, 0))  # GETVAL
        ]
    )


@creature
def posix_shared_memory() -> Callable[[], object]:
    fd = os.open("/dev/shm/zoo", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 8192)
    mapped = mmap.mmap(fd, 8192)
    mapped[:16] = os.urandom(16)
    grown.append(lambda: mapped.__setitem__(slice(16, 24), os.urandom(8)))
    return lambda: [mapped[:24].hex(), Path("/dev/shm/zoo").read_bytes()[:24].hex(), sorted(os.listdir("/dev/shm"))]


@creature
def file_locks() -> Callable[[], object]:
    """flock and POSIX locks, tried from elsewhere: another open file, another process."""
    file = open("/tmp/locked", "w+b")
    fcntl.flock(file, fcntl.LOCK_EX)
    ranged = open("/tmp/ranged", "w+b")
    fcntl.lockf(ranged, fcntl.LOCK_EX, 10, 5)

    def tried_by_a_child() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                with open("/tmp/ranged", "r+b") as other:
                    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7)
            except OSError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def look() -> object:
        with open("/tmp/locked", "rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ["flock held", "range held" if tried_by_a_child() else "range lost"]
        return ["flock lost"]

    held.append(file)
    return look


@creature
def unix_sockets() -> Callable[[], object]:
    """A pair with bytes on the way, a descriptor among them; a listening one that still accepts; a datagram one."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"on the way")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("/tmp/listening.sock")
    listening.listen()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind("\0zoo")
    held.append(ours)

    def look() -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("/tmp/listening.sock")
            accepted = listening.accept()[0]
            accepted.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", "\0zoo")
        return [theirs.recv(100, socket.MSG_PEEK).decode(), datagrams.recv(100).decode()]

    return look


@creature
def internet_sockets() -> Callable[[], object]:
    """A TCP connection of the sandbox to itself with bytes on the way, both protocols; UDP bound and connected."""
    pairs = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listening = socket.socket(family)
        listening.bind((host, 0))
        listening.listen()
        client = socket.create_connection(listening.getsockname()[:2])
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = listening.accept()[0]
        client.sendall(b"on the way")
        pairs.append((listening, client, server))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 9999))
    udp.connect(("127.0.0.1", 9999))

    def look() -> object:
        udp.send(b"to myself")
        seen: list[object] = [udp.recv(100).decode()]
        for listening, client, server in pairs:
            server.sendall(b"ping")
            told = client.recv(100).decode()
            seen += [server.recv(100, socket.MSG_PEEK).decode(), told, *listening.getsockname()[:2]]
            seen += [client.getsockname()[1], client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)]
        return seen

    grown.append(lambda: [client.sendall(b"+") for _, client, _ in pairs])
    return look


@creature
def netlink_socket() -> Callable[[], object]:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    link.bind((0, 0))
    return lambda: link.getsockname()[1]


@creature
def unlinked_files() -> Callable[[], object]:
    deleted = tempfile.TemporaryFile(dir="/var/tmp")
    deleted.write(os.urandom(100_000))
    deleted.flush()
    mapped = mmap.mmap(deleted.fileno(), 4096)
    Path("/tmp/linked-twice").write_text("one")
    linked = open("/tmp/linked-twice", "r+")
    os.link("/tmp/linked-twice", "/tmp/second-name")
    os.unlink("/tmp/linked-twice")
    grown.append(lambda: mapped.__setitem__(slice(0, 8), os.urandom(8)))
    return lambda: [
        mapped[:32].hex(), os.fstat(deleted.fileno()).st_size, os.fstat(deleted.fileno()).st_nlink,
        os.pread(linked.fileno(), 10, 0).decode(), Path("/tmp/second-name").read_text(),
    ]  # fmt: skip


@creature
def shared_file_offsets() -> Callable[[], object]:
    """A duplicate shares its offset, a second opening does not; flags stay."""
    Path("/tmp/offsets").write_bytes(b"0123456789" * 10)
    first = os.open("/tmp/offsets", os.O_RDWR)
    duplicate, second = os.dup(first), os.open("/tmp/offsets", os.O_RDONLY | os.O_NONBLOCK)
    appending = os.open("/tmp/offsets", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.lseek(duplicate, 37, os.SEEK_SET)
    grown.append(lambda: os.read(first, 1))

    def look() -> object:
        offsets = [os.lseek(fd, 0, os.SEEK_CUR) for fd in (first, duplicate, second)]
        return [offsets, *([fcntl.fcntl(fd, get) for get in (1, 3)] for fd in (second, appending))]  # F_GETFD, F_GETFL

    return look


@creature
def open_directory_and_watches() -> Callable[[], object]:
    """A directory held open, a working directory that was removed under a child, an inotify watch that still tells."""
    os.makedirs("/tmp/watched")
    directory = os.open("/tmp/watched", os.O_RDONLY | os.O_DIRECTORY)
    watch = checked(libc.inotify_init1(os.O_NONBLOCK))
    checked(libc.inotify_add_watch(watch, b"/tmp/watched", 0x100))  # IN_CREATE
    os.makedirs("/tmp/gone")
    child = os.fork()
    if child == 0:
        os.chdir("/tmp/gone")
        os.rmdir("/tmp/gone")
        signal.pause()
        os._exit(0)

    def look() -> object:
        Path("/tmp/watched/file").touch()
        event = os.read(watch, 4096)
        Path("/tmp/watched/file").unlink()
        return [event[16:20].decode(), os.listdir(directory), os.path.isdir(f"/proc/{child}/cwd")]

    return look


@creature
def children_and_descriptors_of_them() -> Callable[[], object]:
    """A child that has ended, a process descriptor, a process group and session of its own."""
    ended = os.fork()
    if ended == 0:
        os._exit(3)
    running = os.fork()
    if running == 0:
        os.setsid()
        signal.pause()
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    while os.getsid(running) != running:
        time.sleep(0.001)
    descriptor = os.pidfd_open(running)

    def look() -> object:
        signal.pidfd_send_signal(descriptor, 0)
        state = Path(f"/proc/{ended}/stat").read_text().split()[2]
        return [state, os.getsid(running) == running, os.getpgid(ended) == os.getpgid(0), ended, running]

    return look


@creature
def limits_and_habits() -> Callable[[], object]:
    """What belongs to a process and is no descriptor: limits, umask, priority, locked memory, names."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
    os.umask(0o027)
    os.nice(3)
    page = mmap.mmap(-1, 8192)
    page[:5] = b"locks"
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    checked(libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096))
    libc.prctl(15, b"zookeeper", 0, 0, 0)  # PR_SET_NAME
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

    def look() -> object:
        umask = os.umask(0)
        os.umask(umask)
        reaper = ctypes.c_int()
        libc.prctl(37, ctypes.byref(reaper), 0, 0, 0)
        locked = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmLck" in line]
        name = Path("/proc/self/comm").read_text().strip()
        return [resource.getrlimit(resource.RLIMIT_NOFILE), umask, os.nice(0), locked, name, reaper.value]

    held.append(page)
    return look


serve(
    lambda: {name: look() for name, look in creatures.items()},
    lambda: {name: count() for name, count in moving.items()},
    lambda: [grow() for grow in grown] and None,
)
