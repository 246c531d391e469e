"""Offsets of time namespaces: a clock goes on from where it stopped, whatever the machine's own say."""

from __future__ import annotations

import os
import time

import pytest

from thawbox.host.clocks import Clocks, clocks_of, offsets_between

S = 1_000_000_000


@pytest.mark.parametrize(
    ("stopped", "real", "offsets"),
    [
        (Clocks(50, 60, 0), Clocks(50, 60, 0), "monotonic 0 0\nboottime 0 0\n"),
        # Another machine, up for longer: back to where it was; the boot clock counts the 7 s it slept.
        (Clocks(5 * S, 5 * S, 0), Clocks(9 * S, 9 * S, 7 * S), "monotonic -4 0\nboottime 3 0\n"),
        # One that has just booted: ahead of it. Fractions are positive, as the kernel wants them.
        (Clocks(9 * S + 1, 9 * S, 0), Clocks(S, S, 0), "monotonic 8 1\nboottime 8 0\n"),
        (Clocks(S, S, 0), Clocks(S + 1, S, 0), "monotonic -1 999999999\nboottime 0 0\n"),
        # The wall clock was set back: nothing is taken from the boot clock.
        (Clocks(1, 1, 99 * S), Clocks(1, 1, 0), "monotonic 0 0\nboottime 0 0\n"),
    ],
)  # fmt: skip
def test_clocks_go_on_from_where_they_stopped(stopped: Clocks, real: Clocks, offsets: str) -> None:
    assert offsets_between(stopped, real) == offsets


def test_our_own_clocks_are_those_we_see() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    seen = clocks_of(os.getpid())
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before[0] <= seen.monotonic <= after[0]
    assert before[1] <= seen.boottime <= after[1]
