"""Sandboxes with a way out, in network namespaces of the test's own: the host's is never touched."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from thawbox.errors import InvalidRequest, InvalidSpec, Unavailable
from thawbox.host.nat_rules import delete_elements_text, element_text, ruleset_text
from thawbox.host.network import (
    NatLink,
    check_port,
    choose_port,
    host_interface,
    host_nameservers,
    mac_address,
    prune,
    remove_node_rules,
)
from thawbox.model import Publish, SandboxId

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SUBNET = IPv4Network("10.231.0.0/16")
HOST, WORLD, METADATA = "203.0.113.2", "203.0.113.1", "169.254.169.254"
NEWNET = 0x40000000
ONE, TWO = SandboxId("sb-000000000001"), SandboxId("sb-000000000002")

SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(server.getsockname()[1], flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
source = (sys.argv[3], 0) if len(sys.argv) > 3 else None
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5, source).recv(99).decode(), end="")
except OSError as refused:
    print("refused", end="")
"""


RECEIVER = """
import socket, sys
receiver = socket.socket(type=socket.SOCK_DGRAM)
receiver.bind((sys.argv[1], int(sys.argv[2])))
print("in", flush=True)
said, peer = receiver.recvfrom(99)
print(peer[0], said.decode())
"""
SENDER = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.bind((sys.argv[3], 0))
sender.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Place:
    """A network namespace, held by a process."""

    pid: int
    undo: ExitStack

    def command(self, code: str, *args: object) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", sys.executable, "-c", code, *map(str, args)]

    def serve(self, address: str, port: int = 0) -> int:
        server = self.undo.enter_context(
            subprocess.Popen(self.command(SERVER, address, port), stdout=subprocess.PIPE, text=True)
        )
        self.undo.callback(server.kill)
        assert server.stdout is not None
        return int(server.stdout.readline())

    def ask(self, address: object, port: int, *source: str) -> str:
        """What the server there saw as our address, or "refused"."""
        asked = self.command(CLIENT, address, port, *source)
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    def hear(self, address: str, port: int) -> Callable[[], tuple[str, ...]]:
        """Listen for one datagram; the call returns who seemed to send it and what it said."""
        listener = self.undo.enter_context(
            subprocess.Popen(self.command(RECEIVER, address, port), stdout=subprocess.PIPE, text=True)
        )
        self.undo.callback(listener.kill)
        output = listener.stdout
        assert output is not None and output.readline() == "in\n"
        return lambda: tuple(output.readline().split())

    def netlink(self, action: Callable[[Any], None]) -> None:
        in_namespace(f"/proc/{self.pid}/ns/net", action)


def in_namespace(path: str, action: Callable[[Any], None]) -> None:
    from pyroute2 import IPRoute

    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before, Path(path).open() as there:
        assert libc.setns(there.fileno(), NEWNET) == 0
        try:
            with IPRoute() as route:
                action(route)
        finally:
            assert libc.setns(before.fileno(), NEWNET) == 0


def up(route: Any, name: str, *addresses: str) -> int:
    (index,) = route.link_lookup(ifname=name)
    route.link("set", index=index, state="up")
    for address in addresses:
        route.addr("add", index=index, address=address, prefixlen=24)
    return int(index)


@dataclass(frozen=True)
class Net:
    """A host of the test's own, a world outside it, and two empty sandboxes."""

    host: Place
    world: Place
    one: Place
    two: Place


@pytest.fixture
def net() -> Iterator[Net]:
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as undo:
        before = undo.enter_context(Path("/proc/thread-self/ns/net").open())
        assert libc.unshare(NEWNET) == 0
        undo.callback(libc.setns, before.fileno(), NEWNET)
        net = Net(Place(os.getpid(), undo), *(held(undo) for _ in range(3)))
        in_namespace("/proc/thread-self/ns/net", lambda route: connect(route, net.world))
        for place in (net.one, net.two):
            place.netlink(lambda route: up(route, "lo") and None)
        yield net


def held(undo: ExitStack) -> Place:
    holder = undo.enter_context(
        subprocess.Popen(["unshare", "-n", "sh", "-c", "echo in; exec cat"], stdin=-1, stdout=-1, text=True)
    )
    undo.callback(holder.kill)
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    return Place(holder.pid, undo)


def connect(route: Any, world: Place) -> None:
    up(route, "lo")
    with Path(f"/proc/{world.pid}/ns/net").open() as there:
        route.link("add", ifname="out", kind="veth", peer={"ifname": "out", "net_ns_fd": there.fileno()})
    index = up(route, "out", HOST)
    world.netlink(lambda route: up(route, "lo") and up(route, "out", WORLD, METADATA) and None)
    route.route("add", dst="169.254.0.0/16", oif=index, scope="link")


