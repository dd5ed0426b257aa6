"""The cross-entropy method over a box: a normal distribution for each variable, moved towards the best candidates.

x ~ clip(N(μ, diag σ²), low, high); μ, σ ← mean and standard deviation of the elite (Rubinstein 1999; as Transformer²,
arXiv:2501.06252, uses it). Candidates are clipped, not refused, so the box's edges, the base among them, are drawn with
a chance above 0. σ has a floor that halves with each iteration: an elite that agrees by chance does not end the search.
Ties go to the candidate that was given first, so who gives them decides. Every draw follows from the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoclock.seeding import child_seed

__all__ = ["Cem"]

Array = npt.NDArray[np.float64]

FIRST_FLOOR = 0.1
"""Of σ, as a share of the box's width."""


@dataclass(frozen=True)
class Cem:
    """Where the search stands, as a value. ``mean`` and ``sd`` are [D]."""

    mean: Array
    sd: Array
    low: float
    high: float
    iteration: int = 0

    @classmethod
    def start(cls, mean: Sequence[float], sd: float, low: float, high: float) -> Cem:
        """Raises ValueError for numbers that are no distribution on a box."""
        numbers = [*mean, sd, low, high]
        if not mean or not all(math.isfinite(n) for n in numbers) or sd <= 0.0 or low >= high:
            raise ValueError(f"a search needs finite numbers, sd > 0 and low < high; got {numbers}")
        at = np.clip(np.asarray(mean, dtype=float), low, high)
        return cls(at, np.full(len(at), sd), low, high)

    def draw(self, count: int, seed: int) -> Array:
        """[count, D] candidates inside the box; finite, whatever the state."""
        rng = np.random.default_rng(child_seed("cem", seed, self.iteration))
        found = self.mean + self.sd * rng.standard_normal((count, len(self.mean)))
        return np.clip(found, self.low, self.high)

    def moved(self, candidates: Array, scores: Sequence[float], elite: int) -> Cem:
        """The search after the candidates [N, D] got these scores, higher is better."""
        if len(scores) != len(candidates) or not 1 <= elite <= len(scores):
            raise ValueError(f"{len(candidates)} candidates, {len(scores)} scores and an elite of {elite}")
        if not all(math.isfinite(score) for score in scores):
            raise ValueError(f"scores must be finite; got {list(scores)}")
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:elite]
        chosen = candidates[best]
        floor = FIRST_FLOOR * (self.high - self.low) / 2**self.iteration
        return Cem(chosen.mean(axis=0), np.maximum(chosen.std(axis=0), floor), self.low, self.high, self.iteration + 1)
