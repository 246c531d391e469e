"""What the node does, told to whoever looks on: steps, each with a beginning, an end and an outcome.

The core names its steps and knows nothing of metrics, traces or logs; those are observers (`api/metrics.py`,
`api/tracing.py`, `api/logs.py`), handed to the node by whoever builds it. Without one a step costs a method call.

Rule 1: fields are ids, names of our own things, counts, sizes and times. Never what is inside a sandbox: no content,
command, environment, secret, or path in it.
Rule 2: an observer answers at once and raises nothing: it stands in the way of what it observes.
"""

from __future__ import annotations

import contextvars
import errno
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from thawbox.errors import ThawboxError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Step:
    """One thing that is being done, and, once its block has ended, was done. Steps begun within it are its parts.

    `began` is seconds since the epoch, `seconds` how long it took; `error` is what the block raised. `is_fact`: it
    took no time, it happened. `attached` is what observers keep of it, by observer.
    """

    __slots__ = ("_begun", "_ends", "_observers", "_token", "attached", "began", "error", "fields", "is_fact", "name",
                 "parent", "seconds")  # fmt: skip

    def __init__(
        self, name: str, fields: dict[str, object], observers: Sequence[Observer], *, is_fact: bool = False
    ) -> None:
        self.name = name
        self.fields = fields
        self.parent = _current.get()
        self.is_fact = is_fact
        self.began = 0.0
        self.seconds = 0.0
        self.error: BaseException | None = None
        self.attached: dict[object, object] = {}
        self._observers = observers
        self._ends: list[Callable[[], None]] = []

    def note(self, **fields: object) -> None:
        """Add what has become known meanwhile."""
        self.fields.update(fields)

    @property
    def failure(self) -> str:
        """The code of what went wrong, as errors have it; empty if nothing did."""
        return "" if self.error is None else code_of(self.error)

    def __enter__(self) -> Self:
        self.began = time.time()
        self._begun = time.perf_counter()
        self._token = _current.set(self)
        self._ends = [observe(self) for observe in self._observers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.error = error
        _current.reset(self._token)
        for end in self._ends:
            end()

    def passed(self, *, seconds: float, ago: float = 0.0) -> None:
        """Tell of it as of something that took `seconds` and ended `ago` seconds ago."""
        self.began, self.seconds = time.time() - ago - seconds, seconds
        for observe in self._observers:
            observe(self)()


Observer = Callable[[Step], Callable[[], None]]
"""Hears of a step that begins; what it returns is called once the step has ended."""

_current: contextvars.ContextVar[Step | None] = contextvars.ContextVar("thawbox_step", default=None)


class _Unobserved(Step):
    """A step that nobody looks at."""

    __slots__ = ()

    def note(self, **fields: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


_UNOBSERVED = _Unobserved("", {}, ())


class Telemetry:
    """The observers of one node, none by default. Safe to use from several threads."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def step(self, name: str, **fields: object) -> Step:
        """A block in which something is done: `with telemetry.step("dump", sandbox=…) as step:`."""
        return Step(name, fields, self.observers) if self.observers else _UNOBSERVED

    def passed(self, name: str, *, seconds: float, ago: float = 0.0, **fields: object) -> None:
        """Something took `seconds` and ended `ago` seconds ago: a part of the step around it, as somebody else measured
        it."""
        if self.observers:
            Step(name, fields, self.observers).passed(seconds=seconds, ago=ago)

    def happened(self, name: str, **fields: object) -> None:
        """Something is so from now on."""
        if self.observers:
            Step(name, fields, self.observers, is_fact=True).passed(seconds=0)


NOBODY = Telemetry()
"""For whoever is told of no observers."""


def current_step() -> Step | None:
    """The step within which the caller is, if any."""
    return _current.get()


def carried(act: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """`act` for another thread: what it does there belongs to the step that is under way here. To be called once."""
    context = contextvars.copy_context()

    def carry(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
        return context.run(act, *arguments, **named)

    return carry


def code_of(error: BaseException) -> str:
    """The stable code of any error: a ThawboxError's own, `host.…` for what the system refused, else `defect`."""
    if isinstance(error, ThawboxError):
        return error.code
    if isinstance(error, OSError):
        return f"host.{errno.errorcode.get(error.errno or 0, 'other').lower()}"
    if isinstance(error, Exception):
        return "defect"
    return "interrupted"
