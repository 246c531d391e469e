"""What a snapshot needs of the machine that restores it. Pure: the facts of this machine are passed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from thawbox.errors import Incompatible


@dataclass(frozen=True, slots=True)
class Compat:
    """Facts of the machine and engine that made a snapshot.

    `cpu_features` are the kernel's flag names that restored programs may rely on, sorted; `rootfs` is the digest of
    the read-only rootfs beneath the layers, empty where the layers hold everything.
    """

    arch: str
    kernel: str
    engine: str
    """`criu 4.2.1`, say: the engine's name and version."""
    cpu_features: tuple[str, ...] = ()
    rootfs: str = ""
    extra: dict[str, str] = field(default_factory=dict[str, str])
    """Further facts that must be equal, by name."""


def differences(snapshot: Compat, machine: Compat) -> tuple[str, ...]:
    """What `machine` lacks to restore the snapshot, one phrase each; empty when nothing is missing.

    A newer kernel and a newer version of the same engine are no obstacle; older ones are.
    """
    found: list[str] = []
    if snapshot.arch != machine.arch:
        found.append(f"architecture is {machine.arch}, the snapshot's is {snapshot.arch}")
    missing = sorted(set(snapshot.cpu_features) - set(machine.cpu_features))
    if missing and snapshot.arch == machine.arch:
        found.append(f"CPU lacks {', '.join(missing)}")
    if version_numbers(machine.kernel)[:2] < version_numbers(snapshot.kernel)[:2]:
        found.append(f"kernel is {machine.kernel}, the snapshot's is {snapshot.kernel}")
    here, there = machine.engine.partition(" "), snapshot.engine.partition(" ")
    if here[0] != there[0]:
        found.append(f"engine is {here[0]}, the snapshot's is {there[0]}")
    elif version_numbers(here[2])[:2] < version_numbers(there[2])[:2]:
        found.append(f"engine is {machine.engine}, the snapshot's is {snapshot.engine}")
    if snapshot.rootfs != machine.rootfs:
        found.append(
            f"rootfs digest is {machine.rootfs[:12] or 'none'}, the snapshot's is {snapshot.rootfs[:12] or 'none'}"
        )
    for name, value in sorted(snapshot.extra.items()):
        if machine.extra.get(name) != value:
            found.append(f"{name} is {machine.extra.get(name)}, the snapshot's is {value}")
    return tuple(found)


def check_compat(snapshot: Compat, machine: Compat, *, what: str) -> None:
    """Raise Incompatible, naming everything that differs, if `machine` cannot restore the snapshot `what`."""
    found = differences(snapshot, machine)
    if found:
        raise Incompatible(f"{what} cannot be restored here: {'; '.join(found)}")


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version text: `6.18.44-fc` gives (6, 18, 44)."""
    numbers: list[int] = []
    for part in version.partition("-")[0].split("."):
        digits = "".join(char for char in part if char.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
