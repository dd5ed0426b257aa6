"""What could still be learned, and by which clock, read from a reward table in terms of rates.

With ``p_ic`` the rate (mean reward) of item i under conditioning c, *deployed* the conditioning in use, and a policy
gradient that sees ``G`` rollouts of an item at a time:

* the **fast** clock's headroom is what another conditioning gains: max_c E_i(p_ic - p_i,deployed) if one is chosen for
  all items, and up to E_i(max_c p_ic - p_i,deployed) if it is chosen item by item;
* the **slow** clock's headroom under the best conditioning is what is missing to 1 where a group shows a difference to
  learn from. Per item, ``1 - p = reachable + stuck`` exactly, with ``stuck = Σ_v (1 - v) P(all G rewards equal v)``;
  for rewards of 0 and 1 that is ``stuck = (1 - p)^G`` and ``reachable = (1 - p) - (1 - p)^G``;
* an item is **dead** when G rollouts under each of the conditionings all earn 0, with chance Π_c (1 - p_ic)^G: no
  clock has anything to go by, until a new conditioning is found. It is **solved** when G of G are right, p^G.

Whether p is 0 or 1 can never be seen from rollouts, so dead and solved are said for a group of G; they shrink as G
grows. All are unbiased: of n rollouts, those with k equal to v, the chance that G drawn without replacement are all v
is C(k, G) / C(n, G), with expectation P(v)^G.

Headroom is not what a step will gain. A coin has reachable headroom, 1/2 - 1/2^G, and no training raises it; only the
measured response to a step tells that apart from a skill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import (
    Interval,
    check_level,
    constant_interval,
    expanded_z,
    mean_interval,
    unknown,
    z_of,
)
from twoclock.measure.reward_table import RewardTable
from twoclock.seeding import child_seed

__all__ = ["Headroom", "find_headroom"]

Array = npt.NDArray[np.float64]

RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """See the module's text; all in units of the reward or as shares of items, ``n`` counts items."""

    deployed: str
    best: str
    """The conditioning of the highest mean gain over the deployed one, on the items that share both; the deployed one
    itself where none is above it."""
    fast: Interval
    """What the best single conditioning gains over the deployed one, never below 0. The bounds hold for all
    conditionings at once, so that choosing the best of them is paid for; the estimate chooses on one half of the items
    and measures on the other, both ways, which no winner's luck inflates."""
    fast_by_item: Interval
    """What is gained by choosing for each item by one half of its rollouts, measured on the other: a lower limit of
    what perfect routing would gain. Below 0 where choosing by so few rollouts does worse than staying."""
    slow: Interval
    """``reachable`` under the best conditioning."""
    stuck: Interval
    """Under the best conditioning; ``slow + stuck`` is what is missing to 1 there."""
    dead: Interval
    """The share of items that earn nothing under any conditioning."""
    solved: Interval
    """The share of items that are right G times of G under the best conditioning."""
    group: int
    """G."""


def find_headroom(
    table: RewardTable,
    deployed: str,
    *,
    group: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Headroom:
    """``deployed`` is the label of the conditioning in use; ``group`` is G, the rollouts of an item that the slow
    channel compares. None takes the lower median of the rollouts that items have under the best conditioning.

    Items with fewer than G rollouts there say nothing of slow, stuck and solved and are left out of them. For ``dead``
    a cell with fewer counts with what it has. ValueError for an unknown label, an empty table or a group below 1.
    """
    check_level(level)
    base = table.column(deployed)
    if group is not None and group < 1:
        raise ValueError(f"a group has at least 1 rollout; got group={group}")
    best, fast = _single(table, base, level, seed)
    counts = table.counts[:, best]
    G = group if group is not None else int(np.quantile(counts[counts > 0], 0.5, method="lower"))
    stuck, solved = _equal_groups(table, best, G)
    enough = counts >= G
    missing = 1 - table.means[enough, best]
    why = f"no item has {G} rollouts under {table.conditionings[best]!r}"
    return Headroom(
        deployed=deployed,
        best=table.conditionings[best],
        fast=fast,
        fast_by_item=_routed(table, base, level, seed),
        slow=_mean(missing - stuck[enough], level, seed, why),
        stuck=_mean(stuck[enough], level, seed, why),
        dead=_share(_dead(table, G), level, "no item"),
        solved=_share(solved[enough], level, why),
        group=G,
    )


def _mean(values: Array, level: float, seed: int, why: str) -> Interval:
    if not len(values):
        return unknown(0, level, method=why)
    return mean_interval(np.clip(values, 0.0, 1.0), level, seed, resamples=RESAMPLES, bounds=(0.0, 1.0))


def _share(chances: Array, level: float, why: str) -> Interval:
    """The mean of chances by Wilson's interval. For chances of 0 and 1 it is that of a share of items, for others it is
    somewhat wide, as a number in [0, 1] of mean p varies by p(1 - p) at most; a bootstrap of rare ones is far too
    narrow."""
    n = len(chances)
    if not n:
        return unknown(0, level, method=why)
    p, z = float(chances.mean()), z_of(level)
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), n, level, "wilson")


