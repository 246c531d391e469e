"""Who a sandbox is, in files: its names written into its writable layer, its users looked up in its rootfs.

Rule: the layers may hold anything a sandbox wrote, so a link in them is never followed by the kernel on our behalf.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import InvalidSpec
from thawbox.host.layers import Layers, is_whiteout
from thawbox.host.tree_copies import OPAQUE

_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one sandbox from another inside: `machine_id` is 32 hex digits (machine-id(5)).

    `address` is its own IPv4 address or ""; with `nameservers` empty the rootfs's own resolv.conf stays.
    """

    hostname: str
    machine_id: str
    address: str = ""
    nameservers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """Whom the main program runs as; `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


ROOT = User(0, 0, (), "/root")


def write_identity(upper: Path, lowers: tuple[Path, ...], identity: Identity) -> None:
    """Write hostname, hosts, machine-id and, if there are nameservers, resolv.conf of /etc into the layer `upper`.

    `lowers` are the directories below it, topmost first; nothing may run in them meanwhile. Raises InvalidSpec when
    the rootfs has something at these paths that cannot be replaced.
    """
    if not _MACHINE_ID.fullmatch(identity.machine_id):
        raise InvalidSpec(f"machine id {identity.machine_id!r} is not 32 lower-case hex digits")
    files = {
        "hostname": f"{identity.hostname}\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        f"{identity.address or '127.0.1.1'} {identity.hostname}\n",
        "machine-id": f"{identity.machine_id}\n",
    }
    if identity.nameservers:
        files["resolv.conf"] = "".join(f"nameserver {server}\n" for server in identity.nameservers)
    layers = Layers((upper, *lowers))
    etc = layers.find("/etc")
    if etc.status is not None and not stat.S_ISDIR(etc.status.st_mode):
        raise InvalidSpec("/etc of the rootfs is not a directory", remediation="use another rootfs")
    with ExitStack() as closing:
        directory = _open_upper(upper, layers, etc.inside, closing)
        for name, text in files.items():
            _replace(directory, name, text.encode())


def lookup_user(lowers: tuple[Path, ...], user: str) -> User:
    """The user that `NAME`, `UID`, `NAME:GROUP` or `UID:GID` means in the rootfs made of `lowers`, topmost first.

    A number needs no entry; then its group is 0 and its home "/". With a group given there are no supplementary
    ones. Raises InvalidSpec for a name without an entry. The rules are those of `docker run --user`.
    """
    layers = Layers(lowers)
    name, _, group = user.partition(":")
    entry = _passwd_entry(_table(layers, "/etc/passwd"), name or "root")
    groups = _table(layers, "/etc/group")
    if group:
        return User(entry.uid, _group_id(groups, group), (), entry.home)
    rows = [row for row in groups if entry.name and len(row) > 3 and entry.name in row[3].split(",")]
    member = {int(row[2]) for row in rows if row[2].isdecimal()}
    return User(entry.uid, entry.gid, tuple(sorted(member - {entry.gid})), entry.home)


@dataclass(frozen=True, slots=True)
class _Passwd:
    name: str
    uid: int
    gid: int
    home: str


def _passwd_entry(rows: list[list[str]], user: str) -> _Passwd:
    for row in rows:
        if len(row) >= 6 and user in (row[0], row[2]) and row[2].isdecimal() and row[3].isdecimal():
            return _Passwd(row[0], _checked_id(row[2]), _checked_id(row[3]), row[5] or "/")
    if user.isdecimal():
        return _Passwd("", _checked_id(user), 0, "/")
    if user in ("root", ""):
        return _Passwd("root", 0, 0, "/root")
    raise InvalidSpec(
        f"user {user!r} is not in the rootfs's /etc/passwd", remediation="name another user, or give a numeric id"
    )


def _group_id(rows: list[list[str]], group: str) -> int:
    for row in rows:
        if len(row) >= 3 and group in (row[0], row[2]) and row[2].isdecimal():
            return _checked_id(row[2])
    if group.isdecimal():
        return _checked_id(group)
    raise InvalidSpec(f"group {group!r} is not in the rootfs's /etc/group", remediation="give a numeric id")


def _checked_id(text: str) -> int:
    if len(text) > 10 or int(text) > _MAX_ID:
        raise InvalidSpec(f"user or group id {text[:40]} is outside 0 to {_MAX_ID}")
    return int(text)


def _table(layers: Layers, path: str) -> list[list[str]]:
    text = (layers.read(path) or b"").decode(errors="replace")
    return [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]


def _open_upper(upper: Path, layers: Layers, inside: tuple[str, ...], closing: ExitStack) -> int:
    """A descriptor of a directory of the writable layer, made on the way with the mode and owner it has below."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(upper, flags)
    closing.callback(os.close, fd)
    for depth, name in enumerate(inside, start=1):
        below = layers.find("/".join(inside[:depth])).status
        _make_directory(fd, name, below)
        fd = os.open(name, flags, dir_fd=fd)
        closing.callback(os.close, fd)
    return fd


def _make_directory(parent: int, name: str, below: os.stat_result | None) -> None:
    """Make a directory in the layer unless it is there; one that replaces a deletion shows nothing from below."""
    deleted = False
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not is_whiteout(status):
            return
        os.unlink(name, dir_fd=parent)
        deleted = True
    os.mkdir(name, 0o755, dir_fd=parent)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if below is not None:
            os.fchown(fd, below.st_uid, below.st_gid)
            os.fchmod(fd, stat.S_IMODE(below.st_mode))
        if deleted:
            os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(fd)


def _replace(directory: int, name: str, content: bytes) -> None:
    """Put a file at `name` of an open directory, in place of a file or link that is there."""
    staging = f".thawbox-{secrets.token_hex(4)}"
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, 0o644)
        os.rename(staging, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as refused:
        os.unlink(staging, dir_fd=directory)
        if isinstance(refused, IsADirectoryError):
            raise InvalidSpec(f"/etc/{name} of the rootfs is a directory", remediation="use another rootfs") from None
        raise
