"""Do conditionings differ at all: a permutation test of a reward table, exact for any rewards and any imbalance.

It asks less than the interval of a variance does and sees much smaller effects: with 16 items of two rollouts under
three conditionings whose rates lie .2 apart it rejects in 87 % where the interval leaves 0 in 24 %.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure.reward_table import RewardTable
from twoclock.seeding import child_seed

__all__ = ["conditioning_p"]

Array = npt.NDArray[np.float64]

PERMUTATIONS = 999
ROLLOUTS_HELD = 2_000_000
"""Rewards held at once while permuting."""


def conditioning_p(
    table: RewardTable,
    seed: int = 0,
    *,
    of: Literal["average", "any"] = "average",
    permutations: int = PERMUTATIONS,
) -> float:
    """P that the rewards differ between conditionings as much as they do, did no conditioning change anything.

    Under that hypothesis the rollouts of one item are exchangeable, so their labels are dealt anew within each item.
    ``average`` looks for a conditioning that is better or worse on the whole, Σ_c n_c r̄_c², ``any`` also for one that
    is better on some items and worse on others, Σ_ic n_ic r̄_ic², with r the reward minus its item's mean. Counts the
    observed one, so it is never 0; a table without an item under two conditionings gives 1.
    """
    if of not in ("average", "any"):
        raise ValueError(f"of is 'average' or 'any'; got {of!r}")
    if permutations < 1:
        raise ValueError(f"at least 1 permutation is needed; got {permutations}")
    several = (table.counts > 0).sum(axis=1) > 1
    kept = several[table.item_of]
    if not kept.any():
        return 1.0
    order = np.argsort(table.item_of[kept], kind="stable")
    item = table.item_of[kept][order]
    reward = table.rewards[kept][order]
    column = (table.conditioning_of if of == "average" else table.cell_of)[kept][order]
    _, item, sizes = np.unique(item, return_inverse=True, return_counts=True)
    _, column, counts = np.unique(column, return_inverse=True, return_counts=True)
    residual = reward - (np.bincount(item, weights=reward) / sizes)[item]
    observed = _spread(residual[None], column, counts)[0]
    generator = np.random.default_rng(child_seed("measure.permutation", seed))
    slack = 1e-9 * max(observed, 1e-9)  # sums of the same numbers in another order differ in their last bits
    hits, chunk = 0, max(1, ROLLOUTS_HELD // len(residual))
    for start in range(0, permutations, chunk):
        size = (min(chunk, permutations - start), len(residual))
        dealt = np.argsort(item + generator.random(size), axis=1)  # anew within each item
        hits += int(np.count_nonzero(_spread(residual[dealt], column, counts) >= observed - slack))
    return (hits + 1) / (permutations + 1)


def _spread(residual_BN: Array, column_N: npt.NDArray[np.int64], counts_K: npt.NDArray[np.int64]) -> Array:
    """Σ_k (sum of the residuals in column k)² / n_k for each row."""
    B, K = len(residual_BN), len(counts_K)
    flat = (np.arange(B)[:, None] * K + column_N[None]).ravel()
    sums = np.bincount(flat, weights=residual_BN.ravel(), minlength=B * K).reshape(B, K)
    spread: Array = (sums**2 / counts_K).sum(axis=1)
    return spread
