"""Exact nearest vectors by cosine, and how the best of many scores are picked.

One pass of float32 products over all rows finds those that may be among the nearest; their cosines are then computed
in float64, each from its own row alone, so that neither order nor score depends on what else is there. At 100,000 rows
of 384 dimensions the pass is bound by reading 154 MB from memory. (Bounding cosines by their parts along the leading
quarter of the directions was tried and removed: for none of the encoders here did the bounds leave few enough rows.)
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError
from twoclock.memory.encoders import Encoder

__all__ = ["Vectors", "best_by_id", "encoded", "floor_of"]

SPARSE = 4
"""Where fewer than one in so many rows are visible, these are gathered and the others not read."""

BLOCK = 64
"""Rows whose highest score stands for all of them in a first look."""

# N rows, D dimensions.
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]


def encoded(encoder: Encoder, texts: Sequence[str]) -> Matrix:
    """Vectors [N, D] of texts. Raises ConfigError where the encoder does not keep its contract: another shape, or
    numbers that are none."""
    made = np.asarray(encoder.encode(list(texts)), dtype=np.float32)
    if made.shape != (len(texts), encoder.dimension) or not np.isfinite(made).all():
        raise ConfigError(
            f"the encoder {encoder.id!r} must make finite vectors [{len(texts)}, {encoder.dimension}], one a text; it "
            f"made {list(made.shape)}{'' if np.isfinite(made).all() else ', some of them NaN or infinite'}"
        )
    return made


class Vectors:
    """Rows of length 1 (or 0) by number; those that were never set are 0."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._rows = np.zeros((0, dimension), dtype=np.float32)

    def reserve(self, capacity: int) -> None:
        """Room for so many rows in all."""
        if (more := capacity - len(self._rows)) > 0:
            self._rows = np.concatenate([self._rows, np.zeros((more, self.dimension), dtype=np.float32)])

    def set(self, row: int, vector: Vector) -> None:
        self._rows[row] = vector

    def cosines(self, rows: Rows, query: Vector) -> Floats:
        """In float64, each from its own row alone."""
        whole: Floats = (self._rows[rows].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        return whole

    def nearest(self, query: Vector, visible: Mask, total: int, depth: int) -> tuple[Rows, Floats]:
        """Of the ``total`` rows that ``visible`` [N] marks, those among the ``depth`` nearest with a cosine above 0,
        and whatever ties with the last of them; with their cosines, in no order."""
        n = len(visible)
        # float32 rounds a dot product of unit vectors by less than D · 2^-24; twice that from both ends is safe.
        slack = 4.0 * self.dimension * 2.0**-24
        if total * SPARSE < n:
            there = np.flatnonzero(visible)
            rough = self._rows[there] @ query
            rows = there[rough >= max(0.0, floor_of(rough, depth)) - slack]
        else:
            rough = self._rows[:n] @ query
            rough[~visible] = -2.0
            rows = np.flatnonzero(rough >= max(0.0, floor_of(rough, depth)) - slack)
        exact = self.cosines(rows, query)
        return rows[exact > 0], exact[exact > 0]


def floor_of(scores: npt.NDArray[np.floating[Any]], depth: int) -> float:
    """The score that ``depth`` of them reach; 0 where there are not more than so many."""
    if len(scores) <= depth:
        return 0.0
    whole = len(scores) // BLOCK
    if whole > 4 * depth:
        # The best of as many blocks reach a score that the best of all reach too: what is below it is out.
        first = floor_of(scores[: whole * BLOCK].reshape(whole, BLOCK).max(axis=1), depth)
        scores = scores[scores >= first]
    return float(np.partition(scores, len(scores) - depth)[len(scores) - depth])


def best_by_id(rows: Rows, scores: Floats, ids: Sequence[str], depth: int) -> Rows:
    """The ``depth`` rows with the highest scores, best first; ties go by id."""
    floor = floor_of(scores, depth)
    if len(rows) > depth:
        above, level = rows[scores > floor], rows[scores == floor]
        # Where thousands tie at the end only those whose turn it is by id are picked out.
        first = heapq.nsmallest(depth - len(above), ((ids[row], row) for row in level.tolist()))
        rows = np.concatenate([above, np.array([row for _, row in first], dtype=np.int64)])
        scores = np.concatenate([scores[scores > floor], np.full(len(first), floor)])
    named, given = [ids[row] for row in rows.tolist()], scores.tolist()
    order = sorted(range(len(named)), key=lambda n: (-given[n], named[n]))
    return rows[order]
