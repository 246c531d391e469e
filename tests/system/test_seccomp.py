"""The compiled filter, loaded into real processes."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from thawbox.host.seccomp import DEFAULT_CAPABILITIES, capability_mask, compile_filter
from thawbox.host.seccomp_profile import Condition, Host, Rule, applies

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers below are those of x86_64")

UNDER_FILTER = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
code = open(sys.argv[1], "rb").read()
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_char_p)]
program = Program(len(code) // 8, code)
assert libc.prctl(38, 1, 0, 0, 0) == 0                      # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
answers = []
for call in json.loads(sys.argv[2]):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(number) for number in call])
    answers.append(ctypes.get_errno() if result < 0 else 0)
print(json.dumps(answers))
"""


def answers(cache: Path, *calls: tuple[int, ...], capabilities: dict[str, int] | None = None) -> list[int]:
    """The errno (0: allowed) that each system call gets under the filter."""
    compiled = compile_filter(cache, capabilities=DEFAULT_CAPABILITIES if capabilities is None else capabilities)
    (cache / "filter").write_bytes(compiled)
    done = subprocess.run(
        [sys.executable, "-c", UNDER_FILTER, str(cache / "filter"), json.dumps(calls)], capture_output=True, check=True
    )
    found: list[int] = json.loads(done.stdout)
    return found


IO_URING_SETUP, USERFAULTFD, LANDLOCK_CREATE, CLONE3, FUTURE = 425, 323, 444, 435, 460
MOUNT, UNSHARE, BPF, KEYCTL, REBOOT, SETNS, INIT_MODULE, ADD_KEY = 165, 272, 321, 250, 169, 308, 175, 248
SOCKET, CLONE, GETPID, PERSONALITY = 41, 56, 39, 135
CLONE_NEWUSER, AF_VSOCK, AF_UNIX, STREAM = 0x10000000, 40, 1, 1


def test_what_cannot_be_in_a_snapshot_is_as_if_the_kernel_had_it_not(tmp_path: Path) -> None:
    calls = [(IO_URING_SETUP, 8, 0), (USERFAULTFD, 0), (LANDLOCK_CREATE, 0, 0, 1)]
    assert answers(tmp_path, *calls) == [errno.ENOSYS] * 3


def test_calls_newer_than_the_profile_make_programs_fall_back(tmp_path: Path) -> None:
    assert answers(tmp_path, (FUTURE, 0), (470, 0), (600, 0), (CLONE3, 0, 0)) == [errno.ENOSYS] * 4


def test_ways_out_are_refused(tmp_path: Path) -> None:
    calls = [(number, 0, 0, 0, 0, 0) for number in (MOUNT, UNSHARE, BPF, KEYCTL, REBOOT, SETNS, INIT_MODULE, ADD_KEY)]
    calls += [(CLONE, CLONE_NEWUSER | 17, 0, 0, 0, 0), (SOCKET, AF_VSOCK, STREAM, 0, 0, 0), (PERSONALITY, 0x0040000)]
    assert answers(tmp_path, *calls) == [errno.EPERM] * len(calls)


def test_ordinary_calls_are_allowed(tmp_path: Path) -> None:
    assert answers(tmp_path, (GETPID,), (SOCKET, AF_UNIX, STREAM, 0), (PERSONALITY, 0xFFFFFFFF)) == [0, 0, 0]


def test_a_capability_brings_its_calls(tmp_path: Path) -> None:
    admin = {**DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN": 21}
    bad_address_or_name = answers(tmp_path, (MOUNT, 0, 0, 0, 0, 0), (SETNS, -1, 0), capabilities=admin)
    assert errno.EPERM not in bad_address_or_name


def test_a_filter_is_compiled_once(tmp_path: Path) -> None:
    first = compile_filter(tmp_path)
    (kept,) = tmp_path.iterdir()
    inode = kept.stat().st_ino
    assert compile_filter(tmp_path) == first
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == [inode]
    assert len(first) % 8 == 0 and len(first) // 8 < 4096
    compile_filter(tmp_path, capabilities={})
    assert len(list(tmp_path.iterdir())) == 2


def test_real_programs_run_under_it(tmp_path: Path) -> None:
    (tmp_path / "filter").write_bytes(compile_filter(tmp_path))
    program = (
        "import threading, subprocess, sqlite3, asyncio, socket, os, tempfile\n"
        "t = threading.Thread(target=print); t.start(); t.join()\n"
        "subprocess.run(['true'], check=True)\n"
        "sqlite3.connect(':memory:').execute('select 1')\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "socket.socketpair(); os.memfd_create('x'); tempfile.TemporaryFile()\n"
    )
    start = UNDER_FILTER.split("answers = []", maxsplit=1)[0] + f"exec({program!r})"
    subprocess.run([sys.executable, "-c", start, str(tmp_path / "filter")], check=True, capture_output=True)


def test_the_mask_has_the_kernels_bits() -> None:
    assert capability_mask({"CAP_CHOWN": 0, "CAP_SETFCAP": 31}) == 0x80000001
    dangerous = {"CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_RAW", "CAP_SYS_RESOURCE"}
    assert dangerous.isdisjoint(DEFAULT_CAPABILITIES)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        assert all(libc.prctl(23, number, 0, 0, 0) >= 0 for number in DEFAULT_CAPABILITIES.values())  # PR_CAPBSET_READ


@pytest.mark.parametrize(
    ("includes", "excludes", "expected"),
    [
        (Condition(), Condition(), True),
        (Condition(caps=["CAP_A"]), Condition(), True),
        (Condition(caps=["CAP_B"]), Condition(), False),
        (Condition(arches=["arm64"]), Condition(), False),
        (Condition(arches=["amd64", "x32"]), Condition(), True),
        (Condition(min_kernel="4.8"), Condition(), True),
        (Condition(min_kernel="6.19"), Condition(), False),
        (Condition(), Condition(caps=["CAP_A"]), False),
        (Condition(), Condition(arches=["amd64"]), False),
        (Condition(), Condition(caps=["CAP_B"], arches=["s390"]), True),
    ],
)
def test_a_rule_applies_when_all_its_conditions_hold(includes: Condition, excludes: Condition, expected: bool) -> None:
    rule = Rule(names=["x"], action="SCMP_ACT_ALLOW", includes=includes, excludes=excludes)
    assert applies(rule, Host("amd64", (6, 18), frozenset({"CAP_A"}))) is expected
