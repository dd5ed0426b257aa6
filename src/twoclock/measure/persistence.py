"""How long a lesson stays true: a posterior over its change points.

At each step (a phase, or a round; the caller's unit) the lesson holds or does not. It stops holding with hazard λ a
step and holds again with hazard ρ, both unknown, with Beta priors; a skill has λ near 0, a convention that flips
every phase has both near 1. What is seen of a step is an estimate d of the lesson's effect on the reward, with standard
error s::

    holds:        d ~ N(θ, s²), θ half-normal(τ) above 0:  L1 = 2 N(d; 0, s² + τ²) Φ(d τ / (s √(s² + τ²)))
    does not:     θ is 0 or, as likely, half-normal below: L0 = N(d; 0, s²)/2 + L1(-d)/2

each mixed with the share ``slip`` of their mean, so that no single odd step counts as proof. With these the posterior
is that of a two-state Markov chain whose likelihood is a polynomial in λ and ρ, of a degree no higher than the number
of steps. The forward filter runs at the nodes of a Gauss–Jacobi rule of the two priors, which integrates such
polynomials exactly: up to 255 steps the numbers are exact but for rounding. (Change points with a learned hazard:
Wilson, Nassar and Gold 2010, who filter on a grid of counts; the two-state form is ours.)

Steps that were not seen (the lesson's task was not up) may be left out: the chain runs through them unobserved. Count
only those steps in which the lesson *could* change: a task that comes up every third phase is at its step 0, 1, 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, check_level

__all__ = ["Persistence", "PersistencePrior", "StepEffect", "log_evidence"]

Array = npt.NDArray[np.float64]

MOST_NODES = 128
SPARE = 8
"""Nodes beyond what the steps need, for the powers of 1 - λ that are asked about."""


@dataclass(frozen=True)
class StepEffect:
    """What one step said of a lesson's effect: an estimate of the reward with it minus without, and its error."""

    step: int
    effect: float
    error: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.effect) and math.isfinite(self.error) and self.error > 0):
            raise ValueError(
                f"an effect is a finite number with a standard error above 0; got {self.effect!r} ± {self.error!r} at "
                f"step {self.step}. A few equal outcomes are no proof of no noise: give an error that says so"
            )


@dataclass(frozen=True, kw_only=True)
class PersistencePrior:
    """What is believed of a lesson before it was tried."""

    stops: tuple[float, float] = (0.5, 0.5)
    """Beta(a, b) of the hazard λ a step. Jeffreys' prior leans to both ends: lessons tend to last or to flip."""
    returns: tuple[float, float] = (0.5, 0.5)
    """Beta(a, b) of ρ."""
    holds: float = 0.5
    """P(it holds at its first step)."""
    size: float = 0.25
    """τ, the size of an effect where there is one, in reward."""
    slip: float = 0.02

    def __post_init__(self) -> None:
        if not all(math.isfinite(p) and p > 0 for p in (*self.stops, *self.returns)):
            raise ValueError(f"a Beta prior has two numbers above 0; got stops={self.stops}, returns={self.returns}")
        if not (0 < self.holds < 1 and self.size > 0 and 0 <= self.slip < 1):
            raise ValueError(
                "a prior has holds between 0 and 1, size above 0 and slip in [0, 1); got "
                f"holds={self.holds}, size={self.size}, slip={self.slip}"
            )


def log_evidence(effect: float, error: float, prior: PersistencePrior | None = None) -> float:
    """log L1 - log L0 of one step's effect: above 0 it speaks for a lesson that holds."""
    from scipy.special import log_ndtr

    prior = prior or PersistencePrior()

    def normal(variance: float) -> float:
        return -0.5 * (math.log(2 * math.pi * variance) + effect * effect / variance)

    def half(sign: float) -> float:
        wide = error * error + prior.size**2
        return math.log(2) + normal(wide) + float(log_ndtr(sign * effect * prior.size / (error * math.sqrt(wide))))

    with_it = half(1.0)
    without = float(np.logaddexp(normal(error * error), half(-1.0))) - math.log(2)
    if prior.slip == 0:
        return with_it - without
    mixed = math.log(prior.slip / 2) + float(np.logaddexp(with_it, without))
    keep = math.log1p(-prior.slip)
    return float(np.logaddexp(keep + with_it, mixed) - np.logaddexp(keep + without, mixed))


@lru_cache(maxsize=64)
def _nodes(a: float, b: float, count: int) -> tuple[Array, Array]:
    """Points and weights of the Gauss rule of Beta(a, b) on (0, 1); the weights sum to 1."""
    from scipy.special import roots_jacobi

    x, w = roots_jacobi(count, b - 1, a - 1)
    return (1 + x) / 2, w / w.sum()


