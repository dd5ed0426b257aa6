"""Hybrid search over entries that stand in memory: words by BM25, meaning by exact cosine, fused by rank.

A reader's result follows from the query and from the entries that the reader may see, and from nothing else: scope,
kind, expiry and quarantine are applied *before* ranking, and the statistics of BM25 (how many entries, how many with
the word, how long on average) are those of the visible entries alone. So neither order nor score tells what is in
another scope, and an entry that was taken back leaves no trace. SQLite's FTS5 computes its ``bm25()`` over the whole
table, which is why it only finds words here (``MemoryStore.entries(containing=...)``) and does not rank.

Fusion is by reciprocal rank (Cormack, Clarke and Büttcher 2009, with their constant)::

    score(d) = Σ_lists 1 / (60 + rank of d in the list)

over the ``candidates`` best by BM25 (:mod:`twoclock.memory.bm25`) and the ``candidates`` best by cosine
(:mod:`twoclock.memory.nearest`), ties by id. An entry is found when it shares a word with the query or its cosine is
above 0. All of it is exact: pruning skips only what provably cannot be among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError
from twoclock.memory.bm25 import Postings
from twoclock.memory.nearest import Vectors, best_by_id
from twoclock.memory.records import KINDS, Kind, Scope

__all__ = ["Found", "Index", "require_kinds"]

FUSION = 60
"""Reciprocal rank fusion's constant: how fast the weight of a rank falls."""

Mask = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float32]

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
        self._postings = Postings()
        self._codes: dict[str, int] = {"": 0}
        self._scope = np.zeros((4, 0), dtype=np.int32)
        self._kind = np.zeros(0, dtype=np.int8)
        self._expires = np.zeros(0)
        self._alive = np.zeros(0, dtype=np.bool_)
        self._vectors = Vectors(dimension)
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
            self._vectors.set(self._row[entry_id], vector)

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
        self._postings.add(row, words)
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
        if self.dimension:
            self._vectors.reserve(len(self._alive))

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
        _check(query, scope, k, kinds, now, candidates)
        visible = self._visible(scope, kinds, now)
        total = int(np.count_nonzero(visible))
        if not (k and total):
            return []
        depth = max(k, candidates)
        words = self._postings.ask(query, visible, total)
        lists = [best_by_id(*words.best(depth), self._ids, depth)]
        if vector is not None and self.dimension:
            lists.append(best_by_id(*self._vectors.nearest(vector, visible, total, depth), self._ids, depth))
        scores: dict[int, float] = {}
        for ranked in lists:
            for rank, row in enumerate(ranked.tolist(), start=1):
                scores[row] = scores.get(row, 0.0) + 1.0 / (FUSION + rank)
        best = sorted(scores, key=lambda row: (-scores[row], self._ids[row]))[:k]
        rows = np.array(best, dtype=np.int64)
        lexical = words.scores(rows)
        cosines = None if vector is None or len(lists) == 1 else self._vectors.cosines(rows, vector)
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


def _check(query: Any, scope: Any, k: Any, kinds: Any, now: Any, candidates: Any) -> None:
    found = []
    if not isinstance(query, str):
        found.append(f"a query is a text; got {query!r:.60}")
    if not isinstance(scope, Scope):
        found.append(f"a reader is a Scope; got {scope!r:.60}; write Scope(user=...)")
    for name, value, least in (("k", k, 0), ("candidates", candidates, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            found.append(f"{name} counts entries, {least} or more; got {value!r}")
    if not isinstance(now, int | float) or not math.isfinite(now):
        found.append(f"now must be a finite time on the entries' clock; got {now!r}")
    found += _kind_problems(kinds)
    if found:
        raise ConfigError(found)


def require_kinds(kinds: Collection[Kind] | None) -> None:
    """Raises ConfigError for what is no collection of kinds; None is every kind."""
    if found := _kind_problems(kinds):
        raise ConfigError(found)


def _kind_problems(kinds: Any) -> list[str]:
    if isinstance(kinds, str):
        return [f"kinds is a collection of kinds, not one string; write kinds=[{kinds!r}]"]
    if kinds is not None and (unknown := sorted(str(kind) for kind in kinds if kind not in KINDS)):
        return [f"unknown kind of entry '{unknown[0]}'; known: {', '.join(KINDS)}"]
    return []
