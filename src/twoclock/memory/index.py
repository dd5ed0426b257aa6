"""Hybrid search over entries that stand in memory: words by BM25, meaning by exact cosine, fused by rank.

A reader's result follows from the query and from the entries that the reader may see, and from nothing else: scope,
kind, expiry and quarantine are applied *before* ranking, and the statistics of BM25 (how many entries, how many with
the word, how long on average) are those of the visible entries alone. So neither order nor score tells what is in
another scope, and an entry that was taken back leaves no trace. SQLite's FTS5 computes its ``bm25()`` over the whole
table, which is why it only finds words here (``MemoryStore.entries(containing=...)``) and does not rank.

Equations, for the words t of a query and an entry d among the N visible ones::

    bm25(d) = Σ_t ln(1 + (N − n_t + ½) / (n_t + ½)) · f_td (k1 + 1) / (f_td + k1 (1 − b + b |d| / mean|d|))
    score(d) = Σ_lists 1 / (60 + rank of d in the list)

BM25: Robertson and Zaragoza 2009, with the logarithm's argument kept above 1 as in Lucene; f_td and |d| count a word of
the key three times (the form for fields of Robertson et al. 2004). Fusion: Cormack, Clarke and Büttcher 2009, with
their constant. A list holds the ``candidates`` best; an entry is found when it shares a word with the query or its
cosine is above 0. All of it is exact: pruning skips only what provably cannot be among the candidates.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError
from twoclock.memory.records import KINDS, Kind, Scope
from twoclock.memory.words import words_of

__all__ = ["Found", "Index", "MOST_WORDS"]

K1, B = 1.2, 0.75
"""BM25's constants, at the values that its authors recommend."""

FUSION = 60
"""Reciprocal rank fusion's constant: how fast the weight of a rank falls."""

MOST_WORDS = 64
"""Of a longer query only its rarest words count: a pasted document is no reason to be slow."""

# N entries, D dimensions, C candidates.
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]

# A word's weight, the rows that have it, and how often each of them does.
_Term = tuple[float, Rows, Rows]

_SCOPE = ("agent", "user", "task", "session")


@dataclass(frozen=True)
class Found:
    """One entry of a result: its id and what it was ranked by, as in :class:`~twoclock.memory.records.Hit`."""

    id: str
    score: float
    similarity: float | None
    lexical: float | None


