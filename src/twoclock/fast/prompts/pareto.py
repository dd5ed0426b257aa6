"""The Pareto pool: which candidates are worth keeping, from a score matrix. Pure.

As in GEPA (arXiv:2507.19457, instance frontier): a candidate wins an item when none scores higher on it; a candidate
whose every item is also won by another that remains is removed, lowest mean first. What remains still wins every item.
Where we depart: the pool is capped, so beyond the cap the rarest specialists go, and it is topped up by mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["choose_pool", "frontier"]


def _mean(row: Sequence[float]) -> float:
    return math.fsum(row) / len(row)


def frontier(rows: Sequence[Sequence[float]]) -> dict[int, int]:
    """The candidates that are needed to win every item, each with the number of items it wins (its weight).

    ``rows[k][i]`` is the score of candidate k on item i, higher is better; every row has the same, non-zero length.
    Between equal means the later row is removed first, so earlier rows (the deployed one) win ties.
    """
    if not rows:
        return {}
    width = len(rows[0])
    if width == 0 or any(len(row) != width for row in rows):
        raise ValueError(f"rows must have one non-zero length; got {[len(row) for row in rows]}")
    best = [max(column) for column in zip(*rows, strict=True)]
    wins = {k: {i for i in range(width) if row[i] == best[i]} for k, row in enumerate(rows)}
    remaining = set(wins)
    for k in sorted(wins, key=lambda k: (_mean(rows[k]), -k)):
        covered = set().union(*(wins[other] for other in remaining if other != k))
        if wins[k] <= covered:
            remaining.discard(k)
    return {k: len(wins[k]) for k in sorted(remaining)}


def choose_pool(rows: Sequence[Sequence[float]], size: int) -> list[int]:
    """At most ``size`` row numbers to keep: the best mean, then the frontier by weight, then others by mean."""
    weights = frontier(rows)
    by_mean = sorted(range(len(rows)), key=lambda k: (-_mean(rows[k]), k))
    by_weight = sorted(weights, key=lambda k: (-weights[k], -_mean(rows[k]), k))
    return list(dict.fromkeys([*by_mean[:1], *by_weight, *by_mean]))[:size]