# --------------------------------------------------------------------------------------------------- the fast clock


def _single(table: RewardTable, base: int, level: float, seed: int) -> tuple[int, Interval]:
    """The best column, and the interval of its gain by the bootstrap of the largest standardised error (max-t)."""
    both = (table.counts > 0) & (table.counts[:, [base]] > 0)
    both[:, base] = False
    columns = np.flatnonzero(both.sum(axis=0) > 1)
    if not len(columns):
        return base, unknown(0, level, method="no other conditioning on two of the deployed one's items")
    mask = both[:, columns].astype(np.float64)
    gain = (table.means[:, columns] - table.means[:, [base]]) * mask
    items = mask.sum(axis=0)
    mean = gain.sum(axis=0) / items
    spread = np.sqrt((((gain - mean) * mask) ** 2).sum(axis=0) / (items - 1))
    error = spread / np.sqrt(items)
    first = int(np.argmax(mean))
    half = _largest_error(gain, mask, mean, error, level, seed) * error
    low, high = mean - half, mean + half
    for k in np.flatnonzero(error < 1e-12):  # all its differences alike, which is no proof that all others are
        same = constant_interval(float(mean[k]), int(items[k]), 1 - (1 - level) / len(columns), (-1.0, 1.0))
        low[k], high[k] = same.low, same.high
    bottom, top = max(0.0, float(low.max())), min(1.0, max(0.0, float(high.max())))
    estimate = min(max(_crossfit(gain, mask, seed), bottom), top)
    best = int(columns[first]) if mean[first] > 0 else base
    return best, Interval(estimate, bottom, top, int(items[first]), level, f"max-t bootstrap over {len(columns)}")


def _largest_error(gain: Array, mask: Array, mean: Array, error: Array, level: float, seed: int) -> float:
    """The quantile of max_k |mean*_k - mean_k| / error_k over resamples of the items."""
    varied = error >= 1e-12
    if not varied.any():
        return 0.0
    items = len(gain)
    generator = np.random.default_rng(child_seed("measure.headroom", seed))
    drawn = generator.integers(0, items, size=(RESAMPLES, items)) + np.arange(RESAMPLES)[:, None] * items
    W = np.bincount(drawn.ravel(), minlength=RESAMPLES * items).reshape(RESAMPLES, items).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (W @ gain[:, varied]) / (W @ mask[:, varied])
    distance = np.abs(np.nan_to_num(means - mean[varied])) / error[varied]
    quantile = float(np.quantile(distance.max(axis=1), level))
    return quantile * expanded_z(level, int(mask.sum(axis=0).min())) / z_of(level)


def _crossfit(gain: Array, mask: Array, seed: int) -> float:
    """The mean over both halves of the items of the gain there of what is best on the other half; staying counts 0."""
    order = np.random.default_rng(child_seed("measure.halves", seed)).permutation(len(gain))
    values = []
    for chosen_on, measured_on in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        with np.errstate(divide="ignore", invalid="ignore"):
            there = gain[chosen_on].sum(axis=0) / mask[chosen_on].sum(axis=0)
            here = gain[measured_on].sum(axis=0) / mask[measured_on].sum(axis=0)
        there = np.where(np.isfinite(there) & np.isfinite(here), there, -np.inf)
        pick = int(np.argmax(there))
        values.append(float(here[pick]) if there[pick] > 0 else 0.0)
    return sum(values) / 2


