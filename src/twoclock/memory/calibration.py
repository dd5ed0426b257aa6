"""How good learned values are: calibration by bins, Brier score, area under the ROC curve, regret. Pure functions.

Values are probabilities of success (:mod:`twoclock.memory.parametric`) or means of rewards
(:mod:`twoclock.memory.kernel`); outcomes are rewards in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twoclock.errors import ConfigError

__all__ = ["Bin", "auc", "bins", "brier", "calibration_error", "regret"]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions in [low, high), the last bin's end included."""

    low: float
    high: float
    count: int
    predicted: float
    """Their mean."""
    observed: float
    """The mean outcome."""


def bins(predictions: Sequence[float], outcomes: Sequence[float], *, count: int = 10) -> list[Bin]:
    """Calibration by ``count`` bins of equal width over [0, 1], the empty ones left out. Predictions beyond 0 or 1
    count with the nearest bin."""
    p, r = _checked(predictions, outcomes)
    if count < 1:
        raise ConfigError(f"count is {count}; expected at least one bin")
    place = np.clip(np.floor(p * count).astype(int), 0, count - 1)
    return [
        Bin(
            low=b / count,
            high=(b + 1) / count,
            count=int((place == b).sum()),
            predicted=float(p[place == b].mean()),
            observed=float(r[place == b].mean()),
        )
        for b in sorted(set(place.tolist()))
    ]


def calibration_error(predictions: Sequence[float], outcomes: Sequence[float], *, count: int = 10) -> float:
    """Σ (n_b/n) |predicted_b − observed_b| over the bins; 0 is perfect. Biased upward where bins hold few."""
    found = bins(predictions, outcomes, count=count)
    return math.fsum(b.count * abs(b.predicted - b.observed) for b in found) / sum(b.count for b in found)


def brier(predictions: Sequence[float], outcomes: Sequence[float]) -> float:
    """The mean of (p − r)²; lower is better, ¼ is what always saying ½ earns on binary outcomes (Brier, 1950)."""
    p, r = _checked(predictions, outcomes)
    return float(((p - r) ** 2).mean())


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """The probability that a positive scores above a negative, ties counting half; None where one kind is missing."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if len(s) != len(y) or not np.isfinite(s).all():
        raise ConfigError(f"{len(s)} scores for {len(y)} labels; expected as many, and finite")
    if y.all() or not y.any():
        return None
    from scipy.stats import rankdata

    good = int(y.sum())
    return float((rankdata(s)[y].sum() - good * (good + 1) / 2) / (good * (len(y) - good)))


def regret(earned: Sequence[float], best: Sequence[float]) -> float:
    """The mean of what the best choice would have earned minus what the choice did, by episode; both in expectation
    where that is known, so that luck plays no part. Of uniform choice this is what a retriever has to beat."""
    a, b = _checked(earned, best)
    return float((b - a).mean())


def _checked(one: Sequence[float], other: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ConfigError(f"got {a.shape} and {b.shape} numbers; expected as many of both, and at least one")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError("there is NaN or infinity among the numbers; expected finite ones")
    return a, b
