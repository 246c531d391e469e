"""What `async with` and `await` both take: `async with client.acquire("python") as sandbox`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar


class _Block(Protocol):
    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


_T = TypeVar("_T", bound=_Block)
_P = ParamSpec("_P")


class Entering(Generic[_T], Awaitable[_T]):
    """Something on its way: awaited it is there; in an `async with` it is there for the block."""

    def __init__(self, making: Coroutine[Any, Any, _T]) -> None:
        self._making = making
        self._made: _T | None = None

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._making.__await__()

    async def __aenter__(self) -> _T:
        self._made = await self._making
        return await self._made.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            await self._made.__aexit__(kind, error, trace)


def entered(make: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Entering[_T]]:
    """A method whose result may be awaited, or entered at once."""

    @wraps(make)
    def begin(*args: _P.args, **kwargs: _P.kwargs) -> Entering[_T]:
        return Entering(make(*args, **kwargs))

    return begin
