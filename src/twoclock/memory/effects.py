"""What showing an entry is worth: the difference it made, how sure that is, and what to call it.

Each read leaves some of the found entries out at random, so the mean reward of the reads that showed an entry minus
that of the reads that held it out estimates what showing it does (:class:`~twoclock.memory.records.Effect` has the
sums). Here stand the interval of that difference, its estimate shrunk towards the other entries', and the verdict.
Pure functions of records; SciPy is imported when an interval is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from twoclock.memory.records import Effect, Entry

__all__ = [
    "Difference",
    "Estimate",
    "Looks",
    "Prior",
    "Verdict",
    "difference",
    "estimate",
    "fit_prior",
    "pool_priors",
    "verdict",
]

Verdict = Literal["helps", "harms", "useless", "unknown"]
Looks = Literal["one", "any"]
"""Whether an interval holds at one look that was planned, or at every look, however often one looks."""

WORTH = 0.05
"""The gain in reward below which showing an entry is not worth its place in the prompt."""
PLANNED_READS = 100
"""The number of reads at which an interval that holds at any look is at its narrowest."""
SPREAD = 0.25
"""How far apart entries' effects lie where nothing was measured yet: a standard deviation, in reward."""
VARIANCE = 0.25
"""The variance of an outcome where nothing was measured yet: a fair coin's, the most that rewards in [0, 1] have."""
PRIOR_ENTRIES = 4
"""How many well-measured entries it takes to outweigh ``SPREAD`` and a mean of 0."""
PRIOR_OUTCOMES = 8
"""How many outcomes of its own it takes to outweigh the pool's variance of outcomes."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean outcome shown minus held out, with its interval; no bounds (infinite ones) until both arms have two."""

    estimate: float | None
    low: float
    high: float
    shown: int
    held: int
    level: float


@dataclass(frozen=True, kw_only=True)
class Prior:
    """How the effects of a pool of entries lie: normal, with this mean and standard deviation.

    ``error`` is the standard error of the mean, ``variance`` that of one outcome around its arm's mean, ``entries``
    how many entries were measured on both arms.
    """

    mean: float = 0.0
    spread: float = SPREAD
    error: float = SPREAD / math.sqrt(PRIOR_ENTRIES)
    variance: float = VARIANCE
    entries: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An entry's effect given its outcomes and the pool: mean and standard deviation, in reward."""

    value: float
    spread: float

    @property
    def helps(self) -> float:
        """The probability that showing the entry raises the reward."""
        return NormalDist().cdf(self.value / self.spread)

    @property
    def promise(self) -> float:
        """What it may be worth to somebody who shows it only if it helps: the mean of max(0, effect). An entry that is
        not yet measured is worth a try by it, one that was measured to do nothing is not."""
        ratio = self.value / self.spread
        return self.value * self.helps + self.spread * math.exp(-ratio * ratio / 2) / math.sqrt(2 * math.pi)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central credible interval."""
        half = NormalDist().inv_cdf(0.5 + _checked(level) / 2) * self.spread
        return self.value - half, self.value + half


# ---------------------------------------------------------------------------------------------------- one entry alone


def difference(effect: Effect, *, level: float = 0.95, looks: Looks = "one") -> Difference:
    """The difference of the two arms with its interval, from this entry's outcomes alone.

    With ``v`` an arm's sample variance over its count, the interval is ``d ± q √(v_shown + v_held)``. At one look
    ``q`` is Student's quantile at Welch's degrees of freedom (Welch 1947). For any number of looks it is that of the
    asymptotic confidence sequence of Waudby-Smith et al. (arXiv:2103.06476, Theorem 2.2), which covers the truth at
    all times together, at some 1.5 times the width. An arm whose outcomes are all equal does not tell its own variance:
    it gets that of an arm with one outcome more at each end of [0, 1] (Laplace), without which three successes against
    three failures would have an interval of no width. Raises ValueError for a level outside (0, 1).
    """
    alpha = 1 - _checked(level)
    found = effect.difference
    arms = (
        _variance(effect.shown, effect.shown_sum, effect.shown_squares),
        _variance(effect.held, effect.held_sum, effect.held_squares),
    )
    low, high = -math.inf, math.inf
    if found is not None and effect.shown > 1 and effect.held > 1:
        parts = (arms[0] / effect.shown, arms[1] / effect.held)
        if looks not in ("one", "any"):
            raise ValueError(f"looks must be 'one' or 'any'; got {looks!r}")
        tail = alpha / 2 if looks == "one" else _anytime_tail(effect.shown + effect.held, alpha)
        half = _student(parts, (effect.shown, effect.held), tail) * math.sqrt(sum(parts))
        low, high = found - half, found + half
    return Difference(estimate=found, low=low, high=high, shown=effect.shown, held=effect.held, level=level)


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, such as 0.95; got {level}")
    return level


def _scatter(count: int, total: float, squares: float) -> float:
    """The sum of squared distances from the arm's mean. Sums of equal values leave rounding behind: that is 0."""
    scatter = squares - total * total / count if count else 0.0
    return scatter if scatter > 1e-12 * max(squares, 1e-300) else 0.0


