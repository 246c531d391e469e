"""Deltas by the kernel's own dirty tracking equal those by comparison; only where the kernel has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from thawbox.engines.criu import kernel_tracks_writes
from thawbox.model import SnapshotKind
from thawbox.node import Node
from thawbox.sandbox import Sandbox

Ask = Callable[..., dict[str, object]]


@pytest.mark.skipif(
    not kernel_tracks_writes(), reason="this kernel has no CONFIG_MEM_SOFT_DIRTY: deltas are found by comparing pages"
)
def test_a_tracked_delta_restores_to_the_same_memory_as_a_compared_one(
    node: Node, workload: Callable[..., Sandbox], ask: Ask
) -> None:
    sandbox = workload("python3", "agent.py", "4")
    sandbox.checkpoint()
    ask(sandbox, "grow")
    tracked = sandbox.checkpoint()
    assert tracked.report is not None
    assert tracked.report.kind is SnapshotKind.DELTA
    kept = ask(sandbox)["kept"]
    sandbox.stop()
    restored, _ = tracked.restore()
    assert ask(restored)["kept"] == kept
    compared = restored.checkpoint()  # a new generation: the kernel knows nothing, every page is compared
    with compared.clone() as clone:
        assert ask(clone)["kept"] == kept
