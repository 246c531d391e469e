"""The Matrix as it lies on the disk: a directory of files, and a manifest that says what they must be.

| file | holds |
|---|---|
| vectors.npy | one row per passage, float32, not normalised |
| texts.bin, offsets.npy | the passages, one after the other, and where each begins |
| rarity.npy | what words count for, for the embedding of questions |
| manifest.json | rows, embedding, size and SHA-256 of each file, and questions whose answers are known |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("offsets.npy", "rarity.npy", "texts.bin", "vectors.npy")
_BLOCK = 8 << 20


class MatrixError(Exception):
    """The Matrix cannot be used; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class Probe:
    """A question with the passage that answers it, known because the builder wrote both."""

    question: str
    answer: str


@dataclass(frozen=True)
class Manifest:
    """What a Matrix says of itself. `digest` names the whole: it covers every file."""

    rows: int
    dimensions: int
    embedding: str
    files: dict[str, tuple[int, str]]
    probes: tuple[Probe, ...]
    digest: str


def digest_of(files: dict[str, tuple[int, str]]) -> str:
    """One digest for all files, from theirs."""
    lines = "".join(f"{name} {size} {digest}\n" for name, (size, digest) in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a Matrix; raises MatrixError."""
    path = directory / MANIFEST
    try:
        said: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise MatrixError(f"{path}: {error.strerror}; examples/agent/build_matrix.py makes it") from None
    except ValueError:
        raise MatrixError(f"{path}: this is no JSON") from None
    try:
        if said["format"] != FORMAT:
            raise MatrixError(f"{path}: format {said['format']} is another than {FORMAT}, which this agent reads")
        files = {name: (int(said["files"][name]["bytes"]), str(said["files"][name]["sha256"])) for name in FILES}
        probes = tuple(Probe(str(one["question"]), str(one["answer"])) for one in said["probes"])
        return Manifest(
            int(said["rows"]), int(said["dimensions"]), str(said["embedding"]), files, probes, digest_of(files)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MatrixError(f"{path}: {type(error).__name__}: {error}") from None


def check_files(directory: Path, manifest: Manifest, *, progress: Callable[[float], None]) -> None:
    """Read every byte of every file; raises MatrixError for the first that is not what the manifest says."""
    total, done = sum(size for size, _ in manifest.files.values()), 0
    for name, (size, digest) in manifest.files.items():
        path = directory / name
        hashed = hashlib.sha256()
        try:
            with path.open("rb") as file:
                if path.stat().st_size != size:
                    raise MatrixError(f"{path}: {path.stat().st_size} bytes instead of {size}")
                while block := file.read(_BLOCK):
                    hashed.update(block)
                    done += len(block)
                    progress(done / total)
        except OSError as error:
            raise MatrixError(f"{path}: {error.strerror}") from None
        if hashed.hexdigest() != digest:
            raise MatrixError(f"{path}: its bytes are not those that the manifest names; build it anew")


def write_manifest(directory: Path, *, rows: int, dimensions: int, embedding: str, probes: list[Probe]) -> None:
    """Write the manifest of the files that are in the directory: the builder's last step."""
    files: dict[str, dict[str, object]] = {}
    for name in FILES:
        content = (directory / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    said = {
        "format": FORMAT, "rows": rows, "dimensions": dimensions, "embedding": embedding, "files": files,
        "probes": [{"question": one.question, "answer": one.answer} for one in probes],
    }  # fmt: skip
    (directory / MANIFEST).write_text(json.dumps(said, indent=1) + "\n")
