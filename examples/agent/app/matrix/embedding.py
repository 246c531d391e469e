"""Text as 256 numbers: hashed words, pairs and letter triples, projected at random. No model, no network, no table.

Each feature has a direction of its own: the 256 bits of its BLAKE2 hash, as ±1. Directions of different features are
nearly at right angles, so the sum of a text's features keeps what texts have in common (a random projection of the bag
of features: Johnson and Lindenstrauss). Rare words count for more: `rarity` is made of the texts by the builder.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

NAME = "hashed-projection/1"
DIMENSIONS = 256
BUCKETS = 1 << 16
_PAIR, _TRIPLE = 0.5, 0.15
_WORD = re.compile(r"[a-z0-9]+")
_COMMON = frozenset("a an and are as at be by did do does for from has have how in is it of on or that the to was were "
                    "what when where which who why with you your i me my".split())  # fmt: skip

Vector = NDArray[np.float32]


def words_of(text: str) -> list[str]:
    """The words that count, in order, without the ending of a plural or of a verb's third person."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _COMMON]


def _stem(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    return word[:-2] if word.endswith(("shes", "ches", "xes", "ses")) else word[:-1]


def bucket(word: str) -> int:
    """Where a word's rarity stands; words that share a bucket share their rarity."""
    return zlib.crc32(word.encode()) % BUCKETS


def rarity_of(counts: NDArray[np.int64], texts: int) -> Vector:
    """How much each bucket's words count, from how many texts have them: the root of the usual log(texts / count).

    Without the root a name, which few texts have, would drown what is asked about it.
    """
    return np.sqrt(np.log((1 + texts) / (1 + counts))).astype(np.float32)


def features(text: str, rarity: Vector) -> Iterator[tuple[str, float]]:
    """The features of a text, each with its weight; one may come several times."""
    before = ""
    for word in words_of(text):
        weight = float(rarity[bucket(word)])
        yield word, weight
        if before:
            yield f"{before} {word}", _PAIR * weight
        if len(word) > 4:  # so that a misspelt name is still near
            for at in range(len(word) - 2):
                yield f"~{word[at : at + 3]}", _TRIPLE * weight
        before = word


def direction(feature: str) -> NDArray[np.int8]:
    """The direction of a feature: 256 times ±1."""
    digest = hashlib.blake2b(feature.encode(), digest_size=DIMENSIONS // 8).digest()
    bits: NDArray[np.int8] = np.unpackbits(np.frombuffer(digest, np.uint8)).view(np.int8)
    return bits * 2 - 1


def embed(text: str, rarity: Vector) -> Vector:
    """The text's vector, of length one; all zeros for a text without a word that counts."""
    total = np.zeros(DIMENSIONS, np.float32)
    for feature, weight in features(text, rarity):
        total += direction(feature) * np.float32(weight)
    length = math.sqrt(float(total @ total))
    return total / np.float32(length) if length else total
