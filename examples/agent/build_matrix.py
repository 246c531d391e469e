#!/usr/bin/env python3
"""Makes the Matrix: 100,000 passages with their vectors, about 115 MB, the same bytes on every machine.

`build_matrix.py DIRECTORY [--rows 100000]`. It appears when it is whole; one that is there already is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from app.matrix.embedding import BUCKETS, DIMENSIONS, NAME, Vector, bucket, direction, features, rarity_of, words_of
from app.matrix.files import MANIFEST, Probe, read_manifest, write_manifest
from corpus import FACTS, Fact, facts, place

ROWS = 100_000
PROBES = 24
_BATCH = 1000


def build(directory: Path, *, rows: int = ROWS) -> None:
    """Make a Matrix of `rows` passages at `directory`, unless one of that size is there."""
    if (directory / MANIFEST).exists() and read_manifest(directory).rows == rows:
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        staging.chmod(0o755)
        _write(staging, [fact for at in range(-(-rows // FACTS)) for fact in facts(place(at))][:rows])
        shutil.rmtree(directory, ignore_errors=True)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(directory: Path, written: Sequence[Fact]) -> None:
    passages = [fact.passage for fact in written]
    encoded = [passage.encode() for passage in passages]
    (directory / "texts.bin").write_bytes(b"".join(encoded))
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in encoded])]).astype(np.int64)
    np.save(directory / "offsets.npy", offsets)
    counts = np.zeros(BUCKETS, np.int64)
    for passage in passages:
        counts[list({bucket(word) for word in words_of(passage)})] += 1
    rarity = rarity_of(counts, len(passages))
    np.save(directory / "rarity.npy", rarity)
    _write_vectors(directory / "vectors.npy", passages, rarity)
    step = max(1, len(written) // PROBES) | 1  # odd, so that the questions are of all eight sorts
    probes = [Probe(fact.question, fact.passage) for fact in written[::step]]
    write_manifest(directory, rows=len(passages), dimensions=DIMENSIONS, embedding=NAME, probes=probes)


def _write_vectors(path: Path, passages: Sequence[str], rarity: Vector) -> None:
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(passages), DIMENSIONS))
    known: dict[str, int] = {}
    directions = np.empty((1 << 16, DIMENSIONS), np.int8)
    for at in range(0, len(passages), _BATCH):
        which: list[int] = []
        weights: list[float] = []
        firsts: list[int] = []
        for passage in passages[at : at + _BATCH]:
            firsts.append(len(which))
            for feature, weight in features(passage, rarity):
                place_of = known.setdefault(feature, len(known))
                if place_of == len(directions):
                    directions = np.concatenate([directions, np.empty_like(directions)])
                if place_of == len(known) - 1:
                    directions[place_of] = direction(feature)
                which.append(place_of)
                weights.append(weight)
        vectors[at : at + _BATCH] = _sums(directions, which, weights, firsts)
        if sys.stderr.isatty():
            print(f"\rbuilding the Matrix: {100 * at // len(passages)} %", end="", file=sys.stderr)
    vectors.flush()


def _sums(
    directions: NDArray[np.int8], which: Sequence[int], weights: Sequence[float], firsts: Sequence[int]
) -> NDArray[np.float32]:
    weighted = directions[which].astype(np.float32) * np.asarray(weights, np.float32)[:, None]
    return np.add.reduceat(weighted, firsts, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    build(options.directory, rows=options.rows)


if __name__ == "__main__":
    main()
