"""Verification: is what lies on the disk what the manifests say? And remembering that it was.

A record per snapshot and per layer holds the marks (inode, size, mtime, ctime) of every file at the moment it was
hashed. While the marks hold, the bytes do; so a hot restore pays microseconds. The records are a cache: losing one
costs a rehash, and a damaged one is no record.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from thawbox.errors import CorruptSnapshot
from thawbox.host.files import names_in, replace_file
from thawbox.store.digests import FileToHash, Mark, digest_files, mark_of, settle, unchanged
from thawbox.store.layers import decode_index, index_problems, scan_tree
from thawbox.store.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: in which snapshot, in which file (relative to the snapshot or layer), and what."""

    snapshot: str
    file: str
    cause: str


class _Record(msgspec.Struct, frozen=True, array_like=True):
    at: float
    marks: tuple[Mark, ...]


class Memory:
    """Remembered verifications, one small file each, kept decoded while the process lives."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}

    def remember(self, key: str, marks: Sequence[Mark], *, at: float) -> None:
        """Remember that these marks were verified. On a full disk only this process remembers: it is but a cache."""
        record = _Record(at, tuple(marks))
        with contextlib.suppress(OSError):
            replace_file(self._root / key, msgspec.msgpack.encode(record))
        with self._lock:
            self._records[key] = record

    def recall(self, key: str, directory: Path) -> float | None:
        """When `directory` was verified, if every mark of it still holds; else None."""
        with self._lock:
            record = self._records.get(key)
        if record is None:
            record = self._load(key)
        return record.at if record is not None and unchanged(directory, record.marks) else None

    def _load(self, key: str) -> _Record | None:
        try:
            record = msgspec.msgpack.decode((self._root / key).read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None
        with self._lock:
            self._records[key] = record
        return record

    def forget(self, key: str) -> None:
        with self._lock:
            self._records.pop(key, None)
        (self._root / key).unlink(missing_ok=True)

    def sweep(self, existing: set[str]) -> None:
        for name in names_in(self._root):
            if name not in existing:
                self.forget(name)


def scan_images(images: Path) -> tuple[dict[str, FileEntry], dict[str, str], list[Mark]]:
    """Every file and link of an images directory with its digest, and the marks to remember them by.

    Raises CorruptSnapshot for anything that is neither a regular file nor a link.
    """
    marks: list[Mark] = []
    links: dict[str, str] = {}
    sizes: list[tuple[str, int]] = []
    for name in ["", *sorted(names_in(images))]:
        found = os.lstat(images / name)
        settle(found)
        marks.append(mark_of(os.fsencode(f"images/{name}" if name else "images"), found))
        if stat.S_ISLNK(found.st_mode):
            links[name] = str((images / name).readlink())
        elif stat.S_ISREG(found.st_mode):
            sizes.append((name, found.st_size))
        elif name:
            raise CorruptSnapshot(f"images/{name} is neither a file nor a link")
    to_hash = [FileToHash(at, os.fsencode(images / name), size) for at, (name, size) in enumerate(sizes)]
    digests = dict(digest_files(to_hash))
    files = {name: FileEntry(size, digests[at].hex()) for at, (name, size) in enumerate(sizes)}
    return files, links, marks


def images_problems(directory: Path, manifest: Manifest) -> tuple[list[tuple[str, str]], list[Mark]]:
    """Where a snapshot's images differ from its manifest, as (file, cause); reads every byte. With the marks."""
    images = directory / "images"
    try:
        files, links, marks = scan_images(images)
    except FileNotFoundError:
        return [("images", "is missing")], []
    except CorruptSnapshot as error:
        return [("images", error.cause)], []
    problems = [
        (f"images/{name}", _file_fault(entry, files.get(name)))
        for name, entry in sorted(manifest.files.items())
        if files.get(name) != entry
    ]
    problems += [
        (f"images/{name}", f"should link to {target}")
        for name, target in sorted(manifest.links.items())
        if links.get(name) != target
    ]
    extra = sorted({*files, *links} - {*manifest.files, *manifest.links})
    problems += [(f"images/{name}", "is not in the manifest") for name in extra]
    return problems, marks


def _file_fault(wanted: FileEntry, there: FileEntry | None) -> str:
    if there is None:
        return "is missing"
    if there.size != wanted.size:
        return f"has {there.size} bytes instead of {wanted.size}"
    return "does not match its digest"


def layer_problems(directory: Path, digest: str) -> tuple[list[tuple[str, str]], list[Mark]]:
    """Where a stored layer differs from its digest, as (file, cause); reads every byte. With the marks."""
    try:
        index = decode_index((directory / "index").read_bytes(), expected=digest)
    except FileNotFoundError:
        return [("index", "is missing")], []
    except CorruptSnapshot as error:
        return [("index", error.cause)], []
    try:
        scan = scan_tree(directory / "tree")
    except FileNotFoundError:
        return [("tree", "is missing")], []
    problems = [(f"tree/{path}", cause) for path, cause in index_problems(index, scan.index)]
    return problems, layer_marks(directory, scan.marks)


def layer_marks(directory: Path, tree_marks: Sequence[Mark]) -> list[Mark]:
    """Marks of a whole layer directory, from those of its tree (whose paths are relative to the tree)."""
    moved = [msgspec.structs.replace(mark, path=b"tree/" + mark.path if mark.path else b"tree") for mark in tree_marks]
    return [mark_of(b"index", os.lstat(directory / "index")), *moved]


def snapshot_marks(directory: Path, images_marks: Sequence[Mark]) -> list[Mark]:
    """Marks of a whole snapshot directory, from those of its images."""
    return [mark_of(b"manifest.json", os.lstat(directory / "manifest.json")), *images_marks]
