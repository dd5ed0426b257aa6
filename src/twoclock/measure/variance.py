"""Where the variance of a reward comes from: the conditioning, the item, or the draw of the answer.

Take an item i at random, one of the C conditionings c of a table at random, and one rollout, of reward y with mean
``p_ic``. The law of total variance splits Var(y) exactly (all divisors are C, because these are the conditionings at
hand and no sample of others)::

    Var(y) = items + between + within

    items   = Var_i(mean_c p_ic)             how hard an item is, whatever is done
    between = E_i Var_c(p_ic)                what the fast state explains
    within  = E_ic Var(y | i, c)             what it leaves

    between = average + by_item

    average = Var_c(E_i p_ic)                one conditioning is better on average
    by_item = E_i Var_c(p_ic - E_i p_ic)     which one is better depends on the item

What identifies what. ``average`` needs two items that share two conditionings, one rollout a cell will do: the noise of
different items is independent. All else needs cells with two rollouts or more, because from one rollout a cell the
interaction and the noise cannot be told apart; without such cells those parts are unknown, not 0. With rewards of 0 and
1 ``within`` is E p(1 - p): it is sampling noise and at the same time all that a policy gradient can use, and *no split
of a table tells the two apart*. A coin that no training moves has the same table as a skill half learned. What is
learnable by which clock is said by :mod:`~twoclock.measure.headroom` in terms of rates, and in the end by the measured
response to a step.

The components are unbiased U-statistics: products of means are taken over different items, squares of cell means minus
their noise, pair of conditionings by pair of conditionings over the items that share both (so it does no harm if hard
items lack one); where cells are missing a pair weighs by the items it shares. An unbiased estimate of a small variance
falls below 0 about as often as above; the interval, which is about a variance, does not. Intervals are expanded
bootstrap percentiles over items, the unit that is exchangeable; in a resample an item that was drawn twice is still
one item, so that products stay unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, check_level, constant_interval, expanded_tails, unknown
from twoclock.measure.reward_table import RewardTable
from twoclock.seeding import child_seed

__all__ = ["RewardComponents", "by_task", "decompose_rewards"]

Array = npt.NDArray[np.float64]

RESAMPLES = 1_000
MOST_VARIANCE = 0.25
"""No variance of a number in [0, 1] is larger."""


@dataclass(frozen=True, kw_only=True)
class RewardComponents:
    """The parts of one table's variance; see the module's text. ``n`` of an interval counts items. A part that the
    table does not identify is NaN, with the reason as its ``method``."""

    between: Interval
    average: Interval
    by_item: Interval
    within: Interval
    items: Interval
    total: float
    """between + within + items; NaN where one is unknown."""
    explained: Interval
    """between / (between + within): of what varies on one and the same item, the share that the fast state explains."""
    between_share: Interval
    """between / total."""
    average_share: Interval
    within_share: Interval
    items_share: Interval
    conditionings: int
    rollouts: int
    pairs: int
    """Pairs of conditionings that were compared: those that share items enough."""


def decompose_rewards(
    table: RewardTable, level: float = 0.95, seed: int = 0, *, resamples: int = RESAMPLES
) -> RewardComponents:
    """The parts with intervals. Some 70 ms for 1,000 items under 4 conditionings; time grows with the square of the
    number of conditionings. A table without rollouts is a ValueError."""
    check_level(level)
    if not len(table.rewards):
        raise ValueError("a table without rollouts has no variance to split; give rollouts of at least one item")
    items, C = table.shape
    W = _weights(items, resamples, seed)
    W2 = W * W
    average, between, covariance, found = _Pairs.of(table).parts(W, W2)
    within, diagonal = _cells(table, W, W2)
    average, between = (C - 1) / (2 * C) * average, (C - 1) / (2 * C) * between
    spread = diagonal if C == 1 else diagonal / C + (1 - 1 / C) * covariance
    total = within + spread if C == 1 else between + within + spread
    repeated = int(np.count_nonzero((table.counts >= 2).any(axis=1)))
    why_cells = "one rollout a cell" if not repeated else "no item has two rollouts under two conditionings"
    why_pairs = "one conditioning" if C == 1 else "no two items share two conditionings"
    why = why_cells if found.pairs else why_pairs
    several = repeated if C == 1 else found.twice

    def part(draws_B: Array, n: int, reason: str) -> Interval:
        return _interval(draws_B, n, level, reason, MOST_VARIANCE)

    def share(draws_B: Array, whole_B: Array) -> Interval:
        safe = np.where(whole_B > 0, whole_B, np.nan)
        reason = "nothing varies" if np.isfinite(whole_B[0]) and not whole_B[0] > 0 else why
        return _interval(draws_B / safe, several, level, reason, 1.0)

    return RewardComponents(
        between=part(between, several, why),
        average=part(average, found.shared, why_pairs),
        by_item=part(between - average, several, why),
        within=part(within, repeated, why_cells),
        items=part(spread, several, why if C > 1 else why_cells),
        total=float(total[0]),
        explained=share(between, between + within),
        between_share=share(between, total),
        average_share=share(average, total),
        within_share=share(within, total),
        items_share=share(spread, total),
        conditionings=C,
        rollouts=len(table.rewards),
        pairs=found.pairs,
    )


def _weights(items: int, resamples: int, seed: int) -> Array:
    """How often each item was drawn, shape (1 + resamples, items); the first row is the table itself, all ones."""
    generator = np.random.default_rng(child_seed("measure.variance", seed))
    drawn = generator.integers(0, items, size=(resamples, items)) + np.arange(resamples)[:, None] * items
    counts = np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items)
    return np.concatenate([np.ones((1, items)), counts.astype(np.float64)])


def by_task(
    table: RewardTable, level: float = 0.95, seed: int = 0, *, resamples: int = RESAMPLES
) -> dict[str, RewardComponents]:
    """The parts of each task, from its own items."""
    tasks = dict.fromkeys(task for task, _ in table.items)
    return {t: decompose_rewards(table.only(task=t), level, seed, resamples=resamples) for t in tasks}


class _Found(NamedTuple):
    """The pairs that were compared, the items that share one of them, and those with two rollouts under both."""

    pairs: int
    shared: int
    twice: int


@dataclass(frozen=True)
class _Pairs:
    """Per-item terms of every pair of conditionings that share two items; arrays of shape (I, P)."""

    shared: Array
    """1 where the item has both."""
    twice: Array
    """1 where it has two rollouts or more under both."""
    left: Array
    right: Array
    """The cell means, 0 where not shared."""
    squared: Array
    """The unbiased square of the difference of the two rates, 0 where not ``twice``."""

    @classmethod
    def of(cls, table: RewardTable) -> _Pairs:
        n, x = table.counts, table.means
        first, second = np.triu_indices(table.shape[1], k=1)
        error = np.where(n > 1, np.nan_to_num(table.noise) / np.maximum(n, 1), 0.0)
        shared = (n[:, first] > 0) & (n[:, second] > 0)
        keep = shared.sum(axis=0) > 1  # one item alone has no other to take products with
        first, second, shared = first[keep], second[keep], shared[:, keep]
        twice = ((n[:, first] > 1) & (n[:, second] > 1)).astype(np.float64)
        mask = shared.astype(np.float64)
        difference = x[:, first] - x[:, second]
        squared = (difference**2 - error[:, first] - error[:, second]) * twice
        return cls(mask, twice, x[:, first] * mask, x[:, second] * mask, squared)

    def parts(self, W: Array, W2: Array) -> tuple[Array, Array, Array, _Found]:
        """For each row of weights (W2 is W squared), averaged over pairs, by the items they share: the squared mean
        difference, the mean squared difference and the covariance over items; and what there was to average. NaN where
        a row does not identify one."""
        count, distinct = W @ self.shared, W2 @ self.shared
        apart = count**2 - distinct  # what products over different items add to
        doubled = W @ self.twice
        single = apart[0] > 0
        used = single & (doubled[0] > 0)
        chosen = used if used.any() else single
        difference = self.left - self.right
        product = self.left * self.right
        with np.errstate(divide="ignore", invalid="ignore"):
            average = ((W @ difference) ** 2 - W2 @ difference**2) / apart
            between = (W @ self.squared) / doubled
            apart_product = ((W @ self.left) * (W @ self.right) - W2 @ product) / apart
            covariance = (W @ product) / count - apart_product
        if not used.any():
            between = np.full_like(between, np.nan)
        return (
            _mean_of_known(average, count * chosen),
            _mean_of_known(between, doubled * chosen),
            _mean_of_known(covariance, count * chosen),
            _Found(
                pairs=int(np.count_nonzero(chosen)),
                shared=int(np.count_nonzero(self.shared[:, chosen].any(axis=1))),
                twice=int(np.count_nonzero(self.twice[:, chosen].any(axis=1))),
            ),
        )


def _cells(table: RewardTable, W: Array, W2: Array) -> tuple[Array, Array]:
    """For each row of weights, averaged over conditionings (by their cells): the noise of one rollout, and the
    variance of the rate over items; from the cells with two rollouts or more."""
    twice = (table.counts > 1).astype(np.float64)
    noise = np.nan_to_num(table.noise)
    x = table.means * twice
    square = x**2 - noise / np.maximum(table.counts, 1) * twice
    count = W @ twice
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (W @ noise) / count
        variance = (W @ square) / count - ((W @ x) ** 2 - W2 @ x**2) / (count**2 - W2 @ twice)
    return _mean_of_known(within, count), _mean_of_known(variance, count)


def _mean_of_known(values_BK: Array, weights_BK: Array) -> Array:
    """The weighted mean over the last axis of what is a number; NaN where nothing is."""
    weights = np.where(np.isfinite(values_BK), weights_BK, 0.0)
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore"):
        mean: Array = (np.nan_to_num(values_BK) * weights).sum(axis=1) / total
    return mean


def _interval(draws_B: Array, n: int, level: float, why: str, most: float) -> Interval:
    """Expanded percentiles of the resamples in ``draws_B[1:]`` around the estimate ``draws_B[0]``, inside [0, most]."""
    estimate, resampled = float(draws_B[0]), draws_B[1:]
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(estimate):
        return unknown(n, level, method=why)
    if n < 2 or len(resampled) < len(draws_B) / 2:
        return unknown(n, level, estimate, "too few items")
    if np.ptp(resampled) < 1e-12:  # no resample differs, and n items alike are no proof of all
        same = constant_interval(min(max(estimate, 0.0), most), n, level, (0.0, most))
        return Interval(estimate, same.low, same.high, n, level, same.method)
    low, high = (float(end) for end in np.quantile(resampled, expanded_tails(level, n)))
    # An estimate below 0 stands for a small variance, not for a sure 0: the distance to its upper end is kept.
    low, high = min(max(low, 0.0), most), min(max(high - min(estimate, 0.0), 0.0), most)
    return Interval(estimate, low, high, n, level, "bootstrap of items")
