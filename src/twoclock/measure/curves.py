"""Learning curves: the score of one run against what it had spent, and what is read off one curve.

What was spent has three axes, *problems* (items met), *rollouts* and *tokens*, and they can tell three different
stories: a method that answers each problem sixteen times is quick in problems and slow in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure.decompose import Cell
from twoclock.measure.evaluations import DEPLOYED, score_curve
from twoclock.types import Evaluation

__all__ = ["AXES", "Axis", "CurvePoint", "LearningCurve", "Spent", "area_under", "learning_curve", "problems_with_arm"]

Array = npt.NDArray[np.float64]
Axis = Literal["problems", "rollouts", "tokens"]

AXES: tuple[Axis, ...] = ("problems", "rollouts", "tokens")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One evaluation. The three counts are all that had been spent on learning until then, evaluations not included."""

    problems: int
    rollouts: int
    tokens: int
    score: float
    """In [0, 1], higher is better."""
    n: int
    """Items behind the score."""

    def __post_init__(self) -> None:
        wrong = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) < 0]
        if wrong:
            raise ValueError(f"what was spent is not negative; got {', '.join(wrong)}")
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"a score lies in [0, 1]; got {self.score}")
        if self.n < 1:
            raise ValueError(f"a score has at least one item behind it; got n={self.n}")


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """One run on one task: its points in the order of spending, of which the first may be before any training."""

    task: str
    start: str
    """What the run began from: ``base``, or the name of a checkpoint or method."""
    seed: int
    points: tuple[CurvePoint, ...]
    dead_groups: float | None = None
    """The share of the run's groups without any difference in reward, from which a policy gradient learns nothing;
    None where it was not counted."""

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"a curve needs at least 2 points; {self._name} has {len(self.points)}")
        for axis in AXES:
            values = [getattr(point, axis) for point in self.points]
            if values != sorted(values):
                raise ValueError(f"points stand in the order of spending; the {axis} of {self._name} fall: {values}")
        if self.dead_groups is not None and not 0 <= self.dead_groups <= 1:
            raise ValueError(f"dead_groups is a share in [0, 1]; got {self.dead_groups}")

    @property
    def _name(self) -> str:
        return f"'{self.task}' from {self.start}, seed {self.seed}"

    def along(self, axis: Axis) -> Array:
        """What was spent at each point on one axis."""
        if axis not in AXES:
            raise ValueError(f"axis is one of {', '.join(AXES)}; got {axis!r}")
        return np.array([getattr(point, axis) for point in self.points], dtype=np.float64)

    @property
    def scores(self) -> Array:
        return np.array([point.score for point in self.points])


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one round of a run spent on learning, channels' own rollouts and trials included."""

    round: int
    problems: int
    rollouts: int
    tokens: int
    dead_groups: float | None = None
    """The share of this round's groups that were dead."""


def learning_curve(
    evaluations: Sequence[Evaluation],
    spent: Sequence[Spent],
    task: str,
    *,
    start: str,
    seed: int,
    cell: Cell = DEPLOYED,
    begin: int = 0,
) -> LearningCurve:
    """A run's curve on one task from its evaluations and what its rounds spent; counting begins after round ``begin``.

    ValueError when fewer than two rounds from ``begin`` on were evaluated.
    """
    points = []
    for round, interval in score_curve(evaluations, task, cell):
        if round < begin:
            continue
        until = [line for line in spent if begin < line.round <= round]
        sums = {axis: sum(getattr(line, axis) for line in until) for axis in AXES}
        points.append(CurvePoint(**sums, score=interval.estimate, n=interval.n))
    dead = [line.dead_groups for line in spent if line.round > begin and line.dead_groups is not None]
    return LearningCurve(
        task=task,
        start=start,
        seed=seed,
        points=tuple(points),
        dead_groups=math.fsum(dead) / len(dead) if dead else None,
    )


def area_under(curve: LearningCurve, axis: Axis = "rollouts", budget: float | None = None) -> float:
    """AULC = (1/B) ∫₀^B score db by trapezoids, in the unit of the score, higher is better: the mean score over the
    budget. ``budget`` None is the curve's own end; a smaller one is met by interpolation. The score before the first
    point is that of the first point."""
    at, scores = curve.along(axis), curve.scores
    end = float(at[-1]) if budget is None else float(budget)
    if not 0 < end <= at[-1]:
        raise ValueError(
            f"the curve of {curve._name} spans {at[-1]:g} {axis}; an area needs a budget above 0 and up to that, "
            f"got {end:g}"
        )
    inside = at < end
    grid = np.concatenate([[0.0], at[inside], [end]])
    last = np.interp(end, at[~_repeats(at)], scores[~_repeats(at)])
    heights = np.concatenate([[scores[0]], scores[inside], [last]])
    return float(np.sum(np.diff(grid) * (heights[1:] + heights[:-1]) / 2) / end)


def _repeats(at: Array) -> npt.NDArray[np.bool_]:
    """Points at which the next one had spent no more: the later evaluation counts."""
    return np.append(at[1:] == at[:-1], False)


def problems_with_arm(curves: Sequence[LearningCurve], name: str) -> list[str]:
    """Why these curves are not one arm of a comparison: one task, one start, each seed once."""
    if not curves:
        return [f"{name} has no curve"]
    found = []
    for what in ("task", "start"):
        values = sorted({str(getattr(curve, what)) for curve in curves})
        if len(values) > 1:
            found.append(f"{name} mixes {what}s: {', '.join(values)}")
    seeds = [curve.seed for curve in curves]
    twice: Mapping[int, None] = dict.fromkeys(seed for seed in seeds if seeds.count(seed) > 1)
    if twice:
        found.append(f"{name} has seed {', '.join(map(str, twice))} more than once")
    return found
