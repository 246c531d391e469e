"""The way out of a sandbox with `--net nat`: one veth pair, and the node's own nftables table.

    sandbox eth0  A.B.C.D/32, default via GATEWAY  ──  host tb<id>  GATEWAY/32, route to A.B.C.D

Rule 1: there is no bridge: every sandbox has a link of its own to the host, so none sees another's packets.
Rule 2: rules name no sandbox; what belongs to one is its link and its elements of the maps of published ports.
Rule 3: packets from a sandbox reach neither the host's own services, nor other sandboxes, nor link-local addresses
(cloud metadata), and carry no source address but its own.

Links are made by pyroute2. The rules go through the program `nft`: pyroute2 knows neither maps nor concatenated keys
and makes one transaction per call, while `nft -f` is one transaction whose text is what `nft list ruleset` shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import re
import socket
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from thawbox.errors import InvalidSpec, Unavailable, Unsupported
from thawbox.host.nat_rules import delete_elements_text, element_text, ruleset_text, table_name
from thawbox.host.proc import run_program
from thawbox.model import Publish, SandboxId

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_NFT_TIMEOUT = 20.0
SANDBOX_INTERFACE = "eth0"
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class NatLink:
    """The link of one sandbox; a name, whether or not it exists.

    `address` is the sandbox's own, of `subnet`; the first address of the subnet is the gateway of all.
    """

    node_tag: str
    sandbox_id: SandboxId
    address: IPv4Address
    subnet: IPv4Network
    publish: tuple[Publish, ...] = ()
    mtu: int = DEFAULT_MTU

    @property
    def interface(self) -> str:
        """The host's end."""
        return host_interface(self.sandbox_id)

    @property
    def gateway(self) -> IPv4Address:
        return self.subnet.network_address + 1

    def create(self, *, pid: int) -> None:
        """Join the network namespace of process `pid` to the host's and publish the ports; all or nothing.

        Raises Unavailable when the address or a port is in use on this host, Unsupported when the kernel or `nft`
        cannot do it.
        """
        reserved = (self.subnet.network_address, self.gateway, self.subnet.broadcast_address)
        if self.address not in self.subnet or self.address in reserved:
            raise InvalidSpec(f"{self.address} is no sandbox's address in {self.subnet}")
        with ExitStack() as undo:
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                self._make_pair(namespace.fileno(), undo)
                _in_namespace(namespace.fileno(), self._configure_inside)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            self._apply_rules()
            undo.pop_all()

    def remove(self) -> None:
        """Take the link and the published ports away; nothing happens if they are gone."""
        _delete_link(self.interface)
        if self.publish:
            _delete_elements(self.node_tag, lambda address: address == self.address)

    def _make_pair(self, namespace: int, undo: ExitStack) -> None:
        peer = {"ifname": SANDBOX_INTERFACE, "net_ns_fd": namespace, "address": mac_address(self.address)}
        alias = f"{table_name(self.node_tag)} {self.sandbox_id} {self.address}"
        try:
            with _netlink() as route:
                route.link("add", ifname=self.interface, kind="veth", mtu=self.mtu, peer={**peer, "mtu": self.mtu})
                undo.callback(_delete_link, self.interface)
                index = route.link_lookup(ifname=self.interface)[0]
                _set_options(self.interface)
                route.link("set", index=index, ifalias=alias, state="up")
                route.addr("add", index=index, address=str(self.gateway), prefixlen=32)
                route.route("add", dst=f"{self.address}/32", oif=index, scope="link")
        except OSError as refused:
            raise _refusal(self, refused) from refused

    def _configure_inside(self) -> None:
        with _netlink() as route:
            index = route.link_lookup(ifname=SANDBOX_INTERFACE)[0]
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address=str(self.address), prefixlen=32)
            route.route("add", dst=f"{self.gateway}/32", oif=index, scope="link")
            route.route("add", dst="default", gateway=str(self.gateway), oif=index)

    def _apply_rules(self) -> None:
        elements = [element_text(self.node_tag, port, self.address) for port in self.publish]
        done = run_program(
            ["nft", "-f", "-"], timeout=_NFT_TIMEOUT,
            stdin="\n".join([ruleset_text(self.node_tag, self.subnet), *elements]).encode(),
        )  # fmt: skip
        if done.status == 0:
            return
        said = done.stderr.decode(errors="replace")
        if "File exists" in said:
            raise Unavailable(
                f"a published port of {self.sandbox_id} is published by another sandbox already",
                remediation="stop that sandbox, or publish another port (0: one is chosen)",
                log=said,
            )
        raise Unsupported(f"nft refused the rules of {self.sandbox_id}", remediation="run `thawbox doctor`", log=said)


def host_interface(sandbox_id: SandboxId) -> str:
    """The name of the host's end: `tb` and the id's twelve digits, within the kernel's 15 characters."""
    return f"tb{sandbox_id.removeprefix('sb-')[:12]}"


