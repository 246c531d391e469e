"""Layers: directory trees addressed by the digest of their index, usable as they lie as overlayfs lower directories.

The index holds every entry of the tree, sorted by path, with all that a rootfs cares for: type, mode, owner,
modification time, content digest, link target, device number, extended attributes. Its bytes are MessagePack because
file names on Linux are bytes, not text.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from thawbox.errors import CorruptSnapshot, Unsupported
from thawbox.store.digests import FileToHash, Mark, digest_files, mark_of, settle

INDEX_FORMAT = 1
MAX_INDEX_BYTES = 1 << 30

_OVERLAY_BOOKKEEPING = frozenset(f"trusted.overlay.{name}" for name in ("origin", "impure", "nlink", "upper", "uuid"))
"""Notes that overlayfs keeps for one mount (file handles of that very lower tree): they mean nothing elsewhere."""


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file of a tree. `kind`: d directory, f file, l link, h hard link to `target`, c b device, p fifo, s socket.

    `path` is relative to the tree and empty for its root. `size` and `digest` (32 bytes) belong to regular files.
    """

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    digest: bytes = b""
    target: bytes = b""
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Index(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All entries of a layer, sorted by path: the root first, a directory before what it holds."""

    format: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """A tree as found: its index, and the marks by which a later look tells that nothing has changed."""

    index: Index
    marks: tuple[Mark, ...]


def shown(path: bytes) -> str:
    """A path inside a layer as text that any message or JSON can hold."""
    return path.decode("utf-8", "backslashreplace")


def encode_index(index: Index) -> bytes:
    return msgspec.msgpack.encode(index)


def layer_digest(index_bytes: bytes) -> str:
    """The digest that names a layer: SHA-256 of its index, 64 hex digits."""
    return hashlib.sha256(index_bytes).hexdigest()


def decode_index(content: bytes, *, expected: str) -> Index:
    """The index with these bytes; raises CorruptSnapshot unless they hash to `expected` and are well-formed."""
    if layer_digest(content) != expected:
        raise CorruptSnapshot(f"layer {expected[:12]}: the index does not hash to the layer's digest")
    try:
        index = msgspec.msgpack.decode(content, type=Index)
    except msgspec.DecodeError as error:
        raise CorruptSnapshot(f"layer {expected[:12]}: the index is malformed: {error}") from None
    if index.format != INDEX_FORMAT or not index.entries or index.entries[0].path or index.entries[0].kind != "d":
        raise CorruptSnapshot(f"layer {expected[:12]}: the index has format {index.format} or no root")
    return index


def content_bytes(index: Index) -> int:
    """Bytes of file content in a layer."""
    return sum(entry.size for entry in index.entries)


def is_bare(index: Index, beneath: Index) -> bool:
    """Whether a layer changes nothing over the one beneath it: no entries, and a root with the same attributes."""
    root, other = index.entries[0], beneath.entries[0]
    same = (root.mode, root.uid, root.gid, root.xattrs) == (other.mode, other.uid, other.gid, other.xattrs)
    return len(index.entries) == 1 and same


def scan_tree(root: Path) -> Scan:
    """Read a whole tree and hash its files; nothing may change it meanwhile.

    Raises Unsupported, naming the path, for one longer than the kernel takes in one call.
    """
    entries: list[Entry] = []
    marks: list[Mark] = []
    to_hash: list[FileToHash] = []
    first_names: dict[tuple[int, int], bytes] = {}
    for path, found in _walk(os.fsencode(root)):
        entry = _entry(os.fsencode(root), path, found, first_names)
        if entry.kind == "f":
            to_hash.append(FileToHash(len(entries), _join(os.fsencode(root), path), found.st_size))
        settle(found)
        entries.append(entry)
        marks.append(mark_of(path, found))
    for position, digest in digest_files(to_hash):
        entries[position] = msgspec.structs.replace(entries[position], digest=digest)
    order = sorted(range(len(entries)), key=lambda position: entries[position].path)
    index = Index(INDEX_FORMAT, tuple(entries[position] for position in order))
    return Scan(index, tuple(marks[position] for position in order))


def _join(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path of a tree with its lstat, in an order that does not depend on the disk's."""
    pending: list[bytes] = [b""]
    while pending:
        path = pending.pop()
        if len(_join(root, path)) >= 4096:
            raise Unsupported(
                f"a path of {len(path)} bytes below {shown(path[:60])!r} is too long to be captured",
                remediation="remove the deeply nested directories inside the sandbox",
            )
        found = os.lstat(_join(root, path))
        yield path, found
        if stat.S_ISDIR(found.st_mode):
            names = sorted(os.listdir(_join(root, path)), reverse=True)  # noqa: PTH208 — names are bytes
            pending += [path + b"/" + name if path else name for name in names]


def _entry(root: bytes, path: bytes, found: os.stat_result, first_names: dict[tuple[int, int], bytes]) -> Entry:
    full = _join(root, path)
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    target = os.readlink(full) if kind == "l" else b""  # noqa: PTH115 — a link's target is bytes
    if kind != "d" and found.st_nlink > 1:
        first = first_names.setdefault((found.st_dev, found.st_ino), path)
        if first != path:
            kind, target = "h", first
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size if kind == "f" else 0,
        target=target,
        rdev=found.st_rdev if kind in {"c", "b"} else 0,
        xattrs=() if kind == "h" else read_xattrs(full),
    )


_KINDS = {
    stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFCHR: "c",
    stat.S_IFBLK: "b", stat.S_IFIFO: "p", stat.S_IFSOCK: "s",
}  # fmt: skip


def read_xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of a path (not of what it links to), sorted, without overlayfs's own bookkeeping."""
    names = sorted(set(os.listxattr(path, follow_symlinks=False)) - _OVERLAY_BOOKKEEPING)
    return tuple((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)


def index_problems(wanted: Index, found: Index) -> list[tuple[str, str]]:
    """Where a tree as found differs from its index, as (path, cause).

    A directory whose time alone differs because a name came or went in it is not named beside that name.
    """
    there = {entry.path: entry for entry in found.entries}
    causes: dict[bytes, str] = {}
    for entry in wanted.entries:
        other = there.pop(entry.path, None)
        if other != entry:
            causes[entry.path] = "is missing" if other is None else _difference(entry, other)
    causes.update({path: "is not in the index" for path in there})
    explained = {path.rpartition(b"/")[0] for path, cause in causes.items() if not cause.startswith(_DIFFERS)}
    only_time = f"{_DIFFERS} mtime_ns"
    return [(shown(path), cause) for path, cause in causes.items() if cause != only_time or path not in explained]


_DIFFERS = "differs from its index in"


def _difference(wanted: Entry, there: Entry) -> str:
    for name in ("kind", "size", "digest", "target", "rdev", "mode", "uid", "gid", "xattrs", "mtime_ns"):
        if getattr(wanted, name) != getattr(there, name):
            return f"{_DIFFERS} {'content' if name == 'digest' else name}"
    raise AssertionError("two equal entries were compared")
