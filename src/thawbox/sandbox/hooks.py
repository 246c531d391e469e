"""When programs in a sandbox are told of checkpoints and restores, and what follows when they fail.

Rule 1: a checkpoint whose `before` hook fails is not made, and the sandbox runs on with its `after` hooks run.
Rule 2: a restored tree or clone whose `after` hook fails, hangs or lies is destroyed by our caller, never handed out.
Rule 3: a sandbox without hooks costs one look at /proc/PID/net/unix.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

from thawbox.errors import HookFailed, InvalidRequest, StartFailed
from thawbox.model import Phase
from thawbox.sandbox.channels import (
    READY_SECONDS,
    Channel,
    CommandChannel,
    GuestChannel,
    Held,
    HttpChannel,
    Told,
    guest_names,
)
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.observe import is_alive

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Injection:
    """What a clone or restored sandbox is given: it is told to its hooks, and stored nowhere.

    Both are taken out of memory by thawbox.guest before each later checkpoint and given back after it.
    """

    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def __bool__(self) -> bool:
        return bool(self.secrets or self.environment)

    def __repr__(self) -> str:
        return f"<Injection of {len(self.secrets)} secrets, {len(self.environment)} variables>"


NOTHING = Injection()


@dataclass(slots=True)
class Attendance:
    """Who was told before a dump, and must be told after it, and what is held for them meanwhile."""

    names: tuple[str, ...] = ()
    held: Held = field(default_factory=Held)
    channel: Channel | None = None


def channel_of(context: Context, record: Record, *, names: tuple[str, ...] | None = None) -> Channel | None:
    """The way to the programs of a running sandbox, or None when nobody listens.

    `names` are those that must listen; by default whoever does now. Raises HookFailed when `hooks` is `guest` and
    nobody does.
    """
    kind = record.spec.hooks
    if kind.startswith("http://"):
        return HttpChannel(record)
    if kind.startswith("cmd:"):
        return CommandChannel(context, record)
    if kind == "none":
        return None
    found = guest_names(record) if names is None else names
    if not found and kind == "guest":
        raise HookFailed(
            f"{record.name}: no program in it listens by thawbox.guest",
            remediation="let the program call guest.start(), or run it with --hooks auto",
        )
    return GuestChannel(record, found) if found else None


@contextlib.contextmanager
def attending(context: Context, record: Record, attendance: Attendance, *, stop: bool) -> Generator[None]:
    """The programs are told before the block, and told to go on after it; with `stop` only if `go_on` is called.

    A frozen sandbox cannot answer: its programs are not told before, and its clones are told all the same.
    Raises HookFailed, InvalidRequest for a frozen one that holds what no snapshot may; the block then did not run and
    the programs go on.
    """
    if record.phase is Phase.FROZEN and record.given:
        raise InvalidRequest(
            f"{record.name} is frozen and was given secrets or environment, which would be in the snapshot",
            remediation="thaw it: its programs give them up before a checkpoint",
        )
    try:
        if record.phase is not Phase.FROZEN:
            attendance.channel = channel_of(context, record)
        if isinstance(attendance.channel, GuestChannel):
            _tell_guests(record, attendance, attendance.channel.names)
        elif attendance.channel is not None:
            attendance.channel.before(attendance.held)
        yield
    except BaseException:
        if not stop:
            with contextlib.suppress(HookFailed):  # the first failure is the one to report
                go_on(attendance)
        raise
    if not stop:
        go_on(attendance)


def _tell_guests(record: Record, attendance: Attendance, names: tuple[str, ...]) -> None:
    """Tell every guest, those too that were forked by others meanwhile; one that is held forks no more."""
    told: set[str] = set()
    while names:
        told.update(names)
        attendance.channel = GuestChannel(record, tuple(sorted(told)))
        GuestChannel(record, names).before(attendance.held)
        listening = guest_names(record)
        names = tuple(name for name in listening if name not in told)
        attendance.names = tuple(name for name in listening if name in told)


def go_on(attendance: Attendance) -> None:
    """Tell those who were told, and nobody else, that the sandbox runs on; they get back what they gave up.

    Raises HookFailed; it is told once.
    """
    channel, attendance.channel = attendance.channel, None
    held, attendance.held = attendance.held, Held()
    if channel is not None:
        channel.after(Told("checkpoint", environment=held.environment, secrets=held.secrets))


def names_in(record: Record, attendance: Attendance) -> tuple[str, ...]:
    """Who must answer after a restore: whoever was told, or, in a frozen sandbox, whoever listens."""
    return guest_names(record) if record.phase is Phase.FROZEN else attendance.names


def tell_restored(
    context: Context, record: Record, *, what: str, names: tuple[str, ...], slept: float, injection: Injection
) -> None:
    """Tell the programs of a tree that was just restored: `what` is `restore` or `clone`, `slept` is seconds.

    `names` are the guests that the snapshot holds. Raises HookFailed, InvalidRequest when there are secrets and nobody
    takes them; the tree must then be destroyed.
    """
    channel = channel_of(context, record, names=names)
    if channel is None:
        if injection:
            raise _nobody(record)
        return
    channel.after(Told(what, max(0.0, slept), injection.environment, injection.secrets))


def give(context: Context, record: Record, injection: Injection) -> None:
    """Give secrets and environment to the programs of a running sandbox, as when it waited in a pool.

    Raises InvalidRequest when nobody takes them, HookFailed.
    """
    channel = channel_of(context, record)
    if channel is None:
        raise _nobody(record)
    channel.after(Told("given", environment=injection.environment, secrets=injection.secrets))


def _nobody(record: Record) -> InvalidRequest:
    return InvalidRequest(
        f"{record.name} has no hook that could take secrets or environment",
        remediation="let the program import thawbox.guest, or name its hooks with --hooks",
    )


def programs_ready(context: Context, record: Record, *, timeout: float) -> bool:
    """Whether the programs say within `timeout` seconds that they may be checkpointed (`--ready guest`)."""
    return not missing(context, record, timeout=timeout)


def missing(context: Context, record: Record, *, timeout: float = READY_SECONDS) -> tuple[str, ...]:
    """What the programs still wait for before they may be checkpointed; also what there is while nobody answers."""
    asked = replace(record.spec, hooks="auto") if record.spec.hooks == "guest" else record.spec
    try:
        channel = channel_of(context, replace(record, spec=asked))
        return ("a program that calls guest.ready()",) if channel is None else channel.missing(timeout=timeout)
    except HookFailed as failed:
        return (failed.cause,)


def wait_until_ready(context: Context, record: Record, *, timeout: float) -> None:
    """Return once the programs say that they may be checkpointed; raises StartFailed after `timeout` seconds.

    The caller need not hold the sandbox's lock: nothing is changed here.
    """
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while waiting := missing(context, record):
        if not is_alive(context, record):
            raise StartFailed(f"{record.name} ended before it was ready to be checkpointed")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{record.name} was not ready to be checkpointed within {timeout:g} s: {', '.join(waiting)}",
                remediation="the program calls guest.ready(), or answers 200 to /internal/checkpoint-ready",
            )
        time.sleep(pause)  # the program may become ready at any time, and does not tell us
        pause = min(2 * pause, LONGEST_PAUSE)