def _variance(count: int, total: float, squares: float) -> float:
    if count < 2:
        return 0.0
    return _scatter(count, total, squares) / (count - 1) or (count + 1) / (count + 2) ** 2


def _student(parts: tuple[float, float], counts: tuple[int, int], tail: float) -> float:
    """Student's quantile that leaves ``tail`` above it, at Welch's degrees of freedom."""
    from scipy.special import stdtrit

    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return -float(stdtrit(freedom, tail))


def _anytime_tail(reads: int, alpha: float) -> float:
    """What a normal leaves above the boundary at ``reads`` outcomes; the boundary is lowest near ``PLANNED_READS``.

    The theorem is about many outcomes; Student's quantile of the same tail stands in for the normal's at few.
    """
    log = -2 * math.log(alpha)
    scaled = reads / PLANNED_READS * max(1.0, log + math.log(max(log, 1.0)) + 1)
    multiple = math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))
    return NormalDist().cdf(-multiple)


# ------------------------------------------------------------------------------------------------ one entry in a pool


def fit_prior(effects: Iterable[Effect]) -> Prior:
    """How the effects of a pool lie, by empirical Bayes: each measured difference is ``d ~ N(effect, s²)`` and each
    effect ``~ N(mean, spread²)``; the spread is Paule and Mandel's (1982), for which the weighted squares of the
    differences around their mean add to their degrees of freedom.

    A pool with little in it says little about its spread, so that is drawn to :data:`SPREAD`, and the mean to 0, with
    the weight of :data:`PRIOR_ENTRIES` entries; an entry counts by how well it was measured. An empty pool gives
    ``Prior()``.
    """
    pool = list(effects)
    arms = [(e.shown, e.shown_sum, e.shown_squares) for e in pool] + [
        (e.held, e.held_sum, e.held_squares) for e in pool
    ]
    freedom = sum(count - 1 for count, _, _ in arms if count > 1)
    scatter = math.fsum(_scatter(*arm) for arm in arms if arm[0] > 1)
    variance = (scatter + PRIOR_OUTCOMES * VARIANCE) / (freedom + PRIOR_OUTCOMES)
    measured = [(d, _error2(e, variance)) for e in pool if (d := e.difference) is not None]
    informed = math.fsum((SPREAD**2 / (SPREAD**2 + error2)) ** 2 for _, error2 in measured)
    spread2 = (informed * _paule_mandel(measured) + PRIOR_ENTRIES * SPREAD**2) / (informed + PRIOR_ENTRIES)
    weights = [1 / (error2 + spread2) for _, error2 in measured]
    precision = math.fsum(weights) + PRIOR_ENTRIES / SPREAD**2
    mean = math.fsum(w * d for w, (d, _) in zip(weights, measured, strict=True)) / precision
    return Prior(mean=mean, spread=math.sqrt(spread2), error=precision**-0.5, variance=variance, entries=len(measured))


