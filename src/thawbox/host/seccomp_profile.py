"""A seccomp profile in Moby's format, its conditions, and its compilation by libseccomp.

Importing this starts a program (pyseccomp looks for the library), so it is imported only when a filter is not cached.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec
import pyseccomp  # pyright: ignore[reportMissingTypeStubs]

EPERM = 1
ENOSYS = 38
NOT_DUMPABLE = (
    "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "memfd_secret",
    "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
)  # fmt: skip
"""Calls whose result CRIU cannot put into a snapshot: rings, fault descriptors and secret memory fail the dump; a
Landlock domain would be missing after a restore without a word. Each program that uses them has a fallback."""

NEWEST_NUMBER = 600
"""Calls newer than the profile, up to this number, answer ENOSYS as on an older kernel, which is what programs probe
for; glibc takes EPERM for an answer. Linux 6.18 ends at 470."""


_AF_VSOCK = 40


class Arg(msgspec.Struct, rename="camel"):
    index: int
    value: int
    op: str
    value_two: int = 0


class Condition(msgspec.Struct, rename="camel"):
    caps: list[str] = []
    arches: list[str] = []
    min_kernel: str = ""


class Rule(msgspec.Struct, rename="camel"):
    names: list[str]
    action: str
    args: list[Arg] | None = None
    errno_ret: int | None = None
    includes: Condition = msgspec.field(default_factory=Condition)
    excludes: Condition = msgspec.field(default_factory=Condition)


class Profile(msgspec.Struct, rename="camel"):
    syscalls: list[Rule]


@dataclass(frozen=True, slots=True)
class Host:
    """What a profile's conditions ask about: architecture as Go names it, kernel version, capabilities."""

    architecture: str
    kernel: tuple[int, int]
    capabilities: frozenset[str]


def compile_rules(rules: list[Rule], host: Host) -> bytes:
    """The rules that apply to `host`, and our own, as an array of `struct sock_filter`."""
    compiled = pyseccomp.SyscallFilter(pyseccomp.ERRNO(EPERM))
    # A call of another architecture (32-bit programs) is not judged by these numbers: refuse it, do not kill.
    compiled.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(ENOSYS))
    compiled.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: ~10 comparisons a call, not ~300
    newest = _newest(rules)
    for rule in rules:
        if applies(rule, host):
            _add_rule(compiled, rule)
    for name in NOT_DUMPABLE:
        compiled.add_rule(pyseccomp.ERRNO(ENOSYS), name)
    # As newer Moby does: a sandbox on a virtual machine must not reach the machine's own host.
    compiled.add_rule(pyseccomp.ALLOW, "socket", pyseccomp.Arg(0, pyseccomp.NE, _AF_VSOCK))
    for number in range(newest + 1, NEWEST_NUMBER + 1):
        compiled.add_rule(pyseccomp.ERRNO(ENOSYS), number)
    with os.fdopen(os.memfd_create("seccomp"), "r+b") as file:
        compiled.export_bpf(file)
        file.seek(0)
        return file.read()


def _add_rule(compiled: pyseccomp.SyscallFilter, rule: Rule) -> None:
    action = pyseccomp.ALLOW
    if rule.action == "SCMP_ACT_ERRNO":
        action = pyseccomp.ERRNO(EPERM if rule.errno_ret is None else rule.errno_ret)
    if action == pyseccomp.ERRNO(EPERM):
        return  # the default already
    operators = {"SCMP_CMP_EQ": pyseccomp.EQ, "SCMP_CMP_NE": pyseccomp.NE, "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ}
    args = [pyseccomp.Arg(arg.index, operators[arg.op], arg.value, arg.value_two) for arg in rule.args or ()]
    for name in rule.names:
        if name not in NOT_DUMPABLE and name != "socket" and _number(name) >= 0:
            compiled.add_rule(action, name, *args)


def _number(name: str) -> int:
    """The call's number here; negative where this architecture or this libseccomp does not have it."""
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def _newest(rules: list[Rule]) -> int:
    """The number of the newest call that the profile knows."""
    return max(_number(name) for rule in rules for name in rule.names)


def applies(rule: Rule, host: Host) -> bool:
    """Whether the host meets all conditions of a rule (Moby's profiles/seccomp/seccomp_linux.go)."""
    wanted, unwanted = rule.includes, rule.excludes
    if wanted.caps and not host.capabilities.issuperset(wanted.caps):
        return False
    if wanted.arches and host.architecture not in wanted.arches:
        return False
    if wanted.min_kernel and host.kernel < kernel_version(wanted.min_kernel):
        return False
    return host.capabilities.isdisjoint(unwanted.caps) and host.architecture not in unwanted.arches


def kernel_version(release: str) -> tuple[int, int]:
    """The first two numbers of a kernel release (`6.18.44-x`)."""
    major, minor = release.split(".")[:2]
    return int(major), int(minor.partition("-")[0])