def link(sandbox_id: SandboxId, number: int, *publish: Publish) -> NatLink:
    return NatLink("t", sandbox_id, IPv4Address(f"10.231.0.{number}"), SUBNET, publish)


def links() -> list[str]:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return sorted(name for line in lines if (name := line.split(":")[0].strip()).startswith("tb"))


@needs_root
def test_a_sandbox_reaches_the_world_under_the_hosts_address(net: Net) -> None:
    link(ONE, 5).create(pid=net.one.pid)
    assert net.one.ask(WORLD, net.world.serve(WORLD)) == HOST


@needs_root
def test_a_port_published_on_loopback_is_the_hosts_alone(net: Net) -> None:
    inside = net.one.serve("0.0.0.0")
    link(ONE, 5, Publish(8080, inside)).create(pid=net.one.pid)
    assert net.host.ask("127.0.0.1", 8080) == "10.231.0.1"
    assert net.world.ask(HOST, 8080) == "refused"
    assert net.host.ask(HOST, 8080) == "refused"


@needs_root
def test_a_port_published_everywhere_is_reached_from_the_world_and_the_host(net: Net) -> None:
    inside = net.one.serve("0.0.0.0")
    link(ONE, 5, Publish(8080, inside, "0.0.0.0"), Publish(8081, inside, HOST)).create(pid=net.one.pid)
    assert [net.world.ask(HOST, port) for port in (8080, 8081)] == [WORLD, WORLD]
    assert net.host.ask("127.0.0.1", 8080) == "10.231.0.1"
    assert net.host.ask(HOST, 8081) == HOST
    assert net.host.ask("127.0.0.1", 8081) == "refused"


@needs_root
def test_a_sandbox_reaches_no_other_sandbox_no_host_service_and_no_metadata(net: Net) -> None:
    inside = net.two.serve("0.0.0.0")
    link(ONE, 5).create(pid=net.one.pid)
    link(TWO, 6, Publish(8080, inside, "0.0.0.0")).create(pid=net.two.pid)
    assert net.world.ask(HOST, 8080) == WORLD
    assert net.one.ask("10.231.0.6", inside) == "refused"
    service = net.host.serve("0.0.0.0")
    assert [net.one.ask(address, service) for address in ("10.231.0.1", HOST)] == ["refused"] * 2
    assert [net.one.ask(address, 8080) for address in ("10.231.0.1", HOST)] == ["refused"] * 2
    assert net.one.ask(METADATA, net.world.serve(METADATA, 80)) == "refused"
    assert net.one.ask(METADATA, net.world.serve(METADATA, 53)) == HOST
    net.world.netlink(lambda route: route.route("add", dst="10.231.0.0/16", gateway=HOST))
    assert net.world.ask("10.231.0.6", inside) == "refused"


@needs_root
def test_a_sandbox_cannot_lie_about_its_address_nor_reach_the_hosts_loopback(net: Net) -> None:
    port = net.world.serve(WORLD)
    service = net.host.serve("127.0.0.1")
    link(ONE, 5).create(pid=net.one.pid)
    link(TWO, 6).create(pid=net.two.pid)

    def forge(route: Any) -> None:
        (index,) = route.link_lookup(ifname="eth0")
        route.addr("add", index=index, address="10.231.0.6", prefixlen=32)
        route.addr("add", index=index, address="198.51.100.9", prefixlen=32)
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="down")
        route.route("add", dst="127.0.0.1/32", gateway="10.231.0.1", oif=index)

    net.one.netlink(forge)
    heard = net.world.hear(WORLD, 999)
    for forged in ("10.231.0.6", "198.51.100.9", "10.231.0.5"):
        subprocess.run(net.one.command(SENDER, WORLD, 999, forged), check=True)
    assert heard() == (HOST, "10.231.0.5")
    in_one = ["nsenter", "-t", str(net.one.pid), "-n", "sh", "-c"]
    subprocess.run([*in_one, "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"], check=True)
    assert net.one.ask(WORLD, port, "10.231.0.5") == HOST
    assert net.one.ask("127.0.0.1", service, "10.231.0.5") == "refused"