def pool_priors(entries: Iterable[Entry], effects: Mapping[str, Effect]) -> dict[str, Prior]:
    """The prior of each entry, by id: of those that several episodes led to, and of those that one did, each from its
    own kind. What was written once is mostly chance, and where measurements say so, one more of it promises little."""
    pool = list(entries)
    again = {entry.id: len(set(entry.provenance)) > 1 for entry in pool}
    fitted = {
        kind: fit_prior(effects.get(name, Effect()) for name, own in again.items() if own is kind)
        for kind in set(again.values())
    }
    return {name: fitted[kind] for name, kind in again.items()}


def estimate(effect: Effect, prior: Prior | None = None) -> Estimate:
    """The entry's effect, shrunk towards the pool: ``value = mean + w (d - mean)`` with ``w = spread² / (spread² +
    s²)``, so that an entry with few reads stands near the pool's mean and one with many near its own difference. One
    that was not measured on both arms has the pool's mean and spread."""
    prior = prior or Prior()
    found = effect.difference
    if found is None:
        return Estimate(value=prior.mean, spread=math.hypot(prior.spread, prior.error))
    error2 = _error2(effect, prior.variance)
    weight = prior.spread**2 / (prior.spread**2 + error2)
    spread = math.sqrt(weight * error2 + ((1 - weight) * prior.error) ** 2)
    return Estimate(value=prior.mean + weight * (found - prior.mean), spread=spread)


def _error2(effect: Effect, variance: float) -> float:
    """The squared standard error of the difference, each arm's variance drawn to the pool's: a few equal outcomes are
    no proof that there is none."""

    def part(count: int, total: float, squares: float) -> float:
        own = _scatter(count, total, squares)
        return (own + PRIOR_OUTCOMES * variance) / (count - 1 + PRIOR_OUTCOMES) / count

    return part(effect.shown, effect.shown_sum, effect.shown_squares) + part(
        effect.held, effect.held_sum, effect.held_squares
    )


def _paule_mandel(measured: list[tuple[float, float]]) -> float:
    """The variance between entries for which ``Σ w (d - d̄)² = k - 1`` with ``w = 1 / (s² + variance)``; 0 where the
    differences scatter no more than their errors do."""
    import numpy as np

    if len(measured) < 2:
        return 0.0
    differences, errors2 = np.array(measured).T

    def excess(between: float) -> float:
        weights = 1 / (errors2 + between)
        mean = np.average(differences, weights=weights)
        return float(np.sum(weights * (differences - mean) ** 2)) - len(measured) + 1

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 4 * high
    for _ in range(40):  # halves to 1e-12: excess falls as the variance grows
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


# -------------------------------------------------------------------------------------------------------- the verdict


def verdict(
    effect: Effect,
    *,
    prior: Prior | None = None,
    level: float = 0.95,
    worth: float = WORTH,
    looks: Looks = "one",
) -> Verdict:
    """What to call an entry: ``helps`` where the whole interval lies above 0, ``harms`` where it lies below,
    ``useless`` where it lies below ``worth``, else ``unknown``.

    Without ``prior`` the interval is that of :func:`difference`, and with α = 1 - level: of the entries that do not
    help at most α/2 are called ``helps``, of those that do not harm at most α/2 ``harms``, of those that are worth
    ``worth`` or more at most α/2 ``useless`` or ``harms``; at one look, or with ``looks="any"`` over all looks
    together. With ``prior`` it is the credible interval of :func:`estimate`, and α/2 bounds the share of the helpful
    among the entries *called* harmful, and of the harmful among those called helpful, as far as the pool is as the
    prior says. What was not measured on both arms is ``unknown`` either way.
    """
    if not worth >= 0:
        raise ValueError(f"worth is a gain in reward, 0 or more; got {worth!r}")
    if effect.difference is None:
        return "unknown"
    if prior is None:
        found = difference(effect, level=level, looks=looks)
        low, high = found.low, found.high
    else:
        low, high = estimate(effect, prior).interval(level)
    if low > 0:
        return "helps"
    if high < 0:
        return "harms"
    return "useless" if high < worth else "unknown"