def _routed(table: RewardTable, base: int, level: float, seed: int) -> Interval:
    """Choosing item by item: by the even rollouts of each cell, measured on the odd ones, and the other way round."""
    halves = []
    for parity in (0, 1):
        chosen = table.rank_of % 2 == parity
        size = table.counts.size
        count = np.bincount(table.cell_of[chosen], minlength=size).reshape(table.shape)
        total = np.bincount(table.cell_of[chosen], weights=table.rewards[chosen], minlength=size)
        halves.append(total.reshape(table.shape) / np.maximum(count, 1))
    candidate = table.counts > 1
    rows = candidate[:, base] & (candidate.sum(axis=1) > 1)
    if not rows.any():
        return unknown(0, level, method="no item has two rollouts under two conditionings")
    candidate = candidate[rows]
    gains = []
    for choose, measure in (halves, halves[::-1]):
        scores = np.where(candidate, choose[rows], -np.inf)
        top = (scores == scores.max(axis=1, keepdims=True)).astype(np.float64)  # ties share: none is preferred
        gains.append((top * measure[rows]).sum(axis=1) / top.sum(axis=1) - measure[rows, base])
    gain = (gains[0] + gains[1]) / 2
    if np.ptp(gain) == 0:
        return constant_interval(float(gain[0]), len(gain), level, (-1.0, 1.0))
    # Student's, not a bootstrap's: gains of rare successes are skewed, and BCa then finds gains in noise (8 % for 24
    # items at a rate of .05, in place of 2.5 %).
    half = expanded_z(level, len(gain)) * float(gain.std())
    return Interval(
        float(gain.mean()),
        max(-1.0, float(gain.mean()) - half / math.sqrt(len(gain))),
        min(1.0, float(gain.mean()) + half / math.sqrt(len(gain))),
        len(gain),
        level,
        "t",
    )


# --------------------------------------------------------------------------------------------------- the slow clock


def _all_of(k: Array, n: Array, G: Array | int) -> Array:
    """C(k, G) / C(n, G): the chance that G of n without replacement are all among the k. G is at most n."""
    from scipy.special import gammaln

    g = np.minimum(G, n)
    possible = k >= g
    safe = np.maximum(k, g)
    log = gammaln(safe + 1) - gammaln(safe - g + 1) - gammaln(n + 1) + gammaln(n - g + 1)
    return np.asarray(np.where(possible, np.exp(log), 0.0), dtype=np.float64)


def _equal_groups(table: RewardTable, column: int, G: int) -> tuple[Array, Array]:
    """For each item stuck = Σ_v (1 - v) P(all G are v) and solved = P(all G are 1), under one conditioning."""
    here = table.conditioning_of == column
    values, kind = np.unique(table.rewards[here], return_inverse=True)
    pairs, k = np.unique(table.item_of[here] * len(values) + kind, return_counts=True)
    row, value = pairs // len(values), values[pairs % len(values)]
    chance = _all_of(k.astype(np.float64), table.counts[row, column], G)
    items = table.shape[0]
    stuck = np.bincount(row, weights=(1 - value) * chance, minlength=items)
    solved = np.bincount(row, weights=np.where(value == 1, chance, 0.0), minlength=items)
    return np.asarray(stuck, dtype=np.float64), np.asarray(solved, dtype=np.float64)


def _dead(table: RewardTable, G: int) -> Array:
    """For each item the chance that G rollouts of each of its cells earn nothing."""
    zeros = np.bincount(table.cell_of[table.rewards == 0], minlength=table.counts.size).reshape(table.shape)
    chance = _all_of(zeros.astype(np.float64), table.counts, G)
    product: Array = np.where(table.counts > 0, chance, 1.0).prod(axis=1)
    return product
