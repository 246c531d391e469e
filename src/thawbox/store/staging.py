"""Staging directories: where a snapshot is built before it is renamed into place.

They lie beside the snapshots, on the same filesystem and at the same depth, so that the relative link from a delta's
images to its parent's is right before and after the rename. The name tells who owns one: pid, start time, boot.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thawbox.host.files import names_in, remove_tree
from thawbox.host.proc import start_time

_PATTERN = re.compile(r"\.(staging|trash)-([0-9]+)-([0-9]+)-([0-9a-f]{8})-([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Staging:
    """A private directory for one snapshot. `images` takes the engine's files, flat; `layer` the rootfs trees.

    Each directory in `layer` is one overlay's new top layer, named as in the draft: `layer / "root"`, say.
    `token` names the put for whoever waits for it.
    """

    path: Path

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def layer(self) -> Path:
        return self.path / "layer"

    @property
    def token(self) -> str:
        return self.path.name.rpartition("-")[2]


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def private_name(purpose: str) -> str:
    """A new name for a directory of this process: `.staging-PID-START-BOOT-TOKEN`, or `.trash-…`."""
    pid = os.getpid()
    return f".{purpose}-{pid}-{start_time(pid)}-{_boot()}-{secrets.token_hex(8)}"


def new_staging(snapshots: Path) -> Staging:
    staging = Staging(snapshots / private_name("staging"))
    staging.path.mkdir(mode=0o700)
    staging.images.mkdir(mode=0o700)
    staging.layer.mkdir(mode=0o700)
    return staging


def taken_over(staging: Staging) -> Staging:
    """The same staging directory, owned by this process from now on (the one that began it may end)."""
    name = private_name("staging").rpartition("-")[0] + "-" + staging.token
    return Staging(staging.path.rename(staging.path.with_name(name)))


def pending(snapshots: Path) -> frozenset[str]:
    """Tokens of the puts under way: staging directories whose owner lives."""
    tokens: set[str] = set()
    for name in names_in(snapshots):
        match = _PATTERN.fullmatch(name)
        if match and match[1] == "staging" and _owner_lives(int(match[2]), int(match[3]), match[4]):
            tokens.add(match[5])
    return frozenset(tokens)


def given_to(staging: Staging, pid: int) -> Staging:
    """The same staging directory, owned by the process `pid` from now on; swept if that one is dead already."""
    name = f".staging-{pid}-{start_time(pid) or 0}-{_boot()}-{staging.token}"
    return Staging(staging.path.rename(staging.path.with_name(name)))


def sweep(snapshots: Path) -> int:
    """Remove staging and trash directories whose owner is dead; returns how many. A living owner's is left alone."""
    removed = 0
    for name in names_in(snapshots):
        match = _PATTERN.fullmatch(name)
        if match and not _owner_lives(int(match[2]), int(match[3]), match[4]):
            remove_tree(snapshots / name)
            removed += 1
    return removed


def _owner_lives(pid: int, started: int, boot: str) -> bool:
    return boot == _boot() and start_time(pid) == started
