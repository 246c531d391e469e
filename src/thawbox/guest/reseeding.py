"""Fresh randomness for the generators of this process: two clones of one memory would draw the same numbers.

Generators that a program made and seeded itself (`random.Random(42)`, `numpy.random.default_rng(7)`) stay as they are:
whoever seeds wants that sequence. What the kernel serves (`os.urandom`, `secrets`, `uuid.uuid4`) is fresh by itself.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

_ENTROPY = 64
_POLLIN = 1
_libc = ctypes.PyDLL(None)  # PyDLL keeps the interpreter lock during a call; CDLL lets it go


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def hold_until_readable(fd: int, seconds: float) -> None:
    """Let no other Python code run until `fd` is readable, at most for `seconds`; then seed every generator anew.

    All of it, waiting and seeding, is one chain of C calls: the interpreter gives its lock to another thread only
    between instructions of Python code, and there are none. So no number is drawn in a clone before its seed is its
    own. (A free-threaded interpreter has no such lock: there only the seeding holds.)
    The monotonic clock stands still while this memory is a snapshot, so `seconds` counts running time.
    """
    waiting = _PollFd(fd, _POLLIN, 0)
    poll = partial(_libc.poll, ctypes.byref(waiting), ctypes.c_ulong(1), ctypes.c_int(int(seconds * 1000)))
    interrupted = itertools.takewhile((-1).__eq__, iter(poll, None))  # -1: a signal, as a dump or restore makes
    collections.deque(itertools.chain(interrupted, _seeding()), maxlen=0)
    reseed_all()


def _seeding() -> Iterator[object]:
    """The calls that seed the generators that are loaded, as an iterator that makes them, in C, one per step."""
    entropy = ctypes.create_string_buffer(_ENTROPY)
    word = (ctypes.c_char * 4).from_buffer(entropy)
    shared: random.Random = vars(random)["_inst"]
    seed_random = super(random.Random, shared).seed  # the method without Python code
    to_int: Any = int.from_bytes
    numbers: Iterator[int] = map(to_int, (entropy,), ("little",))
    steps: list[Iterator[object]] = [
        map(_libc.getrandom, (entropy,), (ctypes.c_size_t(_ENTROPY),), (0,)),
        map(seed_random, numbers),
    ]
    if "_ssl" in sys.modules:
        steps.append(map(sys.modules["_ssl"].RAND_add, (entropy,), (0.0,)))
    if "numpy.random" in sys.modules:  # its way for larger seeds is Python code: `reseed_all` goes it
        steps.append(map(sys.modules["numpy.random"].seed, map(to_int, (word,), ("little",))))
    return itertools.chain(*steps)


def reseed_all() -> None:
    """Seed anew what this process has loaded: random, OpenSSL, numpy's global generator, uuid and tempfile."""
    random.seed(os.urandom(_ENTROPY))
    loaded = sys.modules
    if "_ssl" in loaded:
        # Mixes the kernel's entropy and ours into the primary generator; those of all threads follow it.
        loaded["_ssl"].RAND_add(os.urandom(_ENTROPY), 0.0)
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed(list(memoryview(os.urandom(_ENTROPY)).cast("I")))
    if "uuid" in loaded:
        _renew_uuid(loaded["uuid"])
    if hasattr(loaded.get("tempfile"), "_name_sequence"):
        loaded["tempfile"].__dict__["_name_sequence"] = None  # made again at the next name


def _renew_uuid(uuid: Any) -> None:
    """Version 1 is made of a node number, a clock and a sequence; libuuid keeps its own, which we cannot reach."""
    if hasattr(uuid, "_node"):
        uuid._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)  # RFC 9562 6.10: a random node has this bit
        uuid._last_timestamp = None
        uuid._generate_time_safe = None
