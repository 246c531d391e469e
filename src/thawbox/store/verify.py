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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from thawbox.errors import CorruptSnapshot, IntegrityError
from thawbox.host.files import names_in, replace_file
from thawbox.model import SnapshotId
from thawbox.store.catalog import Catalog, Layout
from thawbox.store.digests import FileToHash, Mark, digest_files, mark_of, settle, unchanged
from thawbox.store.layers import decode_index, index_problems, scan_tree
from thawbox.store.manifest import SNAPSHOT_FILES, FileEntry, Manifest


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

    def verified_at(self, key: str) -> float | None:
        """When `key` was last verified, whether or not it has changed since."""
        with self._lock:
            record = self._records.get(key)
        record = record or self._load(key)
        return record.at if record else None

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


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies what one store holds, hashing only what was not hashed since it last changed, or with `deep` all."""

    layout: Layout
    catalog: Catalog
    memory: Memory
    now: Callable[[], float]

    def ensure(self, snapshot: SnapshotId, *, digests: Iterable[str]) -> None:
        """Raise CorruptSnapshot, naming the first file, unless a snapshot's images and these layers are sound."""
        for problem in self._images(snapshot, deep=False):
            raise CorruptSnapshot(f"snapshot {snapshot[:12]}: {problem.file} {problem.cause}")
        for digest in digests:
            for problem in self._layer(snapshot, digest, deep=False):
                raise CorruptSnapshot(f"snapshot {snapshot[:12]}: {problem.file} {problem.cause}")

    def problems(self, snapshots: Iterable[SnapshotId], *, deep: bool) -> list[Problem]:
        """Everything that is wrong with these snapshots. A layer shared by several is read once, told for each."""
        found: list[Problem] = []
        layers: dict[str, list[Problem]] = {}
        for snapshot in snapshots:
            try:
                manifest = self.catalog.read_manifest(snapshot)
            except IntegrityError as error:
                found.append(Problem(snapshot, "manifest.json", error.cause))
                continue
            found += self._images(snapshot, deep=deep)
            found += self._surroundings(snapshot, manifest)
            for digest in sorted({digest for digests in manifest.layers.values() for digest in digests}):
                if digest not in layers:
                    layers[digest] = self._layer(snapshot, digest, deep=deep)
                found += [replace(problem, snapshot=snapshot) for problem in layers[digest]]
        return found

    def layer_is_sound(self, digest: str) -> bool:
        return not self._layer(SnapshotId(""), digest, deep=False)

    def _images(self, snapshot: SnapshotId, *, deep: bool) -> list[Problem]:
        directory = self.layout.snapshot(snapshot)
        if not deep and self.memory.recall(snapshot, directory) is not None:
            return []
        problems, marks = images_problems(directory, self.catalog.read_manifest(snapshot))
        self._conclude(snapshot, problems, marks)
        return [Problem(snapshot, file, cause) for file, cause in problems]

    def _layer(self, snapshot: SnapshotId, digest: str, *, deep: bool) -> list[Problem]:
        directory = self.layout.layer(digest)
        if not deep and self.memory.recall(digest, directory) is not None:
            return []
        problems, marks = layer_problems(directory, digest)
        self._conclude(digest, problems, marks)
        return [Problem(snapshot, f"layers/{digest[:12]}/{file}", cause) for file, cause in problems]

    def _conclude(self, key: str, problems: Sequence[object], marks: Sequence[Mark]) -> None:
        if problems:
            self.memory.forget(key)
        else:
            self.memory.remember(key, marks, at=self.now())

    def _surroundings(self, snapshot: SnapshotId, manifest: Manifest) -> list[Problem]:
        found: list[Problem] = []
        if manifest.parent is not None and not self.catalog.exists(manifest.parent):
            found.append(Problem(snapshot, "parent", f"{manifest.parent[:12]} is missing"))
        for name in sorted(set(names_in(self.layout.snapshot(snapshot))) - SNAPSHOT_FILES):
            found.append(Problem(snapshot, name, "does not belong to a snapshot"))
        return found


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
