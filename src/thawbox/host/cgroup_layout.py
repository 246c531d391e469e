"""Which cgroup hierarchies this machine has: version 2, version 1, or both side by side.

Rule 1: everything here is read from two texts of the kernel, so every layout can be tested on any machine.
Rule 2: a controller sits on exactly one hierarchy; where version 1 holds it, version 2 does not.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from thawbox.errors import Unsupported

FREEZER = "freezer"
CPUACCT = "cpuacct"
_CONTROLLERS_V1 = frozenset(
    {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb"}
    | {"memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"}
)
_BUILT_INTO_V2 = frozenset({FREEZER, CPUACCT})
"""Version 2 freezes and counts CPU time in every group, with no controller enabled."""


class Placement(enum.Enum):
    """Where our groups are made: under the root of each hierarchy, or below the group that we run in.

    OWN is for a node that was delegated its own group (systemd `Delegate=yes` with `DelegateSubgroup=`, a container
    without the host's hierarchy); ROOT leaves the limits of the group that the node runs in.
    """

    ROOT = "root"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy. `own` is the group of this process, relative to `mount` ("" is the mount)."""

    version: int
    mount: Path
    controllers: frozenset[str]
    own: str = ""

    def parent(self, placement: Placement) -> Path:
        """The group under which the node's groups are made."""
        return self.mount / self.own if placement is Placement.OWN else self.mount


@dataclass(frozen=True, slots=True)
class Layout:
    """The hierarchies of a machine: the version 1 ones by controller, and the version 2 one if it is mounted."""

    v1: Mapping[str, Hierarchy] = field(default_factory=dict[str, Hierarchy])
    v2: Hierarchy | None = None

    def seat(self, controller: str) -> Hierarchy | None:
        """The hierarchy that holds `controller`, or None if nothing on this machine does.

        `freezer` prefers version 1 where both could: CRIU works with a version 1 group that is already frozen and
        leaves it so, while it polls for 100 ms on version 2 and leaves it thawed.
        """
        if controller in self.v1:
            return self.v1[controller]
        if self.v2 and (controller in self.v2.controllers or controller in _BUILT_INTO_V2):
            return self.v2
        return None

    def below(self, cgroup: str) -> Layout:
        """The same machine with the groups of another process, told by its `/proc/PID/cgroup`, as our own.

        Version 2 lends no controller then: a group that holds processes cannot hand any on, and its limits count for
        what is below it anyway.
        """
        paths = _own_paths(cgroup)
        v1 = {name: replace(seat, own=paths.get(name, "/").strip("/")) for name, seat in self.v1.items()}
        v2 = self.v2 and replace(self.v2, own=paths.get("", "/").strip("/"), controllers=frozenset())
        return replace(self, v1=v1, v2=v2)

    def without(self, controller: str) -> Layout:
        """The same machine had it not mounted `controller` on version 1."""
        return replace(self, v1={name: seat for name, seat in self.v1.items() if name != controller})


def parse_layout(mountinfo: str, cgroup: str, *, v2_controllers: frozenset[str] = frozenset()) -> Layout:
    """The layout told by the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (see cgroups(7), proc(5)).

    `v2_controllers` is what `cgroup.controllers` of the version 2 root names. Of several mounts of one hierarchy the
    first that shows its root is taken.
    """
    own_paths = _own_paths(cgroup)
    v1: dict[str, tuple[bool, Hierarchy]] = {}
    v2: tuple[bool, Hierarchy] | None = None
    for root, mount, kind, options in _cgroup_mounts(mountinfo):
        whole = root == "/"
        if kind == "cgroup2":
            if v2 is None or (whole and not v2[0]):
                v2 = whole, Hierarchy(2, mount, v2_controllers, _below(root, own_paths.get("", "/")))
            continue
        names = frozenset(options) & _CONTROLLERS_V1
        for name in names:
            if name not in v1 or (whole and not v1[name][0]):
                v1[name] = whole, Hierarchy(1, mount, names, _below(root, own_paths.get(name, "/")))
    return Layout({name: found for name, (_, found) in v1.items()}, v2[1] if v2 else None)


def detect_layout(placement: Placement = Placement.ROOT) -> Layout:
    """The layout of this machine, as groups made by `placement` see it.

    Raises Unsupported when no cgroup hierarchy is mounted.
    """
    layout = parse_layout(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if not layout.v1 and layout.v2 is None:
        raise Unsupported("no cgroup hierarchy is mounted", remediation="mount -t cgroup2 none /sys/fs/cgroup")
    if layout.v2 is None:
        return layout
    names = (layout.v2.parent(placement) / "cgroup.controllers").read_text().split()
    return replace(layout, v2=replace(layout.v2, controllers=frozenset(names)))


def _cgroup_mounts(mountinfo: str) -> list[tuple[str, Path, str, list[str]]]:
    """(root within the hierarchy, mount point, filesystem type, super options) of each cgroup mount."""
    found: list[tuple[str, Path, str, list[str]]] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        if kind in ("cgroup", "cgroup2"):
            words = left.split(" ")
            found.append((_unescape(words[3]), Path(_unescape(words[4])), kind, options.split(",")))
    return found


def _own_paths(cgroup: str) -> dict[str, str]:
    """The group of this process by version 1 controller; under "" that of version 2."""
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        number, names, path = line.split(":", 2)
        paths.update({"": path} if number == "0" else dict.fromkeys(names.split(","), path))
    return paths


def _below(root: str, path: str) -> str:
    """`path` of a hierarchy as seen under a mount that shows `root` of it; "" where the mount does not reach it."""
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else ""


def _unescape(text: str) -> str:
    """A mountinfo field with its octal escapes (`\\040`) resolved."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
