"""What tells one sandbox from another: id, name, hostname, machine id. Fresh from the kernel's randomness."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from thawbox.model import SandboxId, checked_name

MAX_HOSTNAME = 63


@dataclass(frozen=True, slots=True)
class Identity:
    """A sandbox's own. `machine_id` is 32 hex digits, as in /etc/machine-id (machine-id(5))."""

    id: SandboxId
    name: str
    hostname: str
    machine_id: str


def new_identity(name: str = "", *, like: str = "") -> Identity:
    """A new identity; without a `name`, one is made from `like` (a sandbox's name) or `sb`. Raises InvalidSpec."""
    digits = secrets.token_hex(6)
    chosen = checked_name(name, "sandbox name") if name else f"{_stem(like)}-{digits[:6]}"
    return Identity(SandboxId(f"sb-{digits}"), chosen, _hostname(chosen), secrets.token_hex(16))


def renamed(identity: Identity, name: str) -> Identity:
    """The same, under another name; raises InvalidSpec."""
    return replace(identity, name=checked_name(name, "sandbox name"), hostname=_hostname(name))


def _hostname(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")[:MAX_HOSTNAME]


def _stem(name: str) -> str:
    """A name less the six digits that an earlier clone of it got, short enough for six more."""
    stem, dash, tail = name.rpartition("-")
    if dash and len(tail) == 6 and all(char in "0123456789abcdef" for char in tail):
        name = stem
    return name[:50].rstrip("-_.") or "sb"
