"""The entries, queries and vectors that the memory benchmarks work on; needs NumPy alone, so that a peer's own
environment can make the same ones.

Texts have words as language has them (the nth most common one is n times rarer than the first): queries hit long and
short postings. Vectors are drawn at random by their text: they have no structure that a search could profit from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

DIMENSION = 384
VOCABULARY = 30_000
USERS = 10
QUERY_WORDS = 12


class DrawnEncoder:
    """Unit vectors that follow from a hash of the text; an encoder of twoclock's."""

    id = f"drawn:{DIMENSION}"
    dimension = DIMENSION

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.empty((len(texts), DIMENSION), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            row[:] = np.random.Generator(np.random.SFC64(seed)).standard_normal(DIMENSION, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Texts:
    """Keys, texts and queries by number, the same in every process."""

    def __init__(self, seed: int = 0) -> None:
        self._maker = np.random.default_rng(seed)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        numbers = np.arange(VOCABULARY)
        self._words = ["".join(letters[(n // 26 ** np.arange(4)) % 26]) for n in numbers]
        common = 1.0 / (numbers + 1.0)
        self._chance = common / common.sum()

    def some(self, count: int, least: int, most: int) -> list[str]:
        """Texts of ``least`` to ``most`` words."""
        lengths = self._maker.integers(least, most + 1, count)
        drawn = self._maker.choice(VOCABULARY, size=int(lengths.sum()), p=self._chance).tolist()
        ends = np.cumsum(lengths)
        return [
            " ".join(self._words[n] for n in drawn[end - length : end])
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def queries(self, count: int) -> list[str]:
        return self.some(count, QUERY_WORDS, QUERY_WORDS)


def user_of(n: int) -> str:
    """Half of the entries are open to all, half are some user's."""
    return f"user{n // 2 % USERS}" if n % 2 else ""