@dataclass(frozen=True)
class Persistence:
    """What the steps so far say of a lesson; an immutable value, :meth:`update` gives the next one.

    Questions about the future are asked from the last step seen (from before the first one where there is none).
    """

    steps: tuple[StepEffect, ...] = ()
    """By step; several of one step are several looks at the same state."""
    prior: PersistencePrior = field(default_factory=PersistencePrior)

    def update(self, step: int, effect: float, error: float) -> Persistence:
        """With one more estimate; steps may come in any order. ValueError for what is no number."""
        steps = sorted([*self.steps, StepEffect(step, effect, error)], key=lambda one: one.step)
        return replace(self, steps=tuple(steps))

    # -------------------------------------------------------------------------------------------------- the posterior

    @cached_property
    def _posterior(self) -> tuple[Array, Array, Array, Array]:
        """λ and ρ at the nodes, and P(not holding now, λ, ρ), P(holding now, λ, ρ), each of shape (λ, ρ)."""
        span = self.steps[-1].step - self.steps[0].step if self.steps else 0
        count = min(MOST_NODES, span // 2 + 1 + SPARE)
        stop, stop_weight = _nodes(*self.prior.stops, count)
        back, back_weight = _nodes(*self.prior.returns, count)
        weight = stop_weight[:, None] * back_weight[None, :]
        rate, ebb = stop[:, None] + back[None, :], 1 - stop[:, None] - back[None, :]
        off, on = (1 - self.prior.holds) * weight, self.prior.holds * weight
        last = self.steps[0].step if self.steps else 0
        for seen in self.steps:
            if gap := seen.step - last:
                faded = ebb**gap  # P(1→1 in k steps) = (ρ + λ rᵏ)/(λ + ρ) with r = 1 - λ - ρ, and so on
                stay_on = (back[None, :] + stop[:, None] * faded) / rate
                turn_on = back[None, :] * (1 - faded) / rate
                on, off = on * stay_on + off * turn_on, on * (1 - stay_on) + off * (1 - turn_on)
            last = seen.step
            log = log_evidence(seen.effect, seen.error, self.prior)
            on, off = on * math.exp(min(log, 0.0)), off * math.exp(min(-log, 0.0))
            whole = float(on.sum() + off.sum())
            on, off = on / whole, off / whole
        return stop, back, off, on

    @property
    def holds(self) -> float:
        """P(it holds at the last step seen)."""
        return float(self._posterior[3].sum())

    def lasts(self, steps: int) -> float:
        """P(it holds now and does not stop within the next ``steps`` steps): still true all the way."""
        stop, _, _, on = self._posterior
        return float((on * (1 - stop[:, None]) ** _count(steps)).sum())

    def holds_in(self, steps: int) -> float:
        """P(it holds ``steps`` steps from now), whatever it did in between."""
        stop, back, off, on = self._posterior
        rate, faded = stop[:, None] + back[None, :], (1 - stop[:, None] - back[None, :]) ** _count(steps)
        stay = (back[None, :] + stop[:, None] * faded) / rate
        turn = back[None, :] * (1 - faded) / rate
        return float((on * stay + off * turn).sum())

    def life(self, horizon: int, level: float = 0.95) -> Interval:
        """How many more steps it stays true, at most ``horizon``: the mean Σ_{h=1..horizon} P(lasts h), restricted
        because without data against it a lesson may last for ever, and the central interval of what will happen (not
        of the mean). A lesson that does not hold has a life of 0."""
        check_level(level)
        stop, _, _, on = self._posterior
        mean = float(on.sum(axis=1) @ ((1 - stop) * -np.expm1(_count(horizon) * np.log1p(-stop)) / stop))
        tail = (1 - level) / 2
        low, high = self._steps_with(1 - tail, horizon), self._steps_with(tail, horizon)
        return Interval(mean, low, high, len(self.steps), level, f"within {horizon} steps")

    def _steps_with(self, chance: float, horizon: int) -> int:
        """The largest number of steps, up to ``horizon``, that it lasts with at least this chance; 0 if none."""
        low, high = 0, horizon
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.lasts(middle) >= chance else (low, middle - 1)
        return low

    def hazard(self, level: float = 0.95) -> Interval:
        """λ, the chance a step that it stops: the posterior mean, and bounds read between the nodes of the rule."""
        check_level(level)
        stop, _, off, on = self._posterior
        mass = (on + off).sum(axis=1)
        reached = np.concatenate([[0.0], np.cumsum(mass) - mass / 2, [1.0]])
        points = np.concatenate([[0.0], stop, [1.0]])
        tail = (1 - level) / 2
        low, high = (float(end) for end in np.interp((tail, 1 - tail), reached, points))
        return Interval(float(mass @ stop), low, high, len(self.steps), level, "posterior of the hazard")

    # ------------------------------------------------------------------------------------------------------- as JSON

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        prior = {
            "stops": list(self.prior.stops),
            "returns": list(self.prior.returns),
            "holds": self.prior.holds,
            "size": self.prior.size,
            "slip": self.prior.slip,
        }
        return {"steps": [[one.step, one.effect, one.error] for one in self.steps], "prior": prior}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Persistence:
        """What :meth:`as_dict` gave; ValueError for anything else."""
        try:
            (a, b), (c, d) = data["prior"]["stops"], data["prior"]["returns"]
            rest = {name: float(data["prior"][name]) for name in ("holds", "size", "slip")}
            prior = PersistencePrior(stops=(float(a), float(b)), returns=(float(c), float(d)), **rest)
            steps = tuple(StepEffect(int(step), float(effect), float(error)) for step, effect, error in data["steps"])
            return cls(tuple(sorted(steps, key=lambda one: one.step)), prior)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no persistence: expected what Persistence.as_dict gives; {error}") from error


def _count(steps: int) -> int:
    if steps < 0:
        raise ValueError(f"a number of steps is 0 or more; got {steps}")
    return steps
