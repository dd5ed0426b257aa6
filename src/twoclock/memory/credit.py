"""Which of the cases that were shown together helped: estimates from who was shown with what probability.

An episode's outcome is shared by all that were shown, so a case beside a helpful one looks helpful. What tells them
apart is chance: where a case was found, and shown or not by a draw of known probability p, the two kinds of episodes
differ by the showing alone, and

    E[r | shown] − E[r | not shown]  ≈  Σ_shown (r/p) / Σ_shown (1/p)  −  Σ_held (r/(1−p)) / Σ_held (1/(1−p))

(Hájek's form of inverse propensity weighting). Where p was 0 or 1 nothing was drawn and nothing is said: cases that
were always shown together have no contrast at all, whatever they earned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from twoclock.errors import ConfigError
from twoclock.memory.retrieval import Outcome

__all__ = ["Contrast", "contrasts", "importance_estimate"]

_LEAST_PROPENSITY = 0.01


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What showing one case was worth, in reward, by randomised showing alone."""

    shown: int
    held: int
    """Episodes in which it was drawn to be shown, and drawn not to be: those with certainty are not counted."""
    difference: float | None
    """None until there are two of each."""
    low: float | None = None
    high: float | None = None

    @property
    def claims(self) -> str:
        """``helps`` or ``harms`` where the interval leaves 0 out, else ``unknown``."""
        if self.low is None or self.high is None:
            return "unknown"
        return "helps" if self.low > 0.0 else "harms" if self.high < 0.0 else "unknown"


def contrasts(outcomes: Iterable[Outcome], *, confidence: float = 0.95) -> dict[str, Contrast]:
    """The contrast of each case that was ever drawn, by id, each with its own interval (of many intervals some miss).

    Rewards count minus their baselines. Draws with p below .01 or above .99 are left out: their weights would be of a
    few episodes. The variance is taken as if half a unit of squared error more had been seen, so that two equal rewards
    are no certainty (rewards lie in [0, 1]).
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence!r}; expected a number between 0 and 1")
    arms: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {}
    for outcome in outcomes:
        value = outcome.reward - outcome.baseline
        for cases, side in ((outcome.shown, 0), (outcome.held, 1)):
            for case in cases:
                p = case.propensity
                if _LEAST_PROPENSITY <= p <= 1.0 - _LEAST_PROPENSITY:
                    arm = arms.setdefault(case.id, ([], []))[side]
                    arm.append((value, 1.0 / p if side == 0 else 1.0 / (1.0 - p)))
    return {id: _contrast(*arms[id], confidence) for id in sorted(arms)}


def _contrast(shown: list[tuple[float, float]], held: list[tuple[float, float]], confidence: float) -> Contrast:
    if len(shown) < 2 or len(held) < 2:
        return Contrast(shown=len(shown), held=len(held), difference=None)
    from scipy.stats import t

    (one, first, n), (other, second, m) = _mean(shown), _mean(held)
    error = math.sqrt(first + second)
    # Welch–Satterthwaite, in effective episodes.
    freedom = (first + second) ** 2 / (first**2 / max(n - 1.0, 1.0) + second**2 / max(m - 1.0, 1.0))
    half = float(t.ppf(0.5 + confidence / 2.0, max(freedom, 1.0))) * error
    gap = one - other
    return Contrast(shown=len(shown), held=len(held), difference=gap, low=gap - half, high=gap + half)


def _mean(arm: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The weighted mean, its variance, and the effective number of episodes."""
    values, weights = (np.array(column) for column in zip(*arm, strict=True))
    mean = float(weights @ values / weights.sum())
    share = weights / weights.sum()
    effective = float(1.0 / (share @ share))
    spread = float(share @ (values - mean) ** 2)
    variance = (effective * spread + 0.5) / (effective + 2.0)
    return mean, variance / effective, effective


def importance_estimate(
    rewards: Sequence[float], logged: Sequence[float], target: Sequence[float]
) -> tuple[float, float]:
    """What another policy would have earned on these episodes: Σ w r / Σ w, w = target/logged (self-normalised), and
    the effective number of episodes (Σ w)² / Σ w².

    ``logged`` and ``target`` are the probabilities of what was shown, under the policy that showed it and under the
    other: of the one case where K = 1, of the whole order (:attr:`Chosen.log_probability`) else. Raises ConfigError for
    lengths that differ, a logged probability of 0, or a target that would have shown none of it.
    """
    r, p, q = (np.asarray(x, dtype=np.float64) for x in (rewards, logged, target))
    if not len(r) == len(p) == len(q):
        raise ConfigError(f"{len(r)} rewards, {len(p)} logged and {len(q)} target probabilities; expected one of each")
    if not (np.isfinite(r).all() and (p > 0.0).all() and (p <= 1.0).all() and (q >= 0.0).all() and (q <= 1.0).all()):
        raise ConfigError("rewards must be finite, logged probabilities in (0, 1] and target probabilities in [0, 1]")
    weights = q / p
    if not weights.sum() > 0.0:
        raise ConfigError("the other policy shows nothing of what was logged; the log says nothing about it")
    return float(weights @ r / weights.sum()), float(weights.sum() ** 2 / (weights @ weights))