def mac_address(address: IPv4Address) -> str:
    """The sandbox's MAC: locally administered, the same for the same address, so that a restore keeps it."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x74, *address.packed))


def prune(node_tag: str, known: Collection[SandboxId]) -> tuple[SandboxId, ...]:
    """Remove the links and published ports of every sandbox of this node but the `known`; the removed ids."""
    removed: list[SandboxId] = []
    living: set[IPv4Address] = set()
    with _netlink() as route:
        aliases = [str(link.get_attr("IFLA_IFALIAS") or "").split(" ") for link in route.get_links()]
    for alias in aliases:
        if len(alias) != 3 or alias[0] != table_name(node_tag):
            continue
        sandbox_id = SandboxId(alias[1])
        if sandbox_id in known:
            living.add(IPv4Address(alias[2]))
        else:
            _delete_link(host_interface(sandbox_id))
            removed.append(sandbox_id)
    _delete_elements(node_tag, lambda address: address not in living)
    return tuple(removed)


def remove_node_rules(node_tag: str) -> None:
    """Remove the node's table; nothing happens if it is gone."""
    done = run_program(["nft", "delete", "table", "ip", table_name(node_tag)], timeout=_NFT_TIMEOUT)
    if done.status != 0 and b"No such file" not in done.stderr:
        said = done.stderr.decode(errors="replace")
        raise Unsupported(f"nft could not delete {table_name(node_tag)}", log=said)


def choose_port(host_address: str, *, taken: Collection[int] = ()) -> int:
    """A TCP port of the host on which nothing listens and that is not among `taken`."""
    for _ in range(1000):
        port = _bind(host_address, 0)
        if port not in taken:
            return port
    raise Unavailable(f"no free port on {host_address}", remediation="publish fewer ports")


def check_port(publish: Publish, *, remedy: str = "publish another port, or 0 to have one chosen") -> None:
    """Raise Unavailable, with the remedy, when a program of the host listens where a port is to be published."""
    try:
        _bind(publish.host_address, publish.host_port)
    except OSError as refused:
        raise Unavailable(
            f"port {publish.host_address}:{publish.host_port} cannot be published: {refused.strerror}",
            remediation=remedy,
        ) from refused


def host_nameservers(
    *, files: tuple[Path, ...] = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
) -> tuple[str, ...]:
    """The IPv4 nameservers of the host that a sandbox can reach: those of the first file that names one.

    One on a loopback address (systemd-resolved, dnsmasq) listens for the host alone.
    """
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            found = re.findall(r"^\s*nameserver\s+(\S+)", file.read_text(errors="replace"), re.MULTILINE)
            if usable := tuple(server for server in found if _is_reachable(server)):
                return usable
    return ()


def _is_reachable(server: str) -> bool:
    try:
        return not IPv4Address(server).is_loopback
    except AddressValueError:
        return False


def _bind(host_address: str, port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host_address, port))
        return int(listener.getsockname()[1])


def _set_options(interface: str) -> None:
    """What must hold before the host's end is up."""
    # Connections of the host's own programs to 127.0.0.1 may be forwarded here; the rules let no others through.
    Path(f"/proc/sys/net/ipv4/conf/{interface}/route_localnet").write_text("1")
    # Nothing of ours filters IPv6, so there is none.
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def _delete_link(interface: str) -> None:
    try:
        with _netlink() as route:
            for index in route.link_lookup(ifname=interface):
                route.link("del", index=index)
    except OSError as gone:
        if gone.errno != errno.ENODEV:  # its namespace was dying and took it along
            raise


def _delete_elements(node_tag: str, unwanted: Callable[[IPv4Address], bool]) -> None:
    """Delete the published ports that lead to an unwanted address."""
    done = run_program(["nft", "-j", "list", "table", "ip", table_name(node_tag)], timeout=_NFT_TIMEOUT)
    if done.status != 0:
        return  # no table, no elements
    text = delete_elements_text(node_tag, json.loads(done.stdout), unwanted)
    if text:
        run_program(["nft", "-f", "-"], timeout=_NFT_TIMEOUT, stdin=text.encode())


def _refusal(link: NatLink, refused: OSError) -> Unavailable | Unsupported:
    if refused.errno == errno.EEXIST:
        return Unavailable(
            f"{link.interface} or the address {link.address} is in use on this host",
            remediation="remove what uses it on this host, or set THAWBOX_SUBNET",
        )
    return Unsupported(f"the kernel refused a network link: {refused.strerror}", remediation="run `thawbox doctor`")


@contextlib.contextmanager
def _netlink() -> Generator[Any]:
    """A pyroute2.IPRoute of the network namespace of this thread; the kernel's refusals come as OSError.

    Imported here, because the import alone takes 0.25 s.
    """
    from pyroute2 import IPRoute  # pyright: ignore[reportMissingTypeStubs]
    from pyroute2.netlink.exceptions import NetlinkError  # pyright: ignore[reportMissingTypeStubs]

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as refused:
        code: int = refused.code
        raise OSError(code, str(refused)) from refused


def _in_namespace(namespace: int, action: Callable[[], _T]) -> _T:
    """Run `action` in a thread of its own that has entered the network namespace open at `namespace`."""

    def entered() -> _T:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        return action()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as thread:
        return thread.submit(entered).result()
