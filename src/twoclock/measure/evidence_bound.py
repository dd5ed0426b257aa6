"""Evidence that may be looked at after every round: bounds that hold at all times together.

A p-value holds at one look that was planned. Who tests after every round and stops at the first success errs far more
often than α. Betting does not: for values x in [0, 1] and a hypothesis "the mean is at most m", a gambler who stakes
the share g of the wealth on each value being above m owns ::

    K_t(m, g) = Π_{i ≤ t} (1 + g (x_i / m - 1)),      0 ≤ g < 1,

which under the hypothesis never grows in expectation, whatever was seen before, so that by Ville's inequality
``P(ever K_t >= 1/α) <= α`` (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
proposition 2 and section 4; there the stake λ is g/m). The best stake is not known, so the wealth is spread over a
fixed set of stakes and never moved: ``K_t(m) = mean_g K_t(m, g)``, the method of mixtures (Robbins 1970), at most a
factor of their number below the best stake in hindsight. It needs no tuning, does not depend on the order of the
values, and falls as m grows, so the lower bound at level 1 - α is the m at which it passes 1/α; the upper bound comes
from 1 - x. Values of other bounds, such as paired differences in [-1, 1], are moved and scaled.

What must hold: each value's expectation *given all before it* is at most m. Items drawn anew for every look do that;
looking twice at the same items does not, and neither do values that were picked for being good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, check_level

__all__ = ["Bets", "DIFFERENCES", "REWARDS"]

Array = npt.NDArray[np.float64]

REWARDS = (0.0, 1.0)
DIFFERENCES = (-1.0, 1.0)
"""The bounds of a reward minus a reward."""

STAKES: Array = 0.98 * 2.0 ** (-np.arange(12) / 1.5)
"""From .98 down to .006: each value of the best stake has one within a factor of 1.26."""
BISECTIONS = 40


@dataclass(frozen=True)
class Bets:
    """The values seen so far, as an immutable value; :meth:`update` gives the next one, in any portions and order."""

    bounds: tuple[float, float] = DIFFERENCES
    counts: tuple[tuple[float, int], ...] = ()
    """How often each value was seen, ascending: all that the wealth depends on."""

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds are two finite numbers, the lower one first; got {self.bounds}")
        for value, count in self.counts:
            if not low <= value <= high:
                raise ValueError(f"values lie in [{low:g}, {high:g}]; got {value!r}. Other bounds: Bets(bounds=(a, b))")
            if count < 1:
                raise ValueError(f"a count is 1 or more; got {count} of {value!r}")

    def update(self, values: Iterable[float]) -> Bets:
        """With more values. ValueError for one that is no number inside the bounds."""
        counts = dict(self.counts)
        for value in values:
            counts[float(value)] = counts.get(float(value), 0) + 1
        return Bets(self.bounds, tuple(sorted(counts.items())))

    @property
    def n(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def mean(self) -> float:
        """NaN without values."""
        return math.fsum(value * count for value, count in self.counts) / self.n if self.counts else math.nan

    # ------------------------------------------------------------------------------------------------------ the wealth

    @cached_property
    def _scaled(self) -> tuple[Array, Array]:
        """The distinct values moved to [0, 1], and how often each was seen."""
        low, high = self.bounds
        values = np.array([value for value, _ in self.counts], dtype=np.float64)
        return (values - low) / (high - low), np.array([count for _, count in self.counts], dtype=np.float64)

    def log_wealth(self, mean: float = 0.0, *, below: bool = False) -> float:
        """log K_t against "the true mean is at most ``mean``"; with ``below`` against "is at least ``mean``".

        1 is the stake: 0 says nothing, log 20 = 3 rejects at 5 % at whatever look it is reached. ValueError for a mean
        outside the bounds. A bet against what is impossible (a mean of exactly the lower bound) is won by any value
        above it, and then the wealth is infinite.
        """
        low, high = self.bounds
        if not low <= mean <= high:
            raise ValueError(f"the mean of values in [{low:g}, {high:g}] lies there too; got {mean!r}")
        scaled, counts = self._scaled
        m = (mean - low) / (high - low)
        return _log_wealth(1 - scaled, counts, 1 - m) if below else _log_wealth(scaled, counts, m)

    def p_value(self, mean: float = 0.0, *, below: bool = False) -> float:
        """min(1, 1/K_t): valid at every look together, so a gate may test it after each round and stop."""
        return min(1.0, math.exp(-max(self.log_wealth(mean, below=below), 0.0)))

    def rejects(self, mean: float = 0.0, alpha: float = 0.05, *, below: bool = False) -> bool:
        """Whether "the true mean is at most ``mean``" is rejected at ``alpha``."""
        check_level(alpha)
        return self.log_wealth(mean, below=below) >= math.log(1 / alpha)

    def lower(self, alpha: float = 0.05) -> float:
        """One-sided: the largest mean that "at most" is rejected for; the true mean ever lies below it with chance
        ``alpha`` at most."""
        check_level(alpha)
        low, high = self.bounds
        return low + (high - low) * _lower(*self._scaled, math.log(1 / alpha))

    def upper(self, alpha: float = 0.05) -> float:
        """One-sided, the other way."""
        check_level(alpha)
        low, high = self.bounds
        scaled, counts = self._scaled
        return high - (high - low) * _lower(1 - scaled, counts, math.log(1 / alpha))

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided, half of the error on each side: covers the true mean at all looks together."""
        check_level(level)
        half = (1 - level) / 2
        return Interval(self.mean, self.lower(half), self.upper(half), self.n, level, "betting, at every look")

    # ------------------------------------------------------------------------------------------------------- as JSON

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"bounds": list(self.bounds), "counts": [[value, count] for value, count in self.counts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Bets:
        """What :meth:`as_dict` gave; ValueError for anything else."""
        try:
            low, high = data["bounds"]
            counts = tuple(sorted((float(value), int(count)) for value, count in data["counts"]))
            return cls((float(low), float(high)), counts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no bets: expected what Bets.as_dict gives; {error}") from error


def _log_wealth(scaled: Array, counts: Array, m: float) -> float:
    if not len(scaled):
        return 0.0
    if m <= 0:
        return math.inf if bool((scaled > 0).any()) else 0.0
    growth = np.log1p(STAKES[:, None] * (scaled[None] / m - 1)) @ counts
    top = float(growth.max())
    return top + math.log(float(np.mean(np.exp(growth - top))))


def _lower(scaled: Array, counts: Array, needed: float) -> float:
    """The m at which the log wealth falls through ``needed``; bisection, from the side on which it is rejected."""
    low, high = 0.0, 1.0
    if not len(scaled) or not bool((scaled > 0).any()):
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _log_wealth(scaled, counts, middle) >= needed:
            low = middle
        else:
            high = middle
    return low
