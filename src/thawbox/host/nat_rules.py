"""The text of the node's nftables table: pure, so that it can be read and tested."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from thawbox.errors import InvalidRequest
from thawbox.model import Publish

_TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_AT, _ANY = "published_at", "published_anywhere"
_RULES = """\
add table ip {table}
add map ip {table} published_at {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add map ip {table} published_anywhere {{ type inet_service : ipv4_addr . inet_service; }}
add chain ip {table} from_sandbox {{ type filter hook prerouting priority raw; }}
add chain ip {table} to_host {{ type filter hook input priority filter; }}
add chain ip {table} through {{ type filter hook forward priority filter; }}
add chain ip {table} publish {{ type nat hook prerouting priority dstnat; }}
add chain ip {table} publish_locally {{ type nat hook output priority -100; }}
add chain ip {table} translate {{ type nat hook postrouting priority srcnat; }}
flush chain ip {table} from_sandbox
flush chain ip {table} to_host
flush chain ip {table} through
flush chain ip {table} publish
flush chain ip {table} publish_locally
flush chain ip {table} translate
add rule ip {table} from_sandbox iifname "tb*" fib saddr . iif oif missing drop
add rule ip {table} to_host iifname "tb*" ct state established,related accept
add rule ip {table} to_host iifname "tb*" drop
add rule ip {table} through iifname "tb*" oifname "tb*" drop
add rule ip {table} through oifname "tb*" ct state established,related accept
add rule ip {table} through oifname "tb*" ct status dnat accept
add rule ip {table} through oifname "tb*" drop
add rule ip {table} through iifname "tb*" ip daddr 169.254.0.0/16 meta l4proto {{ tcp, udp }} th dport 53 accept
add rule ip {table} through iifname "tb*" ip daddr 169.254.0.0/16 drop
add rule ip {table} publish fib daddr type local dnat to ip daddr . tcp dport map @published_at
add rule ip {table} publish fib daddr type local dnat to tcp dport map @published_anywhere
add rule ip {table} publish_locally fib daddr type local dnat to ip daddr . tcp dport map @published_at
add rule ip {table} publish_locally fib daddr type local dnat to tcp dport map @published_anywhere
add rule ip {table} translate ip saddr {subnet} oifname != "tb*" masquerade
add rule ip {table} translate ip saddr 127.0.0.0/8 oifname "tb*" masquerade
"""


def table_name(node_tag: str) -> str:
    """The node's table; raises InvalidRequest for a tag that nft would read as something else."""
    if not _TAG.fullmatch(node_tag):
        raise InvalidRequest(f"node tag {node_tag!r} is not 1 to 32 lower-case letters, digits and '-'")
    return f"thawbox-{node_tag}"


def ruleset_text(node_tag: str, subnet: IPv4Network) -> str:
    """The whole table for `nft -f`, published ports left as they are; the same text may be applied again and again.

    A name server at a link-local address (some clouds) is reached, nothing else there is.
    """
    return _RULES.format(table=table_name(node_tag), subnet=subnet)


def element_text(node_tag: str, publish: Publish, address: IPv4Address) -> str:
    """The command that forwards one published TCP port to `address`; `create` fails where it is taken."""
    target = f"{address} . {publish.port}"
    table = table_name(node_tag)
    if publish.host_address in ("", "0.0.0.0"):  # noqa: S104  published everywhere because the user said so
        return f"create element ip {table} {_ANY} {{ {publish.host_port} : {target} }}"
    source = f"{IPv4Address(publish.host_address)} . {publish.host_port}"
    return f"create element ip {table} {_AT} {{ {source} : {target} }}"


def delete_elements_text(node_tag: str, listed: Any, unwanted: Callable[[IPv4Address], bool]) -> str:
    """The commands that delete the published ports leading to unwanted addresses.

    `listed` is what `nft -j list table` prints (libnftables-json(5)); "" when there is nothing to delete.
    """
    commands: list[str] = []
    for entry in listed["nftables"]:
        found = entry.get("map", {})
        for key, value in found.get("elem", ()):
            if unwanted(IPv4Address(value["concat"][0])):
                commands.append(f"delete element ip {table_name(node_tag)} {found['name']} {{ {_key_text(key)} }}")
    return "\n".join(commands)


def _key_text(key: Any) -> str:
    """The key of an element as nft's language writes it."""
    try:
        return " . ".join(str(part) for part in key["concat"])
    except TypeError:  # a plain number
        return str(key)
