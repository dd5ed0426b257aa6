"""Choosing K of N by value: the softmax that a retrieval policy is, draws without replacement, and their probabilities.

    μ(c|s) = exp(Q(s,c)/α) / Σ_c' exp(Q(s,c')/α)          V(s) = α log Σ_c exp(Q(s,c)/α)

(Memento, arXiv:2508.16153, maximum-entropy retrieval.) K cases are drawn without replacement by Gumbel top-K (Kool et
al., 2019), whose order has the Plackett-Luce law; the probability that a case is among them is exact up to rounding.
Pure functions of arrays; nothing here knows what a case is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twoclock.errors import ConfigError, NumericsError

__all__ = [
    "entropy",
    "gumbel_top_k",
    "inclusion_probabilities",
    "log_weights",
    "order_log_probability",
    "soft_value",
    "softmax",
]

# N candidates, G points of the integration grid, K drawn.
Array = npt.NDArray[np.float64]

WIDEST = 1e4
"""Log-weights further below the largest are raised to this distance, so that a temperature near 0 stays finite."""
_STEP = 0.25


def log_weights(values: npt.ArrayLike, temperature: float) -> Array:
    """Q/α [N], shifted so that the largest is 0 and none is below −10000.

    Raises ConfigError for a temperature that is not above 0, NumericsError for values that are NaN or infinite.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ConfigError(f"the temperature of retrieval is {temperature!r}; expected a finite number above 0")
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise NumericsError(f"a value of {array.tolist()} is NaN or infinite; retrieval cannot rank it")
    shifted = array - array.max(initial=-math.inf)
    # Clipped before dividing: a tiny temperature would overflow.
    return np.asarray(np.maximum(np.maximum(shifted, -WIDEST * temperature) / temperature, -WIDEST))


def softmax(values: npt.ArrayLike, temperature: float) -> Array:
    """exp(Q/α) / Σ exp(Q/α) [N]; empty for no values."""
    weights = np.exp(log_weights(values, temperature))
    return np.asarray(weights / weights.sum()) if len(weights) else weights


def entropy(probabilities: npt.ArrayLike) -> float:
    """−Σ p log p in nats; 0 log 0 is 0."""
    p = np.asarray(probabilities, dtype=np.float64)
    p = p[p > 0.0]
    return float(-(p * np.log(p)).sum())


def soft_value(values: npt.ArrayLike, temperature: float) -> float:
    """α log Σ exp(Q/α): what a state is worth under the softmax policy, its entropy's bonus included. Of no values: 0,
    as where nothing can be retrieved nothing follows."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return 0.0
    shifted = log_weights(array, temperature)
    return float(array.max() + temperature * np.log(np.exp(shifted).sum()))


def gumbel_top_k(log_weight: npt.ArrayLike, k: int, rng: random.Random) -> tuple[int, ...]:
    """``k`` of the indices 0..N−1, drawn one after the other without replacement, each time in proportion to the
    weights of those that are left; in the order drawn. One uniform a candidate, whatever ``k``: the first of k + 1
    draws are the k draws."""
    log_weight = np.asarray(log_weight, dtype=np.float64)
    uniforms = [rng.random() for _ in log_weight]
    # random() is in [0, 1); 1 − u lies in (0, 1], and −log(1 − u) is an exponential, 0 at worst.
    keys = [w - math.log(max(-math.log1p(-u), 5e-324)) for w, u in zip(log_weight, uniforms, strict=True)]
    return tuple(sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k])


def order_log_probability(log_weight: npt.ArrayLike, order: Sequence[int]) -> float:
    """log Π_j w_{o_j} / (Σ w − Σ_{l<j} w_{o_l}): how likely :func:`gumbel_top_k` is to draw exactly this order."""
    log_weight = np.asarray(log_weight, dtype=np.float64)
    left = np.ones(len(log_weight), bool)
    total = 0.0
    for index in order:
        if not left[index]:
            raise ConfigError(f"the order {list(order)} names candidate {index} twice; each can be drawn once")
        rest = log_weight[left]
        total += float(log_weight[index] - rest.max() - np.log(np.exp(rest - rest.max()).sum()))
        left[index] = False
    return total


def inclusion_probabilities(log_weight: npt.ArrayLike, k: int) -> Array:
    """P(i is among the ``k`` drawn) [N], for each candidate; the sum is min(k, N).

    Draws without replacement are the k earliest of independent exponential clocks with rates w, so

        P_i = ∫ w_i e^{−w_i t} · P(at most k − 1 other clocks rang before t) dt,

    where the number of those that rang is a sum of independent indicators. With t = e^s the integrand is analytic and
    falls off at both ends, so the trapezoid rule errs by less than 1e-12. O(N·K·G), G some hundred.
    """
    log_weight = np.asarray(log_weight, dtype=np.float64)
    n = len(log_weight)
    if k >= n:
        return np.ones(n)
    if k <= 0:
        return np.zeros(n)
    s = np.arange(-40.0 - log_weight.max(), 5.0 - log_weight.min(), _STEP)
    # A clock with rate w rings around s = −log w; the grid is kept where some clock may ring.
    s = s[((log_weight[:, None] + s > -40.0) & (log_weight[:, None] + s < 5.0)).any(axis=0)]
    with np.errstate(under="ignore"):
        rate = np.exp(np.minimum(log_weight[:, None] + s, 700.0))  # [N, G]
        rang = -np.expm1(-rate)
        density = rate * np.exp(-rate)
        others = _at_most(rang, k - 1)
        return np.asarray(np.clip((density * others).sum(axis=1) * _STEP, 0.0, 1.0))


def _at_most(rang: Array, most: int) -> Array:
    """[N, G]: for each i, the probability that at most ``most`` of the others rang, by meeting in the middle: the
    counts of those before i and of those after it. Dividing i out of the whole product would lose digits."""
    n, grid = rang.shape
    before = np.zeros((n, most + 1, grid))
    after = np.zeros((n, most + 1, grid))
    before[0, 0] = after[n - 1, 0] = 1.0
    for i in range(1, n):
        before[i] = _with_one_more(before[i - 1], rang[i - 1])
        after[n - 1 - i] = _with_one_more(after[n - i], rang[n - i])
    up_to = after.cumsum(axis=1)
    return np.asarray((before * up_to[:, ::-1]).sum(axis=1))


def _with_one_more(counts: Array, rang: Array) -> Array:
    """Counts [M, G] of a sum of indicators, one more indicator added; what exceeds M − 1 is dropped."""
    more = counts * (1.0 - rang)
    more[1:] += counts[:-1] * rang
    return more
