"""The hooks of this process: registered here, run here when the host calls (see channel.py).

Hooks before a checkpoint run in reverse order of registration, those after in order; each in a thread of its own, so
that its time can be limited. A hook that raises or takes too long fails the checkpoint, or ends the clone.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from .secrets import Secret

HOOK_SECONDS = 10.0

Hook = Callable[..., object]
_H = TypeVar("_H", bound=Hook)


@dataclass(frozen=True)
class Identity:
    """Who this sandbox is now. `address` is "" where it has no network of its own."""

    id: str = ""
    name: str = ""
    hostname: str = ""
    machine_id: str = ""
    address: str = ""


@dataclass(frozen=True)
class Event:
    """What happened. `what` is `restore` (the same sandbox is back), `clone` (this is a new one), `checkpoint` (the
    original runs on) or `given` (secrets or environment came later, as for a clone that waited in a pool); `slept` is
    the seconds of wall time since this memory last ran.

    `environment` was laid over `os.environ`; `secrets` are also in `guest.secrets`.
    """

    what: str
    identity: Identity = Identity()
    slept: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: Mapping[str, Secret] = field(default_factory=dict[str, Secret])


class HookFailed(Exception):
    """A hook raised or took too long; the text names it."""


@dataclass(frozen=True)
class _Registered:
    hook: Hook
    timeout: float

    @property
    def name(self) -> str:
        return getattr(self.hook, "__qualname__", repr(self.hook))


class Registry:
    """Every hook of the process, and whether it is ready to be checkpointed."""

    def __init__(self) -> None:
        self.before: list[_Registered] = []
        self.resumed: list[_Registered] = []
        self.restored: list[_Registered] = []
        self.given: list[_Registered] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.missing: tuple[str, ...] = ()
        self.is_ready = False
        self.started = False

    def run_before(self) -> None:
        for registered in reversed(self.before):
            self._run(registered, ())

    def run_after(self, event: Event) -> None:
        for registered in self.hooks_after(event.what):
            self._run(registered, (event,) if _takes_event(registered.hook) else ())

    def hooks_after(self, what: str) -> list[_Registered]:
        return {"checkpoint": self.resumed, "given": self.given}.get(what, self.restored)

    def _run(self, registered: _Registered, arguments: tuple[Event, ...]) -> None:
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._call(registered, arguments)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the host must hear of it
                failures.append(error)

        thread = threading.Thread(target=run, name=f"hook {registered.name}", daemon=True)
        thread.start()
        thread.join(registered.timeout)
        if thread.is_alive():
            raise HookFailed(f"hook {registered.name} took more than {registered.timeout:g} s")
        if failures:
            error = failures[0]
            raise HookFailed(f"hook {registered.name} raised {type(error).__name__}: {error}") from error

    def _call(self, registered: _Registered, arguments: tuple[Event, ...]) -> None:
        result = registered.hook(*arguments)
        if not inspect.iscoroutine(result):
            return
        coroutine: Coroutine[Any, Any, object] = result
        loop = self.loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(registered.timeout)
        else:
            asyncio.run(coroutine)


registry = Registry()


def _takes_event(hook: Hook) -> bool:
    try:
        return bool(inspect.signature(hook).parameters)
    except ValueError:  # a builtin that does not say
        return False


@overload
def before_checkpoint(hook: _H, *, timeout: float = ...) -> _H: ...
@overload
def before_checkpoint(*, timeout: float = ...) -> Callable[[_H], _H]: ...
def before_checkpoint(hook: _H | None = None, *, timeout: float = HOOK_SECONDS) -> _H | Callable[[_H], _H]:
    """Run the decorated function (plain or async, no argument) before each checkpoint; `timeout` is seconds."""
    return _register(registry.before, hook, timeout)


@overload
def after_restore(hook: _H, *, timeout: float = ...) -> _H: ...
@overload
def after_restore(*, timeout: float = ...) -> Callable[[_H], _H]: ...
def after_restore(hook: _H | None = None, *, timeout: float = HOOK_SECONDS) -> _H | Callable[[_H], _H]:
    """Run the decorated function after each restore and in each clone; it may take the Event. `timeout` is seconds."""
    return _register(registry.restored, hook, timeout)


@overload
def after_checkpoint(hook: _H, *, timeout: float = ...) -> _H: ...
@overload
def after_checkpoint(*, timeout: float = ...) -> Callable[[_H], _H]: ...
def after_checkpoint(hook: _H | None = None, *, timeout: float = HOOK_SECONDS) -> _H | Callable[[_H], _H]:
    """Run the decorated function in the original when it runs on after a checkpoint, made or failed."""
    return _register(registry.resumed, hook, timeout)


@overload
def when_given(hook: _H, *, timeout: float = ...) -> _H: ...
@overload
def when_given(*, timeout: float = ...) -> Callable[[_H], _H]: ...
def when_given(hook: _H | None = None, *, timeout: float = HOOK_SECONDS) -> _H | Callable[[_H], _H]:
    """Run the decorated function when secrets or environment are given to a sandbox that runs already."""
    return _register(registry.given, hook, timeout)


def _register(hooks: list[_Registered], hook: _H | None, timeout: float) -> _H | Callable[[_H], _H]:
    def register(function: _H) -> _H:
        hooks.append(_Registered(function, timeout))
        start()
        return function

    return register if hook is None else register(hook)


def attach_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run async hooks on this loop, where the program's own connections live."""
    registry.loop = loop


def ready() -> None:
    """Say that the program is fully loaded and may be checkpointed: `--ready guest` waits for it."""
    registry.missing = ()
    registry.is_ready = True
    start()


def not_ready(*missing: str) -> None:
    """Say that it may not be checkpointed now, and what is missing: a checkpoint with `--when-ready` waits."""
    registry.missing = missing
    registry.is_ready = False
    start()


def start() -> None:
    """Listen for the host. Every decorator and `ready` do this; a program without hooks calls it to be reseeded."""
    from . import channel

    if registry.started:
        return
    registry.started = True
    channel.listen(registry)
    os.register_at_fork(after_in_child=lambda: channel.listen_in_child(registry))
