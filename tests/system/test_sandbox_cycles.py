"""Run and remove, again and again: nothing is left of any cycle, in the kernel, on the disk or in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from thawbox.model import Spec
from thawbox.node import Node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(1800)]

Unchanged = Callable[[], AbstractContextManager[None]]


def kernel_objects() -> dict[str, int]:
    """Counts of what a leak in the kernel would raise, of the whole machine: dying cgroups and mounts among them."""
    cgroups = [line.split("\t") for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    return {name: int(count) for name, _hierarchy, count, _enabled in cgroups}


def test_run_and_remove_leak_nothing(node: Node, unchanged: Unchanged, request: pytest.FixtureRequest) -> None:
    cycles: int = request.config.getoption("--cycles")
    node.run(Spec(("sleep", "infinity"))).remove(force=True)
    begun = kernel_objects()
    with unchanged():
        for number in range(cycles):
            sandbox = node.run(Spec(("true",) if number % 2 else ("sleep", "infinity")))
            if number % 3:
                sandbox.stop(timeout=0)
            sandbox.remove(force=True)
    # Other programs of the machine make groups too; a leak would be one for each cycle.
    grown = {name: count - begun[name] for name, count in kernel_objects().items()}
    assert not [name for name, more in grown.items() if more >= cycles], grown


def test_checkpoint_restore_and_removal_leak_nothing(node: Node, unchanged: Unchanged) -> None:
    sandbox = node.run(Spec(("sleep", "infinity")))
    snapshot = sandbox.checkpoint()
    sandbox.remove(force=True)
    snapshot.clone().remove(force=True)
    with unchanged():
        for _ in range(20):
            snapshot.restore()[0].remove(force=True)
            snapshot.clone(eager=True).remove(force=True)  # else its memory would come to be held ready
