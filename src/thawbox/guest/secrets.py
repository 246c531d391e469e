"""Secrets that a clone was given: kept in buffers that are overwritten before anybody can make a snapshot of them.

A snapshot holds every byte of memory, freed ones too, so a secret must not be copied on its way in: it is received
into its buffer, and `view` hands out that buffer. Copies (`reveal`) are their maker's to drop.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping


class Secret:
    """One secret. Its repr does not show it; after `wipe` it holds nothing."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer

    def __repr__(self) -> str:
        return f"<Secret, {len(self._buffer)} bytes>"

    def __len__(self) -> int:
        return len(self._buffer)

    def view(self) -> memoryview:
        """The secret itself, read-only, without a copy. Release it before the next checkpoint."""
        return memoryview(self._buffer).toreadonly()

    def reveal(self) -> str:
        """The secret as text. This is a copy, which thawbox cannot remove: prefer `view` where that is possible."""
        return self._buffer.decode()

    def wipe(self) -> None:
        """Overwrite the secret."""
        if self._buffer:
            ctypes.memset((ctypes.c_char * len(self._buffer)).from_buffer(self._buffer), 0, len(self._buffer))
        self._buffer = bytearray()


class _Secrets(Mapping[str, Secret]):
    """The secrets of this sandbox by name; empty during a checkpoint, and in a clone that was given none."""

    def __init__(self) -> None:
        self._held: dict[str, Secret] = {}

    def __getitem__(self, name: str) -> Secret:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def replace(self, held: dict[str, Secret]) -> None:
        """Hold these secrets and no others."""
        self.wipe()
        self._held = held

    def add(self, given: dict[str, Secret]) -> None:
        """Hold these too; one of the same name is overwritten."""
        for name, secret in given.items():
            if name in self._held:
                self._held[name].wipe()
            self._held[name] = secret

    def wipe(self) -> None:
        """Overwrite every secret and forget the names."""
        for secret in self._held.values():
            secret.wipe()
        self._held = {}


secrets = _Secrets()
