"""Plasticity: how well a trained checkpoint still learns a fresh task, against the base on the same budget.

The ratio cannot say why: a zero may be lost exploration (no group with any difference in reward, hence no gradient)
and not lost plasticity, so the share of dead groups always stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twoclock.measure.across_seeds import ratio_of_means, t_interval
from twoclock.measure.curves import AXES, Axis, LearningCurve, area_under, problems_with_arm
from twoclock.measure.intervals import Interval, unknown

__all__ = ["Plasticity", "plasticity_ratio"]

STARVED = 0.9
"""From this share of dead groups on, there was next to nothing to learn from."""


@dataclass(frozen=True, kw_only=True)
class Plasticity:
    """One probe task from one checkpoint and from the base. All intervals are over training seeds."""

    task: str
    start: str
    """The checkpoint."""
    against: str
    """What it is compared with: ``base``."""
    axis: Axis
    budget: float
    """How far on that axis both arms are compared."""
    ratio: Interval
    """Mean AULC from the checkpoint / mean AULC from the base; below 1 is loss. Fieller over paired seeds."""
    area: Interval
    """AULC from the checkpoint, in the unit of the score."""
    area_against: Interval
    first: Interval
    """The first score from the checkpoint: what transfer gave before any training on the probe."""
    first_against: Interval
    dead_groups: Interval
    """The share of dead groups on the way, from the checkpoint; unknown where it was not counted."""
    dead_groups_against: Interval
    seeds: tuple[int, ...]

    @property
    def is_loss(self) -> bool:
        """Whether the ratio lies below 1 with its whole interval."""
        return self.ratio.high < 1

    @property
    def may_be_exploration(self) -> bool:
        """Whether the checkpoint's run had next to nothing to learn from: then a low ratio is no verdict on its
        plasticity."""
        return self.dead_groups.is_known and self.dead_groups.estimate >= STARVED

    @property
    def too_hard(self) -> bool:
        """Whether the base's run had next to nothing to learn from either: then the task tells nothing."""
        other = self.dead_groups_against
        return self.may_be_exploration and other.is_known and other.estimate >= STARVED


def plasticity_ratio(
    checkpoint: Sequence[LearningCurve],
    base: Sequence[LearningCurve],
    *,
    axis: Axis = "rollouts",
    budget: float | None = None,
    level: float = 0.95,
) -> Plasticity:
    """PR = AULC(probe from checkpoint) / AULC(probe from base), paired by seed; PR < 1 is loss.

    Same task, same seeds, same budget in both arms, or ValueError with everything that differs. ``budget`` None needs
    curves that end at the same place on ``axis``; a number compares all of them up to there.
    """
    problems = [*problems_with_arm(checkpoint, "checkpoint"), *problems_with_arm(base, "base")]
    if not problems:
        problems = _mismatches(checkpoint, base, axis, budget)
    if problems:
        raise ValueError("plasticity compares like with like: " + "; ".join(problems))
    seeds = tuple(sorted(curve.seed for curve in checkpoint))
    arms = [[next(c for c in arm if c.seed == seed) for seed in seeds] for arm in (checkpoint, base)]
    end = float(arms[0][0].along(axis)[-1]) if budget is None else float(budget)
    areas = [[area_under(curve, axis, end) for curve in arm] for arm in arms]

    def over_seeds(arm: Sequence[LearningCurve], of: Callable[[LearningCurve], float | None]) -> Interval:
        values = [value for value in map(of, arm) if value is not None]
        return (
            t_interval(values, level, bounds=(0, 1))
            if len(values) == len(arm)
            else unknown(0, level, seeds=len(values))
        )

    first, first_against = (over_seeds(arm, lambda curve: curve.points[0].score) for arm in arms)
    dead, dead_against = (over_seeds(arm, lambda curve: curve.dead_groups) for arm in arms)
    return Plasticity(
        task=arms[0][0].task,
        start=arms[0][0].start,
        against=arms[1][0].start,
        axis=axis,
        budget=end,
        ratio=ratio_of_means(areas[0], areas[1], level),
        area=t_interval(areas[0], level, bounds=(0, 1)),
        area_against=t_interval(areas[1], level, bounds=(0, 1)),
        first=first,
        first_against=first_against,
        dead_groups=dead,
        dead_groups_against=dead_against,
        seeds=seeds,
    )


def _mismatches(
    checkpoint: Sequence[LearningCurve], base: Sequence[LearningCurve], axis: Axis, budget: float | None
) -> list[str]:
    found = []
    if checkpoint[0].task != base[0].task:
        found.append(f"the checkpoint learned '{checkpoint[0].task}' and the base '{base[0].task}'")
    seeds, others = ({curve.seed for curve in arm} for arm in (checkpoint, base))
    if seeds != others:
        found.append(f"seeds {sorted(seeds)} and {sorted(others)} differ; curves are paired by seed")
    if axis not in AXES:
        return [*found, f"axis is one of {', '.join(AXES)}; got {axis!r}"]
    ends = sorted({float(curve.along(axis)[-1]) for curve in (*checkpoint, *base)})
    if budget is None and len(ends) > 1:
        found.append(
            f"budgets of {', '.join(f'{end:g}' for end in ends)} {axis} differ; give budget={ends[0]:g} to compare "
            "all curves up to there"
        )
    if budget is not None and not 0 < budget <= ends[0]:
        found.append(f"a budget of {budget:g} {axis} was asked for, and the shortest curve spans {ends[0]:g}")
    return found
