"""A pid names a process only as long as it is one's."""

from __future__ import annotations

import signal
import threading

import pytest

from thawbox.host.proc import open_process, send_signal, wait_gone


def test_a_number_that_is_a_threads_by_now_is_no_process() -> None:
    # Seen on a busy machine: the pid of a dead keeper had become a thread of another program
    begun, ending, ids = threading.Event(), threading.Event(), list[int]()

    def run() -> None:
        ids.append(threading.get_native_id())
        begun.set()
        ending.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(60)
    try:
        assert not send_signal(ids[0], signal.SIGKILL)
        assert wait_gone(ids[0], timeout=0)
        with pytest.raises(ProcessLookupError):
            open_process(ids[0])
    finally:
        ending.set()
        thread.join()