class Index:
    """Entries by id, with what they are found by. Not safe for threads: its owner holds a lock.

    ``dimension`` is that of the vectors; 0 for a search by words alone.
    """

    def __init__(self, dimension: int = 0) -> None:
        self.dimension = dimension
        self._ids: list[str] = []
        self._row: dict[str, int] = {}
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        self._codes: dict[str, int] = {"": 0}
        self._scope = np.zeros((4, 0), dtype=np.int32)
        self._kind = np.zeros(0, dtype=np.int8)
        self._expires = np.zeros(0)
        self._alive = np.zeros(0, dtype=np.bool_)
        self._length = np.zeros(0)
        self._vectors = np.zeros((0, dimension), dtype=np.float32)
        self.live = 0

    def __len__(self) -> int:
        """How many entries can be found."""
        return self.live

    def __contains__(self, entry_id: str) -> bool:
        row = self._row.get(entry_id)
        return row is not None and bool(self._alive[row])

    def knows(self, entry_id: str) -> bool:
        """Whether it holds the entry's words, dropped or not."""
        return entry_id in self._row

    @property
    def wasteful(self) -> bool:
        """Whether most of it is what was dropped: it is time to build another."""
        return len(self._ids) > 2 * self.live + 1000

    # ------------------------------------------------------------------------------------------------------- writing

    def put(
        self,
        entry_id: str,
        words: Mapping[str, int],
        *,
        kind: Kind,
        scope: Scope,
        expires: float | None = None,
        vector: Vector | None = None,
    ) -> None:
        """Add an entry, or change the expiry of one that is there: an id stands for its words, kind and scope."""
        row = self._row.get(entry_id)
        if row is None:
            row = self._new_row(entry_id, words, kind, scope)
        if not self._alive[row]:
            self._alive[row], self.live = True, self.live + 1
        self._expires[row] = math.inf if expires is None else expires
        if vector is not None:
            self.set_vector(entry_id, vector)

    def set_vector(self, entry_id: str, vector: Vector) -> None:
        """The vector of an entry that it knows; without one an entry is found by words alone."""
        if self.dimension:
            self._vectors[self._row[entry_id]] = vector

    def drop(self, entry_id: str) -> None:
        """Find it no more; nothing happens where it is not there."""
        if entry_id in self:
            self._alive[self._row[entry_id]], self.live = False, self.live - 1

    def _new_row(self, entry_id: str, words: Mapping[str, int], kind: Kind, scope: Scope) -> int:
        row = len(self._ids)
        if row == len(self._alive):
            self._grow(max(64, row // 2))
        self._ids.append(entry_id)
        self._row[entry_id] = row
        for word, count in words.items():
            if word not in self._postings:
                self._postings[word] = (array("q"), array("q"))
            rows, counts = self._postings[word]
            rows.append(row)
            counts.append(count)
        self._length[row] = sum(words.values())
        self._kind[row] = KINDS.index(kind)
        for n, name in enumerate(_SCOPE):
            self._scope[n, row] = self._codes.setdefault(getattr(scope, name), len(self._codes))
        return row

    def reserve(self, count: int) -> None:
        """Room for so many more entries at once."""
        if (short := len(self._ids) + count - len(self._alive)) > 0:
            self._grow(short)

    def _grow(self, more: int) -> None:
        self._scope = np.concatenate([self._scope, np.zeros((4, more), dtype=np.int32)], axis=1)
        self._kind = np.concatenate([self._kind, np.zeros(more, dtype=np.int8)])
        self._expires = np.concatenate([self._expires, np.zeros(more)])
        self._alive = np.concatenate([self._alive, np.zeros(more, dtype=np.bool_)])
        self._length = np.concatenate([self._length, np.zeros(more)])
        if self.dimension:
            grown = np.zeros((len(self._vectors) + more, self.dimension), dtype=np.float32)
            grown[: len(self._vectors)] = self._vectors
            self._vectors = grown

    # ------------------------------------------------------------------------------------------------------ searching

    def search(
        self,
        query: str,
        *,
        scope: Scope,
        k: int,
        kinds: Collection[Kind] | None = None,
        now: float,
        vector: Vector | None = None,
        candidates: int = 100,
    ) -> list[Found]:
        """The ``k`` best of what a reader of ``scope`` may see at ``now``, best first; ties go by id.

        ``vector`` [D] is the query's, of length 1; without one only words count. ``kinds`` None is every kind. Raises
        ConfigError for a ``k`` or ``candidates`` that is no count, a ``now`` that is no time, and an unknown kind.
        """
        _check(query, k, kinds, now, candidates)
        visible = self._visible(scope, kinds, now)
        total = int(np.count_nonzero(visible))
        if not (k and total):
            return []
        depth = max(k, candidates)
        lists: list[Rows] = []
        words = _Words(self, query, visible, total)
        lists.append(words.best(depth))
        similar = None
        if vector is not None and self.dimension:
            similar = vector.astype(np.float64)
            lists.append(self._nearest(vector, visible, total, depth))
        scores: dict[int, float] = {}
        for ranked in lists:
            for rank, row in enumerate(ranked.tolist(), start=1):
                scores[row] = scores.get(row, 0.0) + 1.0 / (FUSION + rank)
        best = sorted(scores, key=lambda row: (-scores[row], self._ids[row]))[:k]
        rows = np.array(best, dtype=np.int64)
        lexical = words.scores(rows)
        cosines = None if similar is None else self._cosines(rows, similar)
        return [
            Found(
                self._ids[row],
                scores[row],
                None if cosines is None else float(cosines[n]),
                float(lexical[n]) if lexical[n] > 0 else None,
            )
            for n, row in enumerate(best)
        ]

    def _visible(self, scope: Scope, kinds: Collection[Kind] | None, now: float) -> Mask:
        n = len(self._ids)
        visible = self._alive[:n] & (self._expires[:n] > now)
        for part, name in zip(self._scope, _SCOPE, strict=True):
            # A value that no entry has has no code, and sees what is open.
            code = self._codes.get(getattr(scope, name), 0)
            visible &= (part[:n] == 0) | (part[:n] == code) if code else part[:n] == 0
        if kinds is not None:
            wanted = np.zeros(len(KINDS), dtype=np.bool_)
            wanted[[KINDS.index(kind) for kind in kinds]] = True
            visible &= wanted[self._kind[:n]]
        return visible

    def _by_id(self, rows: Rows, scores: Floats, depth: int) -> Rows:
        """The ``depth`` best rows, ties by id."""
        if len(rows) > depth:
            best = scores >= _floor(scores, depth)
            rows, scores = rows[best], scores[best]
        order = sorted(range(len(rows)), key=lambda n: (-scores[n], self._ids[rows[n]]))[:depth]
        return rows[order]

    def _cosines(self, rows: Rows, query: Floats) -> Floats:
        """Cosines [C] in float64, each from its own row alone, so that they do not depend on what else is there."""
        cosines: Floats = (self._vectors[rows].astype(np.float64) * query).sum(axis=1)
        return cosines

    def _nearest(self, vector: Vector, visible: Mask, total: int, depth: int) -> Rows:
        """The visible rows with the highest cosines above 0."""
        n = len(visible)
        if total * 4 < n:
            rows = np.flatnonzero(visible)
            rough = self._vectors[rows] @ vector
        else:
            rows = np.arange(n)
            rough = np.where(visible, self._vectors[:n] @ vector, np.float32(-2.0))
        # float32 rounds a dot product of unit vectors by less than D · 2^-24; twice that from both ends is safe.
        slack = 4.0 * self.dimension * 2.0**-24
        rows = rows[rough >= max(0.0, _floor(rough, depth)) - slack]
        rows = rows[visible[rows]]
        exact = self._cosines(rows, vector.astype(np.float64))
        return self._by_id(rows[exact > 0], exact[exact > 0], depth)


class _Words:
    """BM25 of one query over the visible rows."""

    def __init__(self, index: Index, query: str, visible: Mask, total: int) -> None:
        self._index, self._visible = index, visible
        n = len(visible)
        lengths = index._length[:n]
        mean = max(1.0, float(lengths[visible].sum()) / total)
        self._norm = K1 * (1 - B + B * lengths / mean)
        found = []
        for word in sorted(set(words_of(query))):
            if posting := index._postings.get(word):
                rows = np.frombuffer(posting[0], dtype=np.int64)
                count = int(np.count_nonzero(visible[rows]))
                if count:
                    found.append((count, word, rows, np.frombuffer(posting[1], dtype=np.int64)))
        # Rarest first: what decides comes first, and the sum of an entry has one order whichever way it is taken.
        found.sort(key=lambda part: (part[0], part[1]))
        self._terms: list[_Term] = [
            (math.log1p((total - count + 0.5) / (count + 0.5)), rows, counts)
            for count, _, rows, counts in found[:MOST_WORDS]
        ]

    def best(self, depth: int) -> Rows:
        """The ``depth`` best rows that share a word with the query. Exact (MaxScore, Turtle and Flood 1995): once what
        the other words can add no longer lifts an entry without the words so far among the best, only those that may
        still be among the best are looked up."""
        # What the words from the nth on can add at most; a margin for the rounding of sums.
        left = [0.0]
        for weight, *_ in reversed(self._terms):
            left.append(left[-1] + weight * (K1 + 1) * (1 + 1e-9))
        left.reverse()
        sums = np.zeros(len(self._visible))
        touched: list[Rows] = []
        n = 0
        while n < len(self._terms):
            weight, posted, counts = self._terms[n]
            # Asking costs about as much as gathering a posting of some length.
            if len(posted) > len(sums) // 64 and touched and left[n] < _floor(sums[sums > 0], depth):
                break
            seen = self._visible[posted]
            own = posted[seen]
            sums[own] += self._part(weight, own, counts[seen])
            touched.append(own)
            n += 1
        if not touched:
            return np.zeros(0, dtype=np.int64)
        rows: Rows = np.flatnonzero(sums)
        while True:
            rows = rows[sums[rows] + left[n] >= _floor(sums[rows], depth)]
            if n == len(self._terms):
                return self._index._by_id(rows, sums[rows], depth)
            sums[rows] += self._of(self._terms[n], rows)
            n += 1

    def _part(self, weight: float, rows: Rows, counts: Rows) -> Floats:
        part: Floats = weight * (K1 + 1) * counts / (counts + self._norm[rows])
        return part

    def scores(self, rows: Rows) -> Floats:
        """BM25 of the given rows, 0 where no word matched; each from its own counts and the visible statistics."""
        sums = np.zeros(len(rows))
        for term in self._terms:
            sums += self._of(term, rows)
        return sums

    def _of(self, term: _Term, rows: Rows) -> Floats:
        """What one word adds to each of the given rows."""
        weight, posted, counts = term
        # Rows are posted in the order in which they were made, so a posting is sorted.
        at = np.searchsorted(posted, rows)
        at[at == len(posted)] = 0
        found = np.where(posted[at] == rows, counts[at], 0)
        return self._part(weight, rows, found)


def _floor(scores: npt.NDArray[Any], depth: int) -> float:
    """The score that ``depth`` entries reach; 0 where there are fewer."""
    return float(np.partition(scores, len(scores) - depth)[len(scores) - depth]) if len(scores) > depth else 0.0


def _check(query: Any, k: Any, kinds: Any, now: Any, candidates: Any) -> None:
    found = []
    if not isinstance(query, str):
        found.append(f"a query is a text; got {query!r:.60}")
    for name, value, least in (("k", k, 0), ("candidates", candidates, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            found.append(f"{name} counts entries, {least} or more; got {value!r}")
    if not isinstance(now, int | float) or not math.isfinite(now):
        found.append(f"now must be a finite time on the entries' clock; got {now!r}")
    if isinstance(kinds, str):
        found.append(f"kinds is a collection of kinds, not one string; write kinds=[{kinds!r}]")
    elif kinds is not None and (unknown := sorted(str(kind) for kind in kinds if kind not in KINDS)):
        found.append(f"unknown kind of entry '{unknown[0]}'; known: {', '.join(KINDS)}")
    if found:
        raise ConfigError(found)
