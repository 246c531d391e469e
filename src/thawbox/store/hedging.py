"""Asking several for the same thing: the next one as soon as one fails, or beside one that takes too long.

Rule: nobody waits for an answer that is no longer wanted. It comes in a thread of its own, which ends with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

_AnswerT = TypeVar("_AnswerT")


def first_good(
    asks: Sequence[Callable[[], _AnswerT]],
    *,
    is_good: Callable[[_AnswerT], bool],
    patience: float | None,
    is_late: Callable[[int], None],
) -> tuple[_AnswerT | None, list[_AnswerT]]:
    """The first good answer, or None; and the bad ones that came before it, in the order they came.

    After `patience` seconds without an answer `is_late` is told the place of who was asked last, and the next is asked
    beside it; without `patience` each is waited for. What an `ask` raises is raised.
    """
    if patience is None or len(asks) < 2:
        bad: list[_AnswerT] = []
        for ask in asks:
            answer = ask()
            if is_good(answer):
                return answer, bad
            bad.append(answer)
        return None, bad
    return _side_by_side(asks, is_good, patience, is_late)


def _side_by_side(
    asks: Sequence[Callable[[], _AnswerT]],
    is_good: Callable[[_AnswerT], bool],
    patience: float,
    is_late: Callable[[int], None],
) -> tuple[_AnswerT | None, list[_AnswerT]]:
    answers: queue.SimpleQueue[Future[_AnswerT]] = queue.SimpleQueue()
    bad: list[_AnswerT] = []
    begun = 0
    while len(bad) < len(asks):
        if begun < len(asks):
            # no pool: its threads would be waited for at the end of the process, however long a dead server takes
            threading.Thread(target=_run, args=(asks[begun], answers), name="hedged", daemon=True).start()
            begun += 1
        try:
            answer = answers.get(timeout=patience if begun < len(asks) else None).result()
        except queue.Empty:
            is_late(begun - 1)
            continue
        if is_good(answer):
            return answer, bad
        bad.append(answer)
    return None, bad


def _run(ask: Callable[[], _AnswerT], answers: queue.SimpleQueue[Future[_AnswerT]]) -> None:
    future: Future[_AnswerT] = Future()
    try:
        future.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - raised by whoever waits
        future.set_exception(error)
    answers.put(future)


def answered_within(ask: Callable[[], _AnswerT], *, seconds: float, otherwise: _AnswerT) -> _AnswerT:
    """What `ask` answers, or `otherwise` if it has not within `seconds`. What it raises is raised."""
    answer, _ = first_good([ask, lambda: otherwise], is_good=lambda _: True, patience=seconds, is_late=lambda _: None)
    return otherwise if answer is None else answer
