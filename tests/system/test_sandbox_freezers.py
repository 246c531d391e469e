"""Both freezers: version 1 where it is mounted, version 2 where it is not. The same promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from full_disk import full_disk
from thawbox.config import Settings
from thawbox.host.cgroup_layout import Layout, detect_layout
from thawbox.model import Phase, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

COUNTER = """
import time
count = 0
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.002)
"""


def seats() -> list[tuple[str, Layout]]:
    layout = detect_layout()
    found = [("version 1", layout)] if "freezer" in layout.v1 else []
    return [*found, ("version 2", layout.without("freezer"))] if layout.v2 else found


@pytest.fixture(params=seats(), ids=lambda seat: seat[0])
def counting_node(request: pytest.FixtureRequest, home: Path) -> Iterator[Node]:
    with Node(Settings(home=home), layout=request.param[1]) as node:
        yield node
        node.tidy()


@pytest.fixture
def counting(counting_node: Node) -> Iterator[Sandbox]:
    with counting_node.run(Spec(("python3", "-c", COUNTER), ready="log:3\n")) as sandbox:
        yield sandbox


def printed(sandbox: Sandbox) -> int:
    return int(b"".join(record.content for record in sandbox.logs()).split()[-1])


def wait_for_more(sandbox: Sandbox, than: int) -> None:
    for record in sandbox.logs(follow=True):
        if int(record.content.split()[-1]) > than:
            return


def test_a_frozen_sandbox_stands_still_and_goes_on_after_the_thaw(counting: Sandbox) -> None:
    counting.freeze()
    before = printed(counting)
    assert counting.state is Phase.FROZEN
    assert counting.record.phase is Phase.FROZEN
    assert printed(counting) == before
    counting.thaw()
    wait_for_more(counting, before)


def test_what_cannot_be_written_down_is_not_so(counting_node: Node, counting: Sandbox) -> None:
    with full_disk(counting_node), pytest.raises(OSError, match="No space"):
        counting.freeze()
    assert counting.state is Phase.RUNNING
    wait_for_more(counting, printed(counting))
    counting.freeze()
    with full_disk(counting_node), pytest.raises(OSError, match="No space"):
        counting.thaw()
    assert counting.state is Phase.FROZEN
    assert counting_node.context.cgroup(counting.id).is_frozen()


def test_a_frozen_sandbox_is_checkpointed_and_stays_frozen(counting: Sandbox) -> None:
    counting.checkpoint()
    counting.freeze()
    before = printed(counting)
    snapshot = counting.checkpoint()
    assert counting.state is Phase.FROZEN
    assert printed(counting) == before
    with snapshot.clone() as clone:
        wait_for_more(clone, before)
        assert printed(counting) == before


def test_a_suspended_sandbox_has_not_run_since_its_snapshot(counting: Sandbox) -> None:
    snapshot = counting.checkpoint(stop=True)
    before = printed(counting)
    assert counting.state is Phase.SUSPENDED
    restored, _ = snapshot.restore()
    wait_for_more(restored, before + 5)
    seen = [int(word) for record in restored.logs() for word in record.content.split()]
    assert seen == list(range(1, seen[-1] + 1)), "a line was lost or printed twice"
