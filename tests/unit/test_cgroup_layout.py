"""Layouts read from the recorded texts of real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from thawbox.host.cgroup_layout import Placement, parse_layout
from thawbox.host.cgroup_limits import limit_writes, node_weight

V2_ONLY = """\
24 30 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
35 25 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""
V2_ONLY_OWN = "0::/user.slice/user-1000.slice/session-3.scope\n"

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = """\
9:name=systemd:/
8:pids:/
6:freezer:/
4:memory:/process_api/64f4
2:cpuacct:/
1:cpu:/
0::/
"""

V1_SYSTEMD = """\
25 18 0:21 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
30 25 0:26 / /sys/fs/cgroup/memory rw,nosuid,nodev shared:13 - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:14 - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/freezer rw,nosuid shared:16 - cgroup cgroup rw,freezer
34 25 0:30 / /sys/fs/cgroup/pids rw,nosuid shared:17 - cgroup cgroup rw,pids
"""
V1_SYSTEMD_OWN = """\
11:memory:/system.slice/ssh.service
4:cpu,cpuacct:/system.slice/ssh.service
3:freezer:/
2:pids:/system.slice/ssh.service
1:name=systemd:/system.slice/ssh.service
"""

DOCKER_V1 = """\
800 799 0:32 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup memory rw,memory
801 799 0:32 / /host\\040cgroup/memory rw,relatime - cgroup memory rw,memory
802 799 0:33 /docker/abc /sys/fs/cgroup/freezer ro,relatime - cgroup freezer rw,freezer
"""
DOCKER_V1_OWN = "4:memory:/docker/abc/inner\n3:freezer:/docker/abc\n"


def test_version_2_alone_holds_every_controller_it_names() -> None:
    layout = parse_layout(V2_ONLY, V2_ONLY_OWN, v2_controllers=frozenset({"cpu", "memory", "pids"}))
    seats = [layout.seat(name) for name in ("memory", "cpu", "pids", "freezer", "cpuacct")]
    assert {(seat.version, seat.mount) for seat in seats if seat} == {(2, Path("/sys/fs/cgroup"))}
    assert None not in seats
    assert layout.seat("devices") is None


def test_own_placement_lies_below_our_own_group_and_root_placement_does_not() -> None:
    seat = parse_layout(V2_ONLY, V2_ONLY_OWN).seat("freezer")
    assert seat is not None
    assert seat.parent(Placement.ROOT) == Path("/sys/fs/cgroup")
    assert seat.parent(Placement.OWN) == Path("/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope")


def test_hybrid_takes_each_controller_where_it_sits() -> None:
    layout = parse_layout(HYBRID, HYBRID_OWN, v2_controllers=frozenset({"hugetlb"}))
    memory, freezer, hugetlb = layout.seat("memory"), layout.seat("freezer"), layout.seat("hugetlb")
    assert memory is not None and memory.mount == Path("/sys/fs/cgroup/memory")
    assert memory.own == "process_api/64f4"
    assert freezer is not None and (freezer.version, freezer.own) == (1, "")
    assert hugetlb is not None and hugetlb.version == 2


def test_without_the_version_1_freezer_version_2_freezes() -> None:
    seat = parse_layout(HYBRID, HYBRID_OWN).without("freezer").seat("freezer")
    assert seat is not None
    assert (seat.version, seat.mount) == (2, Path("/sys/fs/cgroup/unified"))


def test_controllers_mounted_together_share_one_hierarchy() -> None:
    layout = parse_layout(V1_SYSTEMD, V1_SYSTEMD_OWN)
    assert layout.v2 is None
    assert layout.seat("cpu") == layout.seat("cpuacct")
    memory, freezer = layout.seat("memory"), layout.seat("freezer")
    assert memory is not None and memory.own == "system.slice/ssh.service"
    assert freezer is not None and freezer.own == ""


def test_a_mount_that_shows_the_whole_hierarchy_wins_over_a_bind_of_a_part() -> None:
    layout = parse_layout(DOCKER_V1, DOCKER_V1_OWN)
    memory, freezer = layout.seat("memory"), layout.seat("freezer")
    assert memory is not None and memory.mount == Path("/host cgroup/memory")
    assert memory.own == "docker/abc/inner"
    assert freezer is not None and freezer.own == ""


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_allows_no_swap_on_either_version(version: int) -> None:
    written = dict(limit_writes("memory", 1 << 26, version=version))
    swap = {1: ("memory.memsw.limit_in_bytes", str(1 << 26)), 2: ("memory.swap.max", "0")}[version]
    assert swap in written.items()


def test_cpu_limits_are_a_share_of_a_hundred_milliseconds() -> None:
    assert limit_writes("cpu", 1.5, version=2) == [("cpu.max", "150000 100000")]
    assert ("cpu.cfs_quota_us", "50000") in limit_writes("cpu", 0.5, version=1)
    assert ("cpu.cfs_quota_us", "1000") in limit_writes("cpu", 0.01, version=1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("controller", ["memory", "cpu", "pids"])
def test_no_limit_is_written_as_the_kernel_words_it(controller: str, version: int) -> None:
    texts = {text for _, text in limit_writes(controller, None, version=version)}
    assert texts & {"-1", "max", "max 100000"}


def test_a_nodes_group_weighs_as_much_as_a_program_on_every_cpu_and_no_more_than_the_kernel_takes() -> None:
    assert node_weight(version=1, cpus=4) == ("cpu.shares", "4096")
    assert node_weight(version=2, cpus=4) == ("cpu.weight", "400")
    assert node_weight(version=1, cpus=1000) == ("cpu.shares", "262144")
    assert node_weight(version=2, cpus=1000) == ("cpu.weight", "10000")
