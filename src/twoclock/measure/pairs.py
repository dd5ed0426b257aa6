"""Two systems on the same items: paired differences with intervals and tests, also where items come in clusters.

Positive always means that the first is better. Items are resampled as pairs; items that share a template, a base item
or a document are resampled together, because a test that takes them for independent finds differences in nothing (24 %
false alarms at 5 % for 50 clusters of 10 with an intra-class correlation of .2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import (
    CHUNK_DRAWS,
    RESAMPLES,
    Interval,
    as_array,
    bootstrap_mean,
    check_level,
    constant_interval,
    expanded_tails,
    resampled_means,
    unknown,
)
from twoclock.seeding import child_seed

__all__ = [
    "Alternative",
    "cluster_difference",
    "cluster_mean",
    "cluster_ratio",
    "difference_of",
    "differences_of",
    "paired_bootstrap_p",
    "paired_difference",
    "paired_permutation_p",
]

Array = npt.NDArray[np.float64]
Alternative = Literal["greater", "less", "two-sided"]

EXACT_FLIPS = 16
"""Up to this many non-zero differences every pattern of signs is enumerated: 65,536."""


def differences_of(a: Sequence[float] | Array, b: Sequence[float] | Array) -> tuple[Array, tuple[float, float] | None]:
    """a - b item by item, and the bounds a difference of two scores in [0, 1] has."""
    left, right = as_array(a, "a"), as_array(b, "b")
    if len(left) != len(right):
        raise ValueError(f"a and b are scores of the same items in the same order; got {len(left)} and {len(right)}")
    both = np.concatenate([left, right])
    return left - right, (-1.0, 1.0) if bool(((both >= 0) & (both <= 1)).all()) else None


def paired_difference(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """mean(a) - mean(b) over the same items, positive when ``a`` is better; the items are resampled, not the scores."""
    check_level(level)
    differences, bounds = differences_of(a, b)
    # Never Wilson: a difference of 0 or 1 is no failure or success, it might have been -1.
    return bootstrap_mean(differences, level, seed, resamples, bounds)


def difference_of(a: Interval, b: Interval) -> Interval:
    """a - b of two independent estimates from their intervals, by square-and-add (Newcombe 1998; Zou and Donner 2008):
    the distances to each limit add up as standard errors do. ``n`` is the smaller of the two."""
    estimate = a.estimate - b.estimate
    low = estimate - math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = estimate + math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(estimate, low, high, min(a.n, b.n), a.level, "square-and-add of two samples")


def paired_permutation_p(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    seed: int = 0,
    alternative: Alternative = "greater",
    *,
    resamples: int = RESAMPLES,
) -> float:
    """The sign-flip test of ``mean(a - b)`` against 0; ``greater`` asks whether a is better than b.

    Exact where the differences have one size (then it is the sign test, McNemar's for single binary samples) or are at
    most 16 that are not zero; otherwise by ``resamples`` random flips, counting the observed one, so p is never 0.
    No difference at all gives 1.
    """
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(f"alternative is 'greater', 'less' or 'two-sided'; got {alternative!r}")
    differences, _ = differences_of(a, b)
    if alternative == "less":
        differences = -differences
    sizes = np.abs(differences[differences != 0])
    if len(sizes) == 0:
        return 1.0
    observed = float(differences.sum())
    if bool((sizes == sizes[0]).all()):
        return _sign_test_p(int(np.count_nonzero(differences > 0)), len(sizes), alternative == "two-sided")
    if len(sizes) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sizes))))
        return float(np.mean(_as_extreme(signs @ sizes, observed, sizes, alternative == "two-sided")))
    generator = np.random.default_rng(child_seed("measure.permutation", seed))
    chunk, hits = max(1, CHUNK_DRAWS // len(sizes)), 0
    for start in range(0, resamples, chunk):
        flips = generator.integers(0, 2, size=(min(chunk, resamples - start), len(sizes))) * 2.0 - 1.0
        hits += int(np.count_nonzero(_as_extreme(flips @ sizes, observed, sizes, alternative == "two-sided")))
    return (hits + 1) / (resamples + 1)


def _as_extreme(sums: Array, observed: float, sizes: Array, two_sided: bool) -> npt.NDArray[np.bool_]:
    slack = 1e-12 * float(sizes.sum())  # sums of the same numbers in another order differ in their last bits
    found: npt.NDArray[np.bool_] = (np.abs(sums) >= abs(observed) - slack) if two_sided else (sums >= observed - slack)
    return found


def _sign_test_p(wins: int, n: int, two_sided: bool) -> float:
    """P(at least that many wins of n fair coins), exactly; doubled tails for two sides."""
    if two_sided:
        wins = max(wins, n - wins)
    tail = sum(math.comb(n, k) for k in range(wins, n + 1))
    return min(1.0, float((2 * tail if two_sided else tail) / 2**n))


# ----------------------------------------------------------------------------------------------------------- clusters


def cluster_mean(
    values: Sequence[float] | Array,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean of all values with whole clusters resampled; ``clusters`` names the cluster of each value.

    ``n`` counts the clusters. The percentiles are widened to what Student's t takes at that many clusters (Hesterberg
    2015, "expanded percentile"): plain percentiles are too narrow below some 50. One cluster has no bounds.
    """
    check_level(level)
    array = as_array(values)
    count = len(set(clusters))
    if count > 1 and len(array) and bool((array == array[0]).all()):
        return constant_interval(float(array[0]), count, level, bounds)
    return cluster_ratio(array, np.ones(len(array)), clusters, level, seed, resamples=resamples)


def cluster_ratio(
    values: Sequence[float] | Array,
    weights: Sequence[float] | Array,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """Σ values / Σ weights with whole clusters resampled, such as nats over tokens; else as :func:`cluster_mean`."""
    check_level(level)
    above, below = as_array(values), as_array(weights, "weights")
    if len(below) != len(above):
        raise ValueError(f"each value needs a weight; got {len(above)} values and {len(below)} weights")
    if bool((below <= 0).any()):
        raise ValueError(f"a weight is above 0; element {int(np.flatnonzero(below <= 0)[0])} is {below.min():g}")
    sums, sizes = _cluster_sums(above, clusters), _cluster_sums(below, clusters)
    count = len(sums)
    if count == 0:
        return unknown(0, level)
    estimate = math.fsum(above) / math.fsum(below)
    if count < 2:
        return unknown(1, level, estimate, "one cluster")
    ratios = _resampled_ratio(sums, sizes, seed, resamples)
    low, high = (float(end) for end in np.quantile(ratios, expanded_tails(level, count)))
    method = f"cluster bootstrap ({len(above)} items)" if count < len(above) else "bootstrap"
    return Interval(estimate, min(low, estimate), max(high, estimate), count, level, method)


def cluster_difference(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """mean(a) - mean(b) over the same items, positive when ``a`` is better; whole clusters are resampled."""
    differences, bounds = differences_of(a, b)
    return cluster_mean(differences, clusters, level, seed, resamples=resamples, bounds=bounds)


def _cluster_sums(array: Array, clusters: Sequence[Hashable]) -> Array:
    """The sum of each cluster, in order of first appearance."""
    if len(clusters) != len(array):
        raise ValueError(f"each value needs the name of its cluster; got {len(array)} values and {len(clusters)} names")
    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros(len(index))
    np.add.at(sums, [index[name] for name in clusters], array)
    return sums


def _resampled_ratio(sums: Array, sizes: Array, seed: int, resamples: int) -> Array:
    """Σ sums / Σ sizes of ``resamples`` bootstrap samples of the clusters; shape (resamples,)."""
    count = len(sums)
    generator = np.random.default_rng(child_seed("measure.clusters", seed))
    chunk, means = max(1, CHUNK_DRAWS // count), []
    for start in range(0, resamples, chunk):
        drawn = generator.integers(0, count, size=(min(chunk, resamples - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def paired_bootstrap_p(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    seed: int = 0,
    alternative: Alternative = "greater",
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> float:
    """P that the mean difference is as far from 0 as observed, were it 0: the bootstrap distribution of the mean, moved
    onto 0. Counts the observed one, so it is never 0. No difference at all gives 1.

    For single items :func:`paired_permutation_p` is the better test; this one takes clusters.
    """
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(f"alternative is 'greater', 'less' or 'two-sided'; got {alternative!r}")
    differences, _ = differences_of(a, b)
    if not differences.any():
        return 1.0
    if clusters is None:
        units, means = len(differences), resampled_means(differences, seed, resamples)
    else:
        sums, sizes = (_cluster_sums(array, clusters) for array in (differences, np.ones(len(differences))))
        units, means = len(sums), _resampled_ratio(sums, sizes, seed, resamples)
    if units < 2:
        return 1.0
    observed = float(differences.mean())
    # A bootstrap's spread is that of n units without the correction to n - 1.
    moved = (means - observed) * math.sqrt(units / (units - 1))
    if alternative == "two-sided":
        hits = int(np.count_nonzero(np.abs(moved) >= abs(observed)))
    else:
        hits = int(np.count_nonzero(moved >= observed if alternative == "greater" else moved <= observed))
    return (hits + 1) / (resamples + 1)
