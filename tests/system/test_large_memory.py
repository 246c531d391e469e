"""What a restore reads with several processors is what was there, and the kernel sees it as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from roads import on_both_roads
from thawbox.sandbox import Sandbox

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

Ask = Callable[..., dict[str, Any]]


@on_both_roads
def test_large_areas_come_back_as_they_were_and_are_used_on(workload: Callable[..., Sandbox], ask: Ask) -> None:
    sandbox = workload("python3", "large.py")
    begun = ask(sandbox)["kept"]
    snapshot = sandbox.checkpoint()
    clone = snapshot.clone()
    assert ask(clone)["kept"] == begun
    copy = ask(clone, "grow")["kept"]
    assert {**copy, "digests": begun["digests"]} == begun
    assert copy["digests"][1:] == begun["digests"][1:]
    assert copy["digests"][0] != begun["digests"][0]
    again = clone.checkpoint()
    assert again.report is not None and again.report.parent == snapshot.id
    clone.remove(force=True)
    restored, _ = again.restore()
    assert ask(restored)["kept"] == copy


@on_both_roads
def test_a_restore_leaves_no_more_memory_in_use_than_there_was(workload: Callable[..., Sandbox], ask: Ask) -> None:
    sandbox = workload("python3", "large.py", "48")
    begun = ask(sandbox)["kept"]
    used = sandbox.stats().memory
    snapshot = sandbox.checkpoint(stop=True)
    for _ in range(3):
        restored, _ = snapshot.restore()
        assert ask(restored)["kept"] == begun
        assert restored.stats().memory < used + (8 << 20)
        restored.stop(timeout=0)


@on_both_roads
def test_pages_that_lie_scattered_over_a_chain_come_back_from_every_link(
    workload: Callable[..., Sandbox], ask: Ask
) -> None:
    sandbox = workload("python3", "scattered.py")
    links = []
    for _ in range(5):
        links.append((ask(sandbox, "grow")["kept"], sandbox.checkpoint()))
    for kept, snapshot in links:
        clone = snapshot.clone()
        assert ask(clone)["kept"] == kept
        clone.remove(force=True)
    assert [snapshot.report.parent for _, snapshot in links[1:]] == [snapshot.id for _, snapshot in links[:-1]]
