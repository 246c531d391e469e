"""The nouns: frozen values that every layer shares. No I/O, no clock, no policy."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType
from urllib.parse import urlsplit

from thawbox.errors import InvalidSpec

SandboxId = NewType("SandboxId", str)
"""`sb-` and twelve lower-case hex digits."""

SnapshotId = NewType("SnapshotId", str)
"""The SHA-256 of the snapshot's manifest, 64 lower-case hex digits."""

NAME_PATTERN = re.compile(r"[a-z0-9A-Z](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
"""What names of sandboxes, snapshots, templates and pools look like: 1 to 63 letters, digits, `-`, `_`, `.`."""


def checked_name(name: str, what: str = "name") -> str:
    """Return `name` if it is a legal name, else raise InvalidSpec. The one place where names are validated."""
    if not NAME_PATTERN.fullmatch(name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise InvalidSpec(
            f"{what} {shown!r} is not a legal name",
            remediation="use 1 to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        )
    return name


class Net(enum.Enum):
    """What a sandbox sees of the network: its loopback alone, or the outside through address translation."""

    NONE = "none"
    NAT = "nat"


class Phase(enum.Enum):
    """Where in its life a sandbox is. `lifecycle` holds the only table of moves between these."""

    CREATING = "creating"
    RUNNING = "running"
    FROZEN = "frozen"
    SUSPENDED = "suspended"
    """Stopped on purpose after a checkpoint: no process left, a snapshot to restore from."""
    EXITED = "exited"
    """The main program ended by itself or was stopped."""
    LOST = "lost"
    """Died without being asked."""


class SnapshotKind(enum.Enum):
    FULL = "full"
    DELTA = "delta"


class Restart(enum.Enum):
    """Which ends of a sandbox a supervisor answers with a restore. One that was asked for is never among them."""

    NO = "no"
    ON_FAILURE = "on-failure"
    """Every end but exit status 0."""
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Health:
    """A question asked every `interval` seconds; `threshold` refusals in a row mean that the sandbox hangs.

    `probe` is `cmd:…`, `http://…` or `tcp:PORT`; each asking may take `timeout` seconds. A TCP connection is accepted
    by the kernel, so a deadlock shows only to the other two.
    """

    probe: str
    interval: float = 10.0
    timeout: float = 5.0
    threshold: int = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host seen inside the sandbox. `target` is absolute."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A host port forwarded to a port of the sandbox; `host_port` 0 lets the node choose."""

    host_port: int
    port: int
    host_address: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run and within which limits. JSON-serialisable by msgspec; validated by `check_spec`.

    `memory` is bytes, `cpus` a number of cores, `pids` a number of tasks; None means no limit of our own.
    `ready` is empty or one of `cmd:…`, `http://…`, `tcp:PORT`, `log:TEXT`, `guest`. `restart`, `health`,
    `checkpoint_every` (seconds; 0: never), `checkpoint_on_pressure`, `checkpoint_on_drain`, `keep` and `spare` are what
    a supervisor goes by, as `restart_plan.Policy` says; without one they do nothing.
    `hooks` says who is told of checkpoints and restores: `guest` (programs that import thawbox.guest; `auto`: if there
    are any), `http://127.0.0.1:PORT`, `cmd:COMMAND` or `none`. `hook_timeout` is seconds for each call.
    """

    command: tuple[str, ...]
    name: str = ""
    rootfs: str = "SYSTEM"
    env: dict[str, str] = field(default_factory=dict[str, str])
    user: str = "root"
    workdir: str = "/"
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = 4096
    mounts: tuple[Mount, ...] = ()
    net: Net = Net.NONE
    publish: tuple[Publish, ...] = ()
    read_only: bool = False
    ready: str = ""
    ready_timeout: float = 60.0
    labels: dict[str, str] = field(default_factory=dict[str, str])
    restart: Restart = Restart.NO
    health: Health | None = None
    checkpoint_every: float = 0.0
    checkpoint_on_pressure: bool = False
    checkpoint_on_drain: bool = False
    keep: int = 3
    spare: bool = False
    hooks: str = "auto"
    hook_timeout: float = 30.0


MIN_MEMORY = 4 << 20
_PROBE_PREFIXES = ("cmd:", "http://", "tcp:")
_HOOKS = re.compile(r"auto|guest|none|cmd:.+|http://(127\.0\.0\.1|localhost)(:\d{1,5})?/?", re.DOTALL)


def check_spec(spec: Spec) -> Spec:
    """Return `spec` unchanged if it can be run on some host; raise InvalidSpec naming the first field that cannot.

    Checks what needs no I/O; whether a mount source or rootfs exists is checked where it is opened.
    """
    if (not spec.command and spec.rootfs == "SYSTEM") or (spec.command and not spec.command[0]):
        raise InvalidSpec("the spec names no command", remediation="give the program after `--`")
    if spec.name:
        checked_name(spec.name, "sandbox name")
    _check_texts(spec)
    if not spec.workdir.startswith("/"):
        raise InvalidSpec(f"workdir {spec.workdir!r} is not absolute")
    _check_limits(spec)
    for mount in spec.mounts:
        _check_mount(mount)
    for publish in spec.publish:
        _check_publish(publish, spec.net)
    if spec.ready and spec.ready != "guest" and not spec.ready.startswith("log:"):
        _check_probe("readiness probe", spec.ready, ", log:TEXT or guest")
    if spec.ready_timeout <= 0:
        raise InvalidSpec(f"ready_timeout={spec.ready_timeout} is not positive")
    _check_hooks(spec)
    if spec.health is not None:
        check_health(spec.health)
    if not 0 <= spec.checkpoint_every < math.inf:
        raise InvalidSpec(f"checkpoint_every={spec.checkpoint_every} is not a number of seconds")
    if not 1 <= spec.keep < 1_000_000:
        raise InvalidSpec(f"keep={spec.keep} is not at least 1")
    return spec


def check_health(health: Health) -> Health:
    """Return `health` unchanged if it can be asked; raises InvalidSpec."""
    _check_probe("health probe", health.probe, "")
    for name, value in (("interval", health.interval), ("timeout", health.timeout)):
        if not 0 < value < math.inf:
            raise InvalidSpec(f"the health probe's {name} of {value} s is not positive")
    if health.threshold < 1:
        raise InvalidSpec(f"the health probe's threshold of {health.threshold} is not at least 1")
    return health


def _check_probe(what: str, probe: str, also: str) -> None:
    if not probe.startswith(_PROBE_PREFIXES):
        raise InvalidSpec(
            f"{what} {probe!r} is of no known kind",
            remediation=f"use cmd:COMMAND, http://HOST:PORT/PATH, tcp:PORT{also}",
        )
    if probe.startswith("tcp:") and not (probe[4:].isdecimal() and 0 < int(probe[4:]) < 65536):
        raise InvalidSpec(f"{what} {probe!r} names no port", remediation="use tcp:PORT")
    if probe.startswith("http:"):
        _check_url(what, probe)


def _check_url(what: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InvalidSpec(f"{what} {url!r} cannot be asked: {error}", remediation="use http://HOST:PORT/PATH") from None
    if not host or port == 0:
        raise InvalidSpec(f"{what} {url!r} names no host or port", remediation="use http://HOST:PORT/PATH")


def _check_hooks(spec: Spec) -> None:
    if not _HOOKS.fullmatch(spec.hooks):
        raise InvalidSpec(
            f"hooks {spec.hooks!r} are of no known kind",
            remediation="use auto, guest, none, http://127.0.0.1:PORT or cmd:COMMAND",
        )
    if spec.hooks.startswith("http:"):
        _check_url("hooks", spec.hooks)
    if not 0 < spec.hook_timeout <= 3600:
        raise InvalidSpec(f"hook_timeout={spec.hook_timeout} is outside 0 to 3600 seconds")


def _check_texts(spec: Spec) -> None:
    for text in (*spec.command, *spec.env.keys(), *spec.env.values(), spec.user, spec.workdir, spec.rootfs):
        if "\0" in text:
            raise InvalidSpec("a command, environment or path text holds a NUL byte")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidSpec(f"a command, environment or path text is not UTF-8: {text!r}"[:200])
        if len(text.encode()) > LONGEST_TEXT:
            raise InvalidSpec(f"a command, environment or path text has more than {LONGEST_TEXT} bytes")
    for text in (spec.ready, spec.hooks):
        if "\0" in text or len(text) > LONGEST_TEXT:
            raise InvalidSpec("a probe or hook holds a NUL byte, or is too long")
    checked_labels(spec.labels)
    for key in spec.env:
        if not key or "=" in key:
            raise InvalidSpec(f"environment name {key!r} is empty or holds '='")


LONGEST_TEXT = (128 << 10) - 1
"""Bytes of one argument or environment entry: the kernel's own limit (MAX_ARG_STRLEN, execve(2))."""
_MOST_LABELS, _LONGEST_KEY, _LONGEST_VALUE = 64, 253, 4096


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return `labels` if there are not too many, nor too long ones, and no NUL in them; raise InvalidSpec."""
    if len(labels) > _MOST_LABELS:
        raise InvalidSpec(f"{len(labels)} labels are more than {_MOST_LABELS}")
    for key, value in labels.items():
        if not 1 <= len(key) <= _LONGEST_KEY or len(value) > _LONGEST_VALUE or "\0" in key + value:
            raise InvalidSpec(
                f"the label {key[:40]!r} is not possible",
                remediation=f"give 1 to {_LONGEST_KEY} characters as key, at most {_LONGEST_VALUE} as value, no NUL",
            )
    return labels


def _check_limits(spec: Spec) -> None:
    if spec.memory is not None and spec.memory < MIN_MEMORY:
        raise InvalidSpec(
            f"a memory limit of {spec.memory} bytes is too small to start in", remediation="give at least 4M"
        )
    if spec.cpus is not None and not 0.01 <= spec.cpus <= 4096:
        raise InvalidSpec(f"cpus={spec.cpus} is outside 0.01 to 4096")
    if spec.pids is not None and not 8 <= spec.pids <= 4_000_000:
        raise InvalidSpec(f"pids={spec.pids} is outside 8 to 4000000")


def _check_mount(mount: Mount) -> None:
    parts = mount.target.split("/")
    if not mount.target.startswith("/") or mount.target == "/" or ".." in parts:
        raise InvalidSpec(f"mount target {mount.target!r} is not an absolute path below /")
    if parts[1] in {"proc", "sys", ".thawbox"}:
        raise InvalidSpec(f"mount target {mount.target!r} lies in a directory that thawbox provides")
    if not mount.source.startswith("/"):
        raise InvalidSpec(f"mount source {mount.source!r} is not absolute")
    if "\0" in mount.source + mount.target or "\n" in mount.source + mount.target:
        raise InvalidSpec("a mount path holds a NUL byte or a line break")


def _check_publish(publish: Publish, net: Net) -> None:
    if net is not Net.NAT:
        raise InvalidSpec("a port is published but the sandbox has no network", remediation="add --net nat")
    if not (0 <= publish.host_port <= 65535 and 1 <= publish.port <= 65535):
        raise InvalidSpec(f"published ports {publish.host_port}:{publish.port} are outside 1 to 65535")
