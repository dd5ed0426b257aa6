"""BM25 over the entries that one reader may see, from postings that stand in memory.

For the words t of a query and an entry d among the N visible ones::

    bm25(d) = Σ_t ln(1 + (N − n_t + ½) / (n_t + ½)) · f_td (k1 + 1) / (f_td + k1 (1 − b + b |d| / mean|d|))

(Robertson and Zaragoza 2009; the logarithm's argument is kept above 1 as in Lucene). f_td and |d| count a word of the
key several times, the form for fields of Robertson, Zaragoza and Taylor 2004. N, n_t and the mean are those of the
visible entries, so that no score tells of another.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from twoclock.memory.nearest import floor_of
from twoclock.memory.words import words_of

__all__ = ["MOST_WORDS", "Asked", "Postings"]

K1, B = 1.2, 0.75
"""At the values that the authors recommend."""

MOST_WORDS = 64
"""Of a longer query only its rarest words count: a pasted document is no reason to be slow."""

GATHER = 64
"""Asking whether the rest may be skipped costs about as much as gathering a posting of one in so many rows."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# A word's weight, the rows that have it, and how often each of them does.
_Term = tuple[float, Rows, Rows]


class Postings:
    """Which rows have which words; rows are added in order and never leave."""

    def __init__(self) -> None:
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        self._lengths = array("q")

    def add(self, row: int, words: Mapping[str, int]) -> None:
        """The next row, with how often it has each word."""
        assert row == len(self._lengths)
        for word, count in words.items():
            if word not in self._postings:
                self._postings[word] = (array("q"), array("q"))
            rows, counts = self._postings[word]
            rows.append(row)
            counts.append(count)
        self._lengths.append(sum(words.values()))

    def ask(self, query: str, visible: Mask, total: int) -> Asked:
        """A query's words over the ``total`` rows that ``visible`` marks, of which there is one at least. What it gives
        must be let go before a row is added."""
        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        mean = max(1.0, int((lengths * visible).sum()) / total)
        found = []
        for word in sorted(set(words_of(query))):
            if posting := self._postings.get(word):
                rows, counts = (np.frombuffer(part, dtype=np.int64) for part in posting)
                if seen := int(np.count_nonzero(visible[rows])):
                    found.append((seen, word, rows, counts))
        # Rarest first: what decides comes first, and the sum of a row has one order whichever way it is taken.
        found.sort(key=lambda part: (part[0], part[1]))
        terms = [
            (math.log1p((total - seen + 0.5) / (seen + 0.5)), rows, counts)
            for seen, _, rows, counts in found[:MOST_WORDS]
        ]
        return Asked(terms, visible, lengths, mean)


class Asked:
    """One query's scores. ``lengths`` [N] are the rows', ``mean`` that of the visible ones."""

    def __init__(self, terms: list[_Term], visible: Mask, lengths: Rows, mean: float) -> None:
        self._terms, self._visible, self._lengths, self._mean = terms, visible, lengths, mean

    def best(self, depth: int) -> tuple[Rows, Floats]:
        """The ``depth`` best rows that share a word with the query, and what ties with the last; with their scores, in
        no order. Exact (MaxScore, Turtle and Flood 1995): once what the other words can add no longer lifts a row
        without the words so far among the best, only rows that may still be among them are looked up."""
        left = self._left()
        sums = np.zeros(len(self._visible))
        n = 0
        while n < len(self._terms):
            weight, posted, counts = self._terms[n]
            if n and len(posted) * GATHER > len(sums) and left[n] < floor_of(sums[sums > 0], depth):
                break
            seen = self._visible[posted]
            own = posted[seen]
            sums[own] += self._part(weight, own, counts[seen])
            n += 1
        rows: Rows = np.flatnonzero(sums)
        while True:
            rows = rows[sums[rows] + left[n] >= floor_of(sums[rows], depth)]
            if n == len(self._terms):
                return rows, sums[rows]
            sums[rows] += self._of(self._terms[n], rows)
            n += 1

    def _left(self) -> list[float]:
        """What the words from the nth on can add at most; with a margin for the rounding of sums."""
        left = [0.0]
        for weight, *_ in reversed(self._terms):
            left.append(left[-1] + weight * (K1 + 1) * (1 + 1e-9))
        return left[::-1]

    def scores(self, rows: Rows) -> Floats:
        """BM25 of the given rows, 0 where no word matched; each from its own counts and the visible statistics."""
        sums = np.zeros(len(rows))
        for term in self._terms:
            sums += self._of(term, rows)
        return sums

    def _of(self, term: _Term, rows: Rows) -> Floats:
        """What one word adds to each of the given rows."""
        weight, posted, counts = term
        # Rows are posted in their order, so a posting is sorted.
        at = np.searchsorted(posted, rows)
        at[at == len(posted)] = 0
        return self._part(weight, rows, np.where(posted[at] == rows, counts[at], 0))

    def _part(self, weight: float, rows: Rows, counts: Rows) -> Floats:
        norm = self._lengths[rows] * (K1 * B / self._mean) + K1 * (1 - B)
        part: Floats = (weight * (K1 + 1)) * counts / (counts + norm)
        return part
