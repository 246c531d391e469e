"""What upstream's CRIU refuses on some machines, and ours does not (native/criu/README.md, patches 0006 and 0007)."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from guests import SETUP, evaluate, interpreter, run
from roads import on_both_roads
from thawbox.host.namespaces import PIDS_ABOVE
from thawbox.node import Node


@on_both_roads
def test_a_program_of_an_ordinary_user_is_frozen_with_its_limits_whatever_root_may_do_here(node: Node) -> None:
    limits = "[resource.getrlimit(number) for number in range(16)]"
    setup = SETUP + "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))\n"
    sandbox = interpreter(node, setup, user="1000:1000")
    before = evaluate(sandbox, limits)
    assert before[resource.RLIMIT_NOFILE] == [300, 1000]
    snapshot = sandbox.checkpoint()
    for one in (snapshot.clone(), sandbox.checkpoint(stop=True).restore()[0]):
        assert evaluate(one, limits) == before
        assert evaluate(one, "os.getresuid()") == [1000, 1000, 1000]


@on_both_roads
def test_a_program_that_reserves_more_addresses_than_there_is_memory_comes_back(node: Node) -> None:
    setup = (
        SETUP
        + """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
reserved = libc.mmap(None, 1 << 40, 0, 0x22, -1, 0)
assert reserved and reserved != ctypes.c_void_p(-1).value
"""
    )
    sandbox = interpreter(node, setup)
    for one in (sandbox.checkpoint().clone(), sandbox.checkpoint(stop=True).restore()[0]):
        run(one, "assert libc.mprotect(reserved + (1 << 39), 4096, 3) == 0")
        run(one, "ctypes.memset(reserved + (1 << 39), 7, 4096)")
        assert evaluate(one, "ctypes.string_at(reserved + (1 << 39), 3).hex()") == "070707"


def test_learning_what_the_kernel_can_leaves_the_machines_pids_alone(tmp_path: Path) -> None:
    """It is done in the machine's own pid namespace: numbered as in a sandbox, pids just freed would be used again."""
    learn = (
        "import sys; from pathlib import Path; from thawbox.config import load_settings\n"
        "from thawbox.node import Node\n"
        "from thawbox.engines.criu_rpc import FEATURES, learn_kernel\n"
        "with Node(load_settings(home=Path(sys.argv[1]))) as node:\n"
        "    program = node.context.engine.program\n"
        "    learn_kernel(program, timeout=60)\n"
        "    assert (program.cache / FEATURES).is_file()\n"
        "    node.tidy()\n"
        "print(Path('/proc/sys/kernel/ns_last_pid').read_text())\n"
    )
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # else other programs' pids would be seen
    command = [*apart, sys.executable, "-c", learn, str(tmp_path / "home")]
    last = int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert last < PIDS_ABOVE
