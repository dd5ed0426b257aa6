"""What a trial is worth before it is paid for: the expected value of its information, less its cost.

A gain is known as a normal posterior N(m, s²). Whoever must decide now adopts the change when m > 0, which is worth
``max(0, m)`` a use. After a paired trial of n items, whose differences have standard deviation σ, the posterior mean
will have moved: seen from now it is ``m' ~ N(m, s̃²)`` with ``s̃² = s⁴ / (s² + σ²/n)``. Deciding then is worth

    E max(0, m') = m Φ(m/s̃) + s̃ φ(m/s̃),

and the trial ``E max(0, m') - max(0, m) = s̃ f(-|m|/s̃)``, f(z) = φ(z) + z Φ(z), a use: the expected value of sample
information (Raiffa and Schlaifer 1961, chapter 5), which is the knowledge gradient's formula for one alternative
against a known one (Frazier, Powell and Dayanik 2008, equation 15). It is never negative; its cost decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from twoclock.measure.intervals import Interval, check_level, z_of

__all__ = ["NormalPosterior", "TrialValue", "best_trial", "posterior_gain", "value_of_trial"]

NORMAL = NormalDist()


@dataclass(frozen=True)
class NormalPosterior:
    """What is believed of a number: normal with this mean and standard deviation."""

    mean: float
    sd: float
    n: int = 0
    """How many observations (items, groups) are in it; 0 is the prior alone."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.sd) and self.sd >= 0):
            raise ValueError(f"a posterior has a finite mean and a standard deviation of 0 or more; got {self}")

    def p_above(self, value: float = 0.0) -> float:
        """P(the number > value)."""
        if self.sd == 0:
            return float(self.mean > value)
        return NORMAL.cdf((self.mean - value) / self.sd)

    def interval(self, level: float = 0.95) -> Interval:
        """The central credible interval."""
        check_level(level)
        half = z_of(level) * self.sd
        return Interval(self.mean, self.mean - half, self.mean + half, self.n, level, "normal posterior")


@dataclass(frozen=True, kw_only=True)
class TrialValue:
    """What a trial of ``items`` items is expected to bring."""

    items: int
    information: float
    """What deciding after it is worth beyond deciding now, in reward over all uses; 0 or more."""
    cost: float
    """In the same unit."""
    p_changes: float
    """P that the decision after it is another than now."""

    @property
    def net(self) -> float:
        """information - cost: buy it where this is above 0."""
        return self.information - self.cost

    @property
    def worth_it(self) -> bool:
        return self.net > 0


def posterior_gain(prior: NormalPosterior, estimate: float, error: float, n: int = 0) -> NormalPosterior:
    """The prior with an unbiased normal estimate of standard error ``error``: precisions add,
    ``1/s'² = 1/s² + 1/error²`` and ``m' = s'² (m/s² + estimate/error²)``. ``n`` is how many observations it is of."""
    if not (math.isfinite(estimate) and math.isfinite(error) and error > 0):
        raise ValueError(f"a finite estimate and a standard error above 0 are needed; got {estimate!r} ± {error!r}")
    if prior.sd == 0:
        return NormalPosterior(prior.mean, 0.0, prior.n + n)
    weight = prior.sd**2 / (prior.sd**2 + error**2)
    mean = prior.mean + weight * (estimate - prior.mean)
    return NormalPosterior(mean, math.sqrt(weight) * error, prior.n + n)


def value_of_trial(
    gain: NormalPosterior, items: int, *, sd: float, cost_per_item: float, uses: float = 1.0
) -> TrialValue:
    """The value of a paired trial of ``items`` items for deciding on a change of which ``gain`` is believed.

    ``sd`` is the standard deviation of one item's paired difference (√(2 p (1 - p)) for two independent answers of
    rewards 0 and 1, at most 1), ``uses`` the number of answers that the decision is for, ``cost_per_item`` what an
    item's rollouts cost, in the unit of the reward. ValueError for negative or non-finite numbers.
    """
    for name, value in (("sd", sd), ("cost_per_item", cost_per_item), ("uses", uses), ("items", items)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is a finite number of 0 or more; got {value!r}")
    cost = cost_per_item * items
    if items == 0 or gain.sd == 0:
        return TrialValue(items=items, information=0.0, cost=cost, p_changes=0.0)
    moved = gain.sd**2 / math.sqrt(gain.sd**2 + sd**2 / items)
    z = -abs(gain.mean) / moved
    return TrialValue(
        items=items,
        information=uses * moved * max(0.0, NORMAL.pdf(z) + z * NORMAL.cdf(z)),
        cost=cost,
        p_changes=NORMAL.cdf(z),
    )


def best_trial(
    gain: NormalPosterior, *, sd: float, cost_per_item: float, uses: float, most_items: int, least_items: int = 1
) -> TrialValue:
    """The number of items, between ``least_items`` and ``most_items``, of the highest net value; no trial at all
    (``items=0``) where every one costs more than it is worth."""
    if not least_items >= 1:
        raise ValueError(f"a trial has at least 1 item; got least_items={least_items}")
    none = value_of_trial(gain, 0, sd=sd, cost_per_item=cost_per_item, uses=uses)
    sizes = range(least_items, most_items + 1)
    trials = (value_of_trial(gain, n, sd=sd, cost_per_item=cost_per_item, uses=uses) for n in sizes)
    return max([none, *trials], key=lambda trial: trial.net)
