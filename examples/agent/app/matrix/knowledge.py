"""The Matrix in memory: mapped, checked, normalised and indexed; then searched.

An inverted file with scalar quantisation, as faiss' IVF,SQ8 with re-ranking: k-means divides the vectors into lists; a
question is compared with the eight-bit codes of the nearest lists, and the best of those with the vectors themselves,
which stay in the mapped file. So what a snapshot holds is a quarter of the file, and every clone shares the rest.
The index is made at each cold start, from the vectors, with faiss' own defaults for how much work that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.matrix.embedding import DIMENSIONS, NAME, Vector, embed
from app.matrix.files import Manifest, MatrixError, check_files, read_manifest

ITERATIONS = 25
"""Rounds of k-means: faiss' default."""
_PER_LIST = 256
"""Vectors per list that k-means is trained with: faiss' default limit."""
_LISTS_ASKED = 48
_RERANKED = 64
_BATCH = 8192

Progress = Callable[[str, float], None]


class Passage(NamedTuple):
    """A passage that was found: its row, its words, and the cosine of the angle to the question."""

    row: int
    text: str
    score: float


@dataclass(frozen=True)
class _Index:
    centroids: Vector
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    codes: NDArray[np.int8]
    scales: Vector


class Matrix:
    """A loaded Matrix. Safe to search from several threads."""

    def __init__(self, directory: Path, manifest: Manifest, mapped: dict[str, Any], lengths: Vector, index: _Index):
        self.manifest = manifest
        self._directory = directory
        self._vectors, self._texts, self._offsets = mapped["vectors"], mapped["texts"], mapped["offsets"]
        self.rarity: Vector = np.array(mapped["rarity"])
        self._lengths = lengths
        self._index = index

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def rows(self) -> int:
        return self.manifest.rows

    def embed(self, text: str) -> Vector:
        return embed(text, self.rarity)

    def passage(self, row: int) -> str:
        begin, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return bytes(self._texts[begin:end]).decode()

    def search(self, question: Vector, count: int = 5) -> list[Passage]:
        """The passages nearest to the question, best first."""
        index = self._index
        lists = np.argsort(index.centroids @ question)[::-1][:_LISTS_ASKED]
        spans = [slice(int(index.starts[one]), int(index.starts[one + 1])) for one in lists]
        places = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        rough = np.concatenate([index.codes[span].astype(np.float32) @ question for span in spans])
        rough *= index.scales[places]
        best = index.rows[places[np.argsort(rough)[::-1][: max(_RERANKED, count)]]]
        exact = (self._vectors[best] @ question) / self._lengths[best]
        order = np.argsort(-exact, kind="stable")[:count]
        return [Passage(int(best[at]), self.passage(int(best[at])), float(exact[at])) for at in order]

    def check_still_there(self) -> None:
        """Raise MatrixError if the files below this memory are no longer those it was made of: a restore elsewhere.

        Compares the manifest and the sizes; every byte was read when the Matrix was put on this machine.
        """
        now = read_manifest(self._directory)
        if now.digest != self.digest:
            raise MatrixError(f"{self._directory} holds Matrix {now.digest[:12]}; this agent knows {self.digest[:12]}")
        for name, (size, _) in now.files.items():
            if (self._directory / name).stat().st_size != size:
                raise MatrixError(f"{self._directory / name} does not have {size} bytes")


def load_matrix(directory: Path, *, progress: Progress) -> Matrix:
    """Map, check, normalise and index a Matrix: seconds of work. Raises MatrixError."""
    manifest = read_manifest(directory)
    if (manifest.embedding, manifest.dimensions) != (NAME, DIMENSIONS):
        raise MatrixError(f"{directory}: its embedding is {manifest.embedding}, this agent's is {NAME}")
    check_files(directory, manifest, progress=lambda part: progress("checking", part))
    mapped = {
        "vectors": np.load(directory / "vectors.npy", mmap_mode="r"),
        "offsets": np.load(directory / "offsets.npy", mmap_mode="r"),
        "rarity": np.load(directory / "rarity.npy"),
        "texts": np.memmap(directory / "texts.bin", np.uint8, "r"),
    }
    vectors = mapped["vectors"]
    if vectors.shape != (manifest.rows, DIMENSIONS) or vectors.dtype != np.float32:
        raise MatrixError(f"{directory / 'vectors.npy'}: {vectors.dtype} {vectors.shape} is not what the manifest says")
    lengths = _lengths(vectors)
    index = _make_index(vectors, lengths, progress)
    return Matrix(directory, manifest, mapped, lengths, index)


def _lengths(vectors: NDArray[np.float32]) -> Vector:
    lengths = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), _BATCH):
        part = vectors[at : at + _BATCH]
        lengths[at : at + _BATCH] = np.sqrt(np.einsum("ij,ij->i", part, part))
    return np.maximum(lengths, np.float32(1e-12))


def _make_index(vectors: NDArray[np.float32], lengths: Vector, progress: Progress) -> _Index:
    count = max(1, int(np.sqrt(len(vectors))))  # lists: the usual choice
    centroids = _k_means(vectors, lengths, count, progress)
    nearest = np.empty(len(vectors), np.int32)
    for at in range(0, len(vectors), _BATCH):
        nearest[at : at + _BATCH] = (_unit(vectors, lengths, slice(at, at + _BATCH)) @ centroids.T).argmax(axis=1)
    rows = np.argsort(nearest, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(nearest, minlength=count))])
    codes = np.empty(vectors.shape, np.int8)
    scales = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), _BATCH):
        part = _unit(vectors, lengths, rows[at : at + _BATCH])
        largest = np.maximum(np.abs(part).max(axis=1), np.float32(1e-12)) / 127
        codes[at : at + _BATCH] = np.rint(part / largest[:, None])
        scales[at : at + _BATCH] = largest
        progress("coding", min(1.0, (at + _BATCH) / len(vectors)))
    return _Index(centroids, starts, rows, codes, scales)


def _unit(vectors: NDArray[np.float32], lengths: Vector, which: Any) -> Vector:
    part: Vector = vectors[which] / lengths[which][:, None]
    return part


def _k_means(vectors: NDArray[np.float32], lengths: Vector, count: int, progress: Progress) -> Vector:
    """Spherical k-means: centroids of length one. The seed is fixed: each cold start makes the same index."""
    rng = np.random.Generator(np.random.PCG64(7))
    chosen = np.sort(rng.permutation(len(vectors))[: count * _PER_LIST])
    sample = _unit(vectors, lengths, chosen)
    centroids = sample[np.sort(rng.permutation(len(sample))[:count])].copy()
    for done in range(ITERATIONS):
        nearest = np.empty(len(sample), np.int64)
        for at in range(0, len(sample), _BATCH):
            nearest[at : at + _BATCH] = (sample[at : at + _BATCH] @ centroids.T).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        members, firsts = np.unique(nearest[order], return_index=True)
        centroids[members] = np.add.reduceat(sample[order], firsts, axis=0)
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.float32(1e-12))
        progress("indexing", (done + 1) / ITERATIONS)
    return centroids
