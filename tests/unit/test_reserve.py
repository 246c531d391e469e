"""The reserve of ready shells goes on whatever becomes of one snapshot's."""

from __future__ import annotations

import threading

import pytest

from thawbox.errors import ThawboxError
from thawbox.model import SnapshotId
from thawbox.sandbox.reserve import Reserve, Reserved

ONE, OTHER = SnapshotId("1" * 64), SnapshotId("2" * 64)
MINUTE = 20.0


@pytest.mark.parametrize(
    ("error", "is_defect"), [(ThawboxError("no"), False), (OSError(28, "full"), False), (ZeroDivisionError(), True)]
)
def test_a_snapshot_whose_shells_cannot_be_made_is_given_up_and_others_are_asked_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_defect: bool
) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda defect: told.append(defect.exc_type))
    reserve, tried = Reserve(lull=0.0), threading.Semaphore(0)

    def prepare() -> Reserved:
        tried.release()
        raise error

    for snapshot in (ONE, OTHER):
        reserve.keep(snapshot, prepare)
        assert tried.acquire(timeout=MINUTE)
    reserve.close()
    assert told == ([type(error)] * 2 if is_defect else [])
    assert not reserve.wait_full(ONE, timeout=0)
    assert reserve.take(OTHER) is None
