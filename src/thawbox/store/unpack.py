"""Unpacking a layer that comes from elsewhere: what an index may ask for, and making the tree it describes.

An index is checked as a whole before anything is made, and a tree is made only of what the index says, in a private
directory: no path is followed that the index did not declare to be a directory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from thawbox.errors import CorruptSnapshot
from thawbox.host.layers import is_whiteout
from thawbox.host.tree_copies import note_whiteout
from thawbox.store.layers import Entry, Index, shown

MAX_PATH = 3800
"""Bytes; the kernel takes 4096, the store's own directory included."""
_HARMLESS_DEVICES = frozenset(
    os.makedev(major, minor)
    for major, minor in ((0, 0), (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
)
"""A whiteout; null, zero, full, random, urandom; tty, console, ptmx. No disk, no memory of the host."""
_XATTRS = frozenset({
    "trusted.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.redirect",
    "security.capability", "system.posix_acl_access", "system.posix_acl_default",
})  # fmt: skip
_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}


def check_index(index: Index, *, what: str) -> None:
    """Raise CorruptSnapshot, naming the path, if an index asks for what no layer of ours would hold."""
    kinds: dict[bytes, str] = {}
    last: bytes | None = None
    for entry in index.entries:
        fault = _fault(entry)
        if not fault and last is not None and entry.path <= last:
            fault = "is out of order"
        if not fault and entry.path and kinds.get(entry.path.rpartition(b"/")[0]) != "d":
            fault = "lies in what is no directory"
        if fault:
            raise CorruptSnapshot(f"{what}: {shown(entry.path[:200])!r} {fault}")
        kinds[entry.path] = entry.kind
        last = entry.path
    for entry in index.entries:
        if entry.kind == "h" and kinds.get(entry.target, "d") in {"d", "h"}:
            raise CorruptSnapshot(f"{what}: {shown(entry.path[:200])!r} is a link to no file of the layer")


def _fault(entry: Entry) -> str:  # noqa: PLR0911 — one line per rule
    names = entry.path.split(b"/") if entry.path else []
    if len(entry.path) > MAX_PATH or any(name in {b"", b".", b".."} or len(name) > 255 for name in names):
        return "is no path inside the layer"
    if b"\0" in entry.path + entry.target:
        return "holds a NUL byte"
    if entry.kind not in {"d", "f", "l", "h", *_TYPES} or (not entry.path and entry.kind != "d"):
        return f"is of the unknown kind {entry.kind[:8]!r}"
    if not (0 <= entry.mode <= 0o7777 and 0 <= entry.uid < 2**32 - 1 and 0 <= entry.gid < 2**32 - 1):
        return "has an impossible mode or owner"
    if abs(entry.mtime_ns) >= 2**62:
        return "has an impossible time"
    if (
        (entry.kind == "f") != (len(entry.digest) == 32)
        or not 0 <= entry.size < 2**62
        or (entry.kind != "f" and entry.size)
    ):
        return "has an impossible size or digest"
    if (entry.kind in {"l", "h"}) != bool(entry.target) or len(entry.target) > 4095:
        return "has an impossible target"
    if entry.rdev and entry.kind not in {"c", "b"}:
        return "has a device number but is no device"
    if entry.kind == "b" or (entry.kind == "c" and entry.rdev not in _HARMLESS_DEVICES):
        return "is a device that no sandbox is given"
    return _xattr_fault(entry)


def _xattr_fault(entry: Entry) -> str:
    for name, value in entry.xattrs:
        text = name.decode("utf-8", "replace")
        if not (text.startswith("user.") or text in _XATTRS) or len(name) > 255 or len(value) > 65536 or b"\0" in name:
            return f"has the attribute {text[:60]!r}, which no layer of ours has"
    if entry.kind == "h" and entry.xattrs:
        return "is a link with attributes of its own"
    return ""


def build_tree(index: Index, content: Path, tree: Path) -> None:
    """Make the tree of a checked index; the content of its n-th entry is moved from `content/n`."""
    root = os.fsencode(tree)
    for at, entry in enumerate(index.entries):
        _make(entry, os.fsencode(content) + b"/%d" % at, root)
    for entry in index.entries:
        path = root + b"/" + entry.path
        if entry.kind == "h":
            os.link(root + b"/" + entry.target, path, follow_symlinks=False)
        if entry.kind in ("c", "h") and is_whiteout(os.lstat(path)):
            note_whiteout(os.path.dirname(path))  # noqa: PTH120
    for entry in reversed(index.entries):  # a directory after what it holds: making that changes its time
        if entry.kind != "h":
            _dress(entry, root + b"/" + entry.path if entry.path else root)


def _make(entry: Entry, content: bytes, root: bytes) -> None:
    path = root + b"/" + entry.path if entry.path else root
    match entry.kind:
        case "d":
            os.mkdir(path, 0o700)  # noqa: PTH102 — paths inside a layer are bytes
        case "f":
            os.rename(content, path)  # noqa: PTH104
        case "l":
            os.symlink(entry.target, path)  # noqa: PTH211
        case "h":
            pass
        case kind:
            os.mknod(path, _TYPES[kind] | 0o600, entry.rdev)


def _dress(entry: Entry, path: bytes) -> None:
    """Owner first: changing it clears capabilities and set-id bits. Times last."""
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    for name, value in entry.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    if entry.kind != "l":
        os.chmod(path, entry.mode)  # noqa: PTH101
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