@needs_root
def test_a_removed_link_leaves_nothing_and_its_address_and_port_are_free(net: Net) -> None:
    inside = net.one.serve("0.0.0.0")
    first, other = link(ONE, 5, Publish(8080, inside)), link(TWO, 6, Publish(8081, 1))
    other.create(pid=net.two.pid)
    first.create(pid=net.one.pid)
    first.remove()
    first.remove()
    assert net.host.ask("127.0.0.1", 8080) == "refused"
    assert links() == [other.interface]
    first.create(pid=net.one.pid)
    assert net.host.ask("127.0.0.1", 8080) == "10.231.0.1"
    other.remove()
    assert links() == [first.interface]


@needs_root
def test_a_link_that_cannot_be_made_leaves_nothing(net: Net) -> None:
    link(ONE, 5, Publish(8080, 80)).create(pid=net.one.pid)
    for refused in (link(TWO, 6, Publish(8080, 80)), link(TWO, 6, Publish(9, 9), Publish(8080, 1)), link(TWO, 5)):
        with pytest.raises(Unavailable):
            refused.create(pid=net.two.pid)
        assert links() == [host_interface(ONE)]
    link(TWO, 6, Publish(9, 9)).create(pid=net.two.pid)


@needs_root
def test_what_a_crash_left_is_pruned_and_the_living_stay(net: Net) -> None:
    inside = net.one.serve("0.0.0.0")
    link(ONE, 5, Publish(8080, inside)).create(pid=net.one.pid)
    link(TWO, 6, Publish(8081, 80, "0.0.0.0")).create(pid=net.two.pid)
    assert prune("another", ()) == ()
    assert prune("t", {ONE}) == (TWO,)
    assert links() == [host_interface(ONE)]
    assert net.host.ask("127.0.0.1", 8080) == "10.231.0.1"
    link(TWO, 6, Publish(8081, 80, "0.0.0.0")).create(pid=net.two.pid)
    assert set(prune("t", ())) == {ONE, TWO}
    remove_node_rules("t")
    remove_node_rules("t")
    assert links() == []
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout == b""


@needs_root
def test_a_taken_port_is_refused_before_it_is_published(net: Net) -> None:
    port = net.host.serve("127.0.0.1")
    with pytest.raises(Unavailable, match=str(port)):
        check_port(Publish(port, 80))
    free = choose_port("127.0.0.1", taken={port})
    check_port(Publish(free, 80))


@pytest.mark.parametrize("number", [0, 1])
def test_the_gateway_is_no_sandboxes_address(number: int) -> None:
    with pytest.raises(InvalidSpec):
        link(ONE, number).create(pid=0)


def test_names_and_macs_come_from_the_sandbox_alone() -> None:
    assert host_interface(SandboxId("sb-0123456789ab")) == "tb0123456789ab"
    assert mac_address(IPv4Address("10.231.0.5")) == "02:74:0a:e7:00:05"


def test_nameservers_that_only_the_host_can_reach_are_left_out(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# generated\nnameserver 127.0.0.53\noptions edns0\n")
    real.write_text("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver 192.0.2.2\n")
    assert host_nameservers(files=(stub, real)) == ("192.0.2.1", "192.0.2.2")
    assert host_nameservers(files=(stub, tmp_path / "absent")) == ()


@pytest.mark.parametrize("tag", ["", "a b", "a;drop", "A", "x" * 33, "{"])
def test_a_tag_that_nft_could_misread_is_refused(tag: str) -> None:
    with pytest.raises(InvalidRequest):
        ruleset_text(tag, SUBNET)


def test_only_unwanted_elements_are_deleted() -> None:
    def target(address: str) -> dict[str, Any]:
        return {"concat": [address, 80]}

    at = {"name": "published_at", "elem": [[{"concat": ["127.0.0.1", 1]}, target("10.0.0.5")]]}
    anywhere = {"name": "published_anywhere", "elem": [[2, target("10.0.0.5")], [3, target("10.0.0.6")]]}
    listed = json.loads(json.dumps({"nftables": [{"metainfo": {}}, {"map": at}, {"map": anywhere}, {"map": {}}]}))
    text = delete_elements_text("t", listed, lambda address: address == IPv4Address("10.0.0.5"))
    assert text.splitlines() == [
        "delete element ip thawbox-t published_at { 127.0.0.1 . 1 }",
        "delete element ip thawbox-t published_anywhere { 2 }",
    ]
    assert delete_elements_text("t", listed, lambda _: False) == ""


def test_a_published_port_names_its_host_address() -> None:
    at = element_text("t", Publish(8080, 80), IPv4Address("10.0.0.5"))
    assert at == "create element ip thawbox-t published_at { 127.0.0.1 . 8080 : 10.0.0.5 . 80 }"
