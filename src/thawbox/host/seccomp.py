"""What a sandbox's processes may ask of the kernel: capabilities, and the field's default seccomp profile.

Rule 1: the profile is Moby's, unchanged (`profiles/`); each difference stands in `seccomp_profile`, with its reason.
Rule 2: a call that programs know how to do without answers ENOSYS, so that they fall back; one that is refused for
safety answers EPERM.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec

from thawbox.errors import Unsupported
from thawbox.host.files import private_directory, write_durably

PROFILE = "moby-20.10.24.json"

DEFAULT_CAPABILITIES: Mapping[str, int] = {
    "CAP_CHOWN": 0,  # package managers and archives set owners
    "CAP_DAC_OVERRIDE": 1,  # root inside reads and writes what it owns in name only
    "CAP_FOWNER": 3,  # chmod and utime on files of other users inside
    "CAP_FSETID": 4,  # keeps setuid bits over writes, as tar and cp expect
    "CAP_KILL": 5,  # root inside stops processes of other users inside
    "CAP_SETGID": 6,  # servers drop to a user of their own
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,  # servers give up capabilities for good
    "CAP_NET_BIND_SERVICE": 10,  # ports below 1024 of its own network namespace
    "CAP_SYS_CHROOT": 18,  # postfix, sshd and build tools chroot
    "CAP_SETFCAP": 31,  # packages set file capabilities
}
"""Names and numbers (linux/capability.h) of what a sandbox's root may do: Docker's fourteen without three.

CAP_MKNOD: a device node of the host's disk would be a way out. CAP_NET_RAW: forged packets on a shared link, and ping
works without. CAP_AUDIT_WRITE: it writes to the host's log.
"""

_COMPILER = 1
"""Counts changes of our own rules: filters compiled before one are not taken from the cache."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def capability_mask(capabilities: Mapping[str, int] = DEFAULT_CAPABILITIES) -> int:
    """The capabilities as one number, a bit each, as /proc/PID/status shows them."""
    return sum(1 << number for number in capabilities.values())


def compile_filter(cache: Path, *, capabilities: Mapping[str, int] = DEFAULT_CAPABILITIES) -> bytes:
    """The default profile for this machine as an array of `struct sock_filter` (seccomp(2)), 8 bytes each.

    `capabilities` are those that the sandbox will have. Kept below `cache` by digest, since compiling takes
    some 17 ms. Raises Unsupported when libseccomp is missing or the machine is of an architecture that we do not know.
    """
    machine, release = _architecture(), platform.release()
    profile = resources.files("thawbox.host").joinpath("profiles", PROFILE).read_bytes()
    asked = f"{_COMPILER} {machine} {release} {sorted(capabilities)}".encode()
    kept = private_directory(cache) / f"seccomp-{hashlib.sha256(profile + asked).hexdigest()[:32]}"
    try:
        return kept.read_bytes()
    except FileNotFoundError:
        pass
    try:
        from thawbox.host.seccomp_profile import Host, Profile, compile_rules, kernel_version
    except (RuntimeError, OSError) as missing:
        raise Unsupported(f"libseccomp cannot be used: {missing}", remediation="install libseccomp2") from missing

    host = Host(machine, kernel_version(release), frozenset(capabilities))
    compiled = compile_rules(msgspec.json.decode(profile, type=Profile).syscalls, host)
    write_durably(kept, compiled)
    return compiled


def _architecture() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise Unsupported(f"no seccomp profile for {machine}", remediation="run on x86_64 or aarch64")
    return _ARCHITECTURES[machine]
