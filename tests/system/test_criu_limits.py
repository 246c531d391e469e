"""What upstream's CRIU refuses on some machines, and ours does not (native/criu/README.md, patches 0006 and 0007)."""

from __future__ import annotations

import resource

from guests import SETUP, evaluate, interpreter, run
from thawbox.node import Node


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
