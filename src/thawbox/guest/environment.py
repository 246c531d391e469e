"""Environment that a sandbox was given: laid over `os.environ`, and taken out before a snapshot can be made of it.

Clones of that snapshot see what there was before. `os.environ` and libc hold one copy of a value each; both are
overwritten. What else was made of it (`os.environ[…]` gives a copy, programs inherit one) is its maker's to drop.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SHORTEST = 2
"""Python has only one object for each shorter value: it is everybody's."""

_libc = ctypes.PyDLL(None)  # keeps the interpreter lock: what `getenv` found stays until it is overwritten
_libc.getenv.restype = ctypes.c_void_p
_libc.strcmp.argtypes = (ctypes.c_void_p, ctypes.c_char_p)


class Laid(Mapping[str, str]):
    """Variables by name, as they are in `os.environ` when they are asked for: no copy is made before."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return os.environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Environment:
    """What was laid over the environment of this process, and what it replaced."""

    def __init__(self) -> None:
        self._laid: dict[str, tuple[bytes, bytes | None]] = {}
        self._given_up: frozenset[str] = frozenset()

    def lay(self, variables: Mapping[str, bytes]) -> Laid:
        """Set these variables."""
        self._given_up = frozenset()
        for name, value in variables.items():
            if name in self._laid:
                self._take_out(name)
            key = os.fsencode(name)
            self._laid[name] = (value, os.environb.get(key))
            os.environb[key] = value
        return Laid(variables)

    def held(self) -> dict[str, bytes]:
        """What is to be given up: every variable that was laid, unless the program has set it anew."""
        return {name: value for name, (value, _) in self._laid.items() if self._is_ours(name)}

    def give_up(self) -> None:
        """Take it all out, and put back what it replaced."""
        self._given_up = frozenset(self.held())
        while self._laid:
            self._take_out(next(iter(self._laid)))

    def put_back(self, variables: Mapping[str, bytes]) -> Laid:
        """Set those of these variables that this process gave up: another one may have given up others."""
        return self.lay({name: value for name, value in variables.items() if name in self._given_up})

    def _is_ours(self, name: str) -> bool:
        return os.environb.get(os.fsencode(name)) is self._laid[name][0]

    def _take_out(self, name: str) -> None:
        key, is_ours = os.fsencode(name), self._is_ours(name)
        value, replaced = self._laid.pop(name)
        if is_ours:
            _overwrite_in_libc(key, value)
            if replaced is None:
                del os.environb[key]
            else:
                os.environb[key] = replaced
        if len(value) >= _SHORTEST and sys.getrefcount(value) <= 2:  # else the program has it too (`os.environb`)
            _overwrite(value, len(value))


def _overwrite_in_libc(key: bytes, value: bytes) -> None:
    """libc never frees a variable that was set: unset, it would stay in memory as it was."""
    place = _libc.getenv(key)
    if place and _libc.strcmp(place, value) == 0:
        _overwrite(place, len(value))


def _overwrite(place: Any, length: int) -> None:
    ctypes.memset(place, 0, length)


environment = _Environment()
