"""What a program in a sandbox cannot see, reach or do, tried from inside as its root."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from roads import FILES, TEMPLATE, clones_by
from thawbox.config import load_settings
from thawbox.host.init_client import Completed, ExecRefused, Exited
from thawbox.host.proc import wait_gone
from thawbox.model import Mount, Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox
from traces import take_traces
from views import host_pid

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, rootfs_cache: Path) -> Iterator[Node]:
    """One node for all: the tests of this file only try things, and each failure is its own."""
    home = tmp_path_factory.mktemp("home")
    (home / "rootfs").symlink_to(rootfs_cache)
    with Node(load_settings(home=home)) as opened:
        yield opened
        for left in opened.sandboxes():
            left.remove(force=True)
        opened.tidy()
    assert not take_traces(home).of_kernel()
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def sandbox(node: Node) -> Sandbox:
    return node.run(Spec(("sleep", "infinity")))


def shell(sandbox: Sandbox, script: str, *, user: str = "") -> str:
    """What a shell script prints, its errors included."""
    done = sandbox.run("sh", "-c", f"exec 2>&1; {script}", user=user)
    assert isinstance(done, Completed), done
    return done.stdout.decode().strip()


def python(sandbox: Sandbox, code: str) -> str:
    done = sandbox.run("python3", "-c", code)
    assert isinstance(done, Completed), done
    assert done.outcome == Exited(0), done.stderr.decode()
    return done.stdout.decode().strip()


# --- the host's files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directory", ["/root", "/home", "/boot", "/var/log", "/var/lib", "/run", "/tmp", "/mnt", "/srv"]
)
def test_nothing_personal_or_of_the_machine_is_there(sandbox: Sandbox, directory: str) -> None:
    assert shell(sandbox, f"find {directory} -mindepth 1 -not -type d 2>/dev/null") == ""


def test_no_secret_of_the_host_is_readable(sandbox: Sandbox) -> None:
    for path in ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/ssh", "/etc/sudoers", "/etc/ssl/private"):
        assert shell(sandbox, f"test -e {path} && find {path} -type f") == "", path
    users = shell(sandbox, "cut -d: -f1 /etc/passwd").split()
    assert "root" in users
    assert shell(sandbox, "cat /etc/machine-id") != Path("/etc/machine-id").read_text().strip()


def test_the_node_s_own_state_is_nowhere_in_sight(node: Node, sandbox: Sandbox) -> None:
    assert shell(sandbox, f"ls {node.settings.home}").endswith("No such file or directory")
    mounts = python(sandbox, "print(open('/proc/self/mountinfo').read())").splitlines()
    seen = {line.split()[4] for line in mounts}
    assert {"/", "/usr", "/proc", "/sys", "/dev/pts"} <= seen
    assert not [line for line in mounts if line.split()[4].startswith(("/old", "/host"))]


def test_usr_of_the_host_can_be_read_and_changed_for_the_sandbox_alone(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity")))
    assert shell(sandbox, "echo changed > /usr/bin/true; cat /usr/bin/true") == "changed"
    assert "No such file" in shell(sandbox, "rm /usr/bin/false; ls /usr/bin/false")
    assert Path("/usr/bin/true").read_bytes()[:4] == b"\x7fELF"
    assert Path("/usr/bin/false").exists()


# --- devices, mounts, kernel ------------------------------------------------------------------------------------------


def test_devices_can_neither_be_made_nor_opened(sandbox: Sandbox) -> None:
    listed = shell(sandbox, "for name in /dev/*; do [ -c $name -o -b $name ] && echo $name; done").split()
    named = ("full", "null", "ptmx", "random", "stdin", "tty", "urandom", "zero")
    assert set(listed) <= {f"/dev/{name}" for name in named}
    made = python(
        sandbox,
        "import os, stat\n"
        "try:\n"
        "    os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\n"
        "    os.close(os.open('/tmp/disk', os.O_RDONLY))\n"
        "    print('opened')\n"
        "except PermissionError as error:\n"
        "    print('refused')\n",
    )
    assert made == "refused"


FORBIDDEN = {
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "umount": "libc.umount2(b'/proc', 2)",
    "a user namespace": "libc.unshare(0x10000000)",
    "a mount namespace": "libc.unshare(0x00020000)",
    "pivot_root": "libc.syscall(155, b'/', b'/')",
    "a kernel module": "libc.syscall(175, 0, 0, b'')",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "a performance counter": "libc.syscall(298, 0, 0, -1, -1, 0)",
    "a key ring": "libc.syscall(250, 0, -3, 0)",
    "the clock": "libc.clock_settime(0, b'\\0' * 16)",
    "a reboot": "libc.reboot(0x01234567)",
    "io_uring": "libc.syscall(425, 1, b'\\0' * 120)",
    "userfaultfd": "libc.syscall(323, 0)",
    "a file by its handle": "libc.syscall(304, -1, b'\\0' * 16, 0)",
    "swap": "libc.swapon(b'/tmp/x', 0)",
    "the host's name": "libc.sethostname(b'other', 5)",
    "a raw packet socket": "libc.socket(17, 3, 0x0300)",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_root_of_the_sandbox_is_refused(sandbox: Sandbox, what: str) -> None:
    answer = python(
        sandbox,
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"result = {FORBIDDEN[what]}\n"
        "print(result, errno.errorcode.get(ctypes.get_errno(), 0))\n",
    )
    assert answer in {"-1 EPERM", "-1 ENOSYS", "-1 EACCES"}, answer


DANGEROUS = {
    "cap_dac_read_search": 2, "cap_net_admin": 12, "cap_sys_module": 16, "cap_sys_rawio": 17, "cap_sys_ptrace": 19,
    "cap_sys_admin": 21, "cap_sys_boot": 22, "cap_sys_time": 25, "cap_mknod": 27, "cap_bpf": 39,
    "cap_checkpoint_restore": 40,
}  # fmt: skip
"""Numbers from capability.h."""


def test_every_program_has_few_capabilities_no_new_privileges_and_a_filter(node: Node, sandbox: Sandbox) -> None:
    execed = shell(sandbox, "cat /proc/self/status")
    for status in (execed, *(Path(f"/proc/{host_pid(node, sandbox, pid)}/status").read_text() for pid in (1, 2, 3))):
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2"), fields["Name"]
        for mask in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
            held = [name for name, bit in DANGEROUS.items() if int(fields[mask], 16) >> bit & 1]
            assert not held, (fields["Name"], mask)


def test_what_proc_and_sys_tell_of_the_machine_is_hidden_or_read_only(sandbox: Sandbox) -> None:
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"):
        assert shell(sandbox, f"head -c 10 {path} 2>/dev/null") == "", path
    for path in ("/sys/firmware", "/sys/fs/cgroup", "/proc/acpi", "/proc/scsi"):
        assert shell(sandbox, f"ls {path} 2>/dev/null") == "", path
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/drop_caches",
        "/sys/kernel/mm/ksm/run",
    ):
        shell(sandbox, f"echo 0 > {path}")
    assert "Read-only" in shell(sandbox, "echo 1 > /proc/sys/vm/drop_caches")
    assert "Read-only" in shell(sandbox, "mkdir /sys/x") or "not permitted" in shell(sandbox, "mkdir /sys/x")


@pytest.mark.parametrize("road", [FILES, TEMPLATE])
def test_a_restored_sandbox_is_held_as_tightly(node: Node, sandbox: Sandbox, road: str) -> None:
    before = shell(
        sandbox, "grep -e Cap -e NoNew -e Seccomp /proc/self/status; cat /proc/1/status | grep -e Cap -e Sec"
    )
    (clone,) = clones_by(road, sandbox.checkpoint())
    assert (
        shell(clone, "grep -e Cap -e NoNew -e Seccomp /proc/self/status; cat /proc/1/status | grep -e Cap -e Sec")
        == before
    )
    assert "Read-only" in shell(clone, "echo 1 > /proc/sys/vm/drop_caches")
    assert shell(clone, "find /root /home /sys/firmware /sys/fs/cgroup -mindepth 1 -not -type d") == ""
    refused = python(clone, "import ctypes\nprint(ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None))")
    assert refused == "-1"


# --- other processes --------------------------------------------------------------------------------------------------


def test_sandboxes_see_neither_each_other_s_processes_nor_the_host_s(node: Node, sandbox: Sandbox) -> None:
    other = node.run(Spec(("sleep", "4321")))
    for seen in (shell(sandbox, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"), shell(sandbox, "ps axww")):
        assert "4321" not in seen
        assert "pytest" not in seen
    assert "4321" in shell(other, "ps axww")
    pid = host_pid(node, other, 3)
    assert "No such process" in shell(sandbox, f"kill -0 {pid}") or pid < 100


def test_nothing_listens_for_a_sandbox_but_itself(node: Node) -> None:
    first, second = node.run(Spec(("sleep", "infinity"))), node.run(Spec(("sleep", "infinity")))
    first.exec(["python3", "-m", "http.server", "8000", "--bind", "0.0.0.0"], detach=True)
    listens = "import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', 8000)): time.sleep(0.01)"
    python(first, listens)
    reached = "import socket\nprint(socket.socket().connect_ex(('127.0.0.1', 8000)))"
    assert python(second, reached) == "111"
    assert shell(second, "cat /proc/net/dev | tail -n +3 | cut -d: -f1").split() == ["lo"]


def test_a_main_program_cannot_kill_its_init_or_keeper(sandbox: Sandbox) -> None:
    shell(sandbox, "kill -KILL 1")
    assert sandbox.state is Phase.RUNNING
    assert shell(sandbox, "cat /proc/1/comm") == "init"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_fork_bomb_ends_at_the_limit_of_tasks_and_hurts_nobody_else(node: Node) -> None:
    bomb = "import os\nprint('armed', flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    sandbox = node.run(Spec(("python3", "-c", bomb), pids=64, cpus=0.5, ready="log:armed"))
    while sandbox.stats().pids < 64:
        assert sandbox.state is Phase.RUNNING
    assert sandbox.stats().pids_limit == 64
    assert len(node.context.cgroup(sandbox.id).pids()) <= 64
    sandbox.remove(force=True)


def test_a_program_that_wants_more_memory_than_its_limit_is_killed_and_that_is_told(node: Node) -> None:
    hog = "print('begun', flush=True)\nheld = []\nwhile True: held.append(bytearray(1 << 20))"
    sandbox = node.run(Spec(("python3", "-c", hog), memory=48 << 20, ready="log:begun"))
    record = node.context.journal.find(sandbox.id)
    assert wait_gone(record.keeper_pid, started=record.keeper_started, timeout=60)
    assert sandbox.state in {Phase.EXITED, Phase.LOST}
    assert "memory" in sandbox.record.ended_why


def test_an_exec_that_wants_too_much_memory_leaves_the_sandbox_running(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity"), memory=48 << 20))
    done = sandbox.run("python3", "-c", "held = bytearray(100 << 20)")
    assert isinstance(done, Completed)
    assert done.outcome == Exited(0, signal.SIGKILL)
    assert sandbox.state is Phase.RUNNING
    assert sandbox.stats().oom_kills == 1


# --- users, mounts, read-only -----------------------------------------------------------------------------------------


def test_a_program_runs_as_the_user_it_was_given(node: Node) -> None:
    sandbox = node.run(
        Spec(("sh", "-c", "id -u; id -g; echo $HOME; exec sleep infinity"), user="nobody", ready="log:/")
    )
    printed = b"".join(record.content for record in sandbox.logs()).decode().split()
    assert printed[:2] == ["65534", "65534"]
    assert shell(sandbox, "id -un") == "nobody"
    assert shell(sandbox, "id -un", user="root") == "root"
    assert "Permission denied" in shell(sandbox, "ls /.thawbox")
    assert "Permission denied" in shell(sandbox, "touch /etc/x")
    assert shell(sandbox, "touch /tmp/mine && echo made") == "made"
    capabilities = shell(sandbox, "grep CapEff /proc/self/status").split()[1]
    assert int(capabilities, 16) == 0


def test_a_read_only_mount_cannot_be_written_and_a_writable_one_can(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "shared"
    source.mkdir(mode=0o777)
    (source / "file").write_text("from the host")
    mounts = (Mount(str(source), "/ro", read_only=True), Mount(str(source), "/rw"))
    sandbox = node.run(Spec(("sleep", "infinity"), mounts=mounts))
    assert "Read-only" in shell(sandbox, "echo changed > /ro/file")
    shell(sandbox, "echo changed > /rw/file")
    assert (source / "file").read_text() == "changed\n"
    for road in (FILES, TEMPLATE):
        (clone,) = clones_by(road, sandbox.checkpoint())
        assert shell(clone, "cat /ro/file; echo x > /ro/file").startswith("changed")
        assert "Read-only" in shell(clone, "echo changed > /ro/file")


def test_devices_and_set_uid_programs_of_a_mount_have_no_effect(node: Node, tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o666 | 0o020000, os.makedev(1, 3))
    sandbox = node.run(Spec(("sleep", "infinity"), mounts=(Mount(str(tmp_path), "/given"),)))
    assert "Permission denied" in shell(sandbox, "echo > /given/null")
    flags = shell(sandbox, "grep ' /given ' /proc/self/mountinfo")
    assert "nosuid" in flags
    assert "nodev" in flags


def test_a_link_planted_where_a_mount_goes_does_not_lead_out(node: Node, tmp_path: Path) -> None:
    rootfs, victim, source = tmp_path / "rootfs", tmp_path / "victim", tmp_path / "source"
    for directory in (rootfs, victim, source, rootfs / "usr"):
        directory.mkdir(mode=0o755)
    (source / "secret").write_text("mounted")
    for name in ("bin", "lib", "lib64"):
        (rootfs / name).symlink_to(f"usr/{name}")
    (rootfs / "data").symlink_to(victim)
    (rootfs / "up").symlink_to("../../../../../../../../../.." + str(victim))
    mounts = (Mount("/usr", "/usr", read_only=True), Mount(str(source), "/data/here"), Mount(str(source), "/up/here"))
    try:
        sandbox = node.run(Spec(("sleep", "infinity"), rootfs=str(rootfs), mounts=mounts))
    except Exception as refused:  # noqa: BLE001 - whichever way it is refused, nothing may have been made outside
        assert "link" in str(refused) or "data" in str(refused), refused
    else:
        assert shell(sandbox, "cat /data/here/secret") == "mounted"
    assert list(victim.iterdir()) == []


def test_a_read_only_sandbox_writes_nothing_but_shared_memory(node: Node) -> None:
    sandbox = node.run(Spec(("sleep", "infinity"), read_only=True))
    for path in ("/x", "/etc/x", "/usr/x", "/tmp/x", "/var/x", "/dev/x"):
        assert "Read-only" in shell(sandbox, f"echo > {path}"), path
    assert shell(sandbox, "echo kept > /dev/shm/x; cat /dev/shm/x") == "kept"
    for road in (FILES, TEMPLATE):
        (clone,) = clones_by(road, sandbox.checkpoint())
        assert "Read-only" in shell(clone, "echo > /x")
        assert shell(clone, "cat /dev/shm/x") == "kept"


def test_a_program_that_is_not_there_is_refused_by_name(sandbox: Sandbox) -> None:
    refused = sandbox.run("no-such-program")
    assert isinstance(refused, ExecRefused)
    assert refused.exit_status == 127
    assert isinstance(sandbox.run("/etc/passwd"), ExecRefused)
