"""Learning curves with a known truth, for the tests of plasticity, efficiency and asymptotes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twoclock.measure import CurvePoint, LearningCurve

SIZE = 16
"""Rollouts a problem; a rollout has 40 tokens."""


def curve(
    scores: Sequence[float], *, every: int = 100, start: str = "base", seed: int = 0, task: str = "sums", n: int = 100,
    dead: float | None = None,
) -> LearningCurve:  # fmt: skip
    """A point every ``every`` problems, the first before any."""
    points = tuple(
        CurvePoint(problems=i * every, rollouts=i * every * SIZE, tokens=i * every * SIZE * 40, score=score, n=n)
        for i, score in enumerate(scores)
    )
    return LearningCurve(task=task, start=start, seed=seed, points=points, dead_groups=dead)


def saturating(midpoint: float, low: float = 0.1, high: float = 0.8) -> Callable[[float], float]:
    """A rise that is half done at ``midpoint`` problems."""
    return lambda problems: low + (high - low) * problems / (problems + midpoint) if problems else low


def measured(
    truth: Callable[[float], float], seed: int, *, points: int = 25, every: int = 100, n: int = 200, start: str = "base"
) -> LearningCurve:
    """The truth seen through ``n`` items at each point."""
    rng = np.random.default_rng([99, seed])
    scores = [float(rng.binomial(n, truth(i * every)) / n) for i in range(points)]
    return curve(scores, every=every, seed=seed, n=n, start=start)
