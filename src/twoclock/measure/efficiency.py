"""Sample efficiency: what it takes to reach a stated score, in problems, rollouts and tokens: three numbers, never one.

State the score beforehand; one that is taken from the better arm's own peak favours the other. A run that does not
reach it is *censored*, not dropped: all that is known is that it takes more than it had. Two rules are shown side by
side, because evaluations are noisy and a running maximum feeds on noise:

- ``running max``: the first time the best score so far is at least the target, as published curves are read;
- ``raw``: the first evaluation from which the score stays at the target for ``hold`` evaluations in a row.

Between two evaluations the score is taken to move in a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure.across_seeds import geometric_ratio, ratio_of_means, t_interval
from twoclock.measure.curves import AXES, Axis, LearningCurve, problems_with_arm
from twoclock.measure.intervals import Interval, unknown

__all__ = ["RULES", "Efficiency", "Reached", "Rule", "SpeedUp", "TimeTo", "reach", "sample_efficiency", "time_to"]

Array = npt.NDArray[np.float64]
Rule = Literal["running max", "raw"]

RULES: tuple[Rule, ...] = ("running max", "raw")
HOLD = 2


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where one run first met the target; all None when it did not."""

    target: float
    rule: Rule
    seed: int
    problems: float | None
    rollouts: float | None
    tokens: float | None
    spent: Mapping[Axis, float]
    """What the run had in all: where it did not reach the target, it takes more than this."""

    @property
    def is_reached(self) -> bool:
        return self.problems is not None

    def __str__(self) -> str:
        if not self.is_reached:
            return f"not reached in {self.spent['problems']:,.0f} problems"
        return f"{self.problems:,.0f} problems, {self.rollouts:,.0f} rollouts, {self.tokens:,.0f} tokens"


def reach(curve: LearningCurve, target: float, rule: Rule = "running max", *, hold: int = HOLD) -> Reached:
    """When one run reached ``target``. ``hold`` counts the evaluations that must stay there under ``raw``, the first
    included; a run that ends sooner has not reached it."""
    if not 0 < target <= 1:
        raise ValueError(f"the target is a score in (0, 1]; got {target}")
    if rule not in RULES:
        raise ValueError(f"rule is one of {', '.join(RULES)}; got {rule!r}")
    if hold < 1:
        raise ValueError(f"hold counts evaluations, at least 1; got {hold}")
    scores = curve.scores
    if rule == "running max":
        scores, hold = np.maximum.accumulate(scores), 1
    good = scores >= target
    starts = [i for i in range(len(good) - hold + 1) if good[i : i + hold].all()]
    where = _crossing(scores, target, starts[0]) if starts else None
    at = {axis: None if where is None else float(_between(curve.along(axis), where)) for axis in AXES}
    spent: dict[Axis, float] = {axis: float(curve.along(axis)[-1]) for axis in AXES}
    return Reached(target=target, rule=rule, seed=curve.seed, spent=spent, **at)


def _crossing(scores: Array, target: float, index: int) -> float:
    """The place, in points and parts of a point, where the straight line up to ``index`` meets the target."""
    if index == 0 or scores[index - 1] >= target:
        return float(index)
    return index - 1 + float((target - scores[index - 1]) / (scores[index] - scores[index - 1]))


def _between(at: Array, where: float) -> float:
    return float(np.interp(where, np.arange(len(at)), at))


# --------------------------------------------------------------------------------------------------------- one arm


@dataclass(frozen=True, kw_only=True)
class TimeTo:
    """What it took the runs of one arm, on one axis."""

    axis: Axis
    reached: int
    runs: int
    median: float | None
    """The Kaplan-Meier median; None when less than half of the runs reach the target: not reached."""
    restricted: Interval
    """The mean of min(time, horizon): a run that did not get there counts with the horizon, so where any did not, the
    true mean is larger."""
    horizon: float
    """How far the shortest run went of those that did not reach the target; where all did, the longest run's end."""


def time_to(found: Sequence[Reached], axis: Axis, horizon: float | None = None, level: float = 0.95) -> TimeTo:
    """The times of several runs with the censored ones in their place. ``horizon`` None is as far as all are known."""
    if not found:
        raise ValueError("no run was given; at least one is needed")
    from scipy.stats import CensoredData, ecdf

    end = _horizon(found, axis) if horizon is None else horizon
    times = [getattr(one, axis) for one in found]
    known = [one.spent[axis] if time is None else time for one, time in zip(found, times, strict=True)]
    reached = sum(time is not None for time in times)
    median = None
    if reached:
        survival = ecdf(CensoredData.right_censored(known, [time is None for time in times])).sf
        met = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)
        median = float(survival.quantiles[met[0]]) if len(met) else None
    return TimeTo(
        axis=axis,
        reached=reached,
        runs=len(found),
        median=median,
        restricted=t_interval(_restricted(found, axis, end), level),
        horizon=end,
    )


def _horizon(found: Sequence[Reached], axis: Axis) -> float:
    """As far as it is known of every run whether it was there: runs that were are known for good."""
    cut = [one.spent[axis] for one in found if not one.is_reached]
    return min(cut) if cut else max(one.spent[axis] for one in found)


def _restricted(found: Sequence[Reached], axis: Axis, horizon: float) -> list[float]:
    times = [getattr(one, axis) for one in found]
    return [horizon if time is None else min(float(time), horizon) for time in times]


# --------------------------------------------------------------------------------------------------------- two arms


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """Time of ``than`` / time of ``arm`` on one axis by one rule: 3 is three times as quick, below 1 is slower."""

    axis: Axis
    rule: Rule
    ratio: Interval
    arm: TimeTo
    than: TimeTo
    is_censored: bool
    """Some run did not reach the target: the ratio is one of means restricted to the horizon, nearer to 1 than the true
    one where it is the slower arm that was cut off."""

    def __str__(self) -> str:
        if not self.ratio.is_known:
            return f"{self.axis}: {self.ratio.method}"
        return f"{self.axis}: {self.ratio}"


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Three ratios by two rules."""

    task: str
    target: float
    arm: str
    than: str
    running_max: Mapping[Axis, SpeedUp]
    raw: Mapping[Axis, SpeedUp]
    reached: tuple[Reached, ...]
    """Every run of both arms under both rules, ``arm`` first."""


def sample_efficiency(
    arm: Sequence[LearningCurve],
    than: Sequence[LearningCurve],
    target: float,
    *,
    hold: int = HOLD,
    level: float = 0.95,
) -> Efficiency:
    """How much sooner ``arm`` reaches ``target`` than ``than`` on the same task; their curves' ``start`` names them.

    Where every run gets there: the ratio of geometric means, t on the log scale, paired where both arms have the same
    seeds. Otherwise the ratio of means restricted to the common horizon, Fieller, which needs the same seeds. Unknown
    where neither arm ever gets there.
    """
    problems = [*problems_with_arm(arm, "arm"), *problems_with_arm(than, "than")]
    if not problems and arm[0].task != than[0].task:
        problems.append(f"one arm learned '{arm[0].task}' and the other '{than[0].task}'")
    if problems:
        raise ValueError("times are compared on one task, each seed once: " + "; ".join(problems))
    by_rule = {}
    every: list[Reached] = []
    for rule in RULES:
        sides = [[reach(c, target, rule, hold=hold) for c in sorted(a, key=lambda c: c.seed)] for a in (arm, than)]
        by_rule[rule] = {axis: _speed_up(sides[0], sides[1], axis, rule, level) for axis in AXES}
        every += [*sides[0], *sides[1]]
    return Efficiency(
        task=arm[0].task,
        target=target,
        arm=arm[0].start,
        than=than[0].start,
        running_max=by_rule["running max"],
        raw=by_rule["raw"],
        reached=tuple(every),
    )


def _speed_up(arm: Sequence[Reached], than: Sequence[Reached], axis: Axis, rule: Rule, level: float) -> SpeedUp:
    horizon = _horizon([*arm, *than], axis)
    quick, slow = time_to(arm, axis, horizon, level), time_to(than, axis, horizon, level)
    # A time beyond the horizon is no better than none: some other run was not watched for so long.
    met = [t is not None and t <= horizon for t in (getattr(one, axis) for one in (*arm, *than))]
    return SpeedUp(
        axis=axis,
        rule=rule,
        ratio=_ratio(arm, than, axis, horizon, met, level),
        arm=quick,
        than=slow,
        is_censored=not all(met),
    )


def _ratio(
    arm: Sequence[Reached], than: Sequence[Reached], axis: Axis, horizon: float, met: Sequence[bool], level: float
) -> Interval:
    paired = [one.seed for one in arm] == [one.seed for one in than]
    runs = len(arm) if paired else len(arm) + len(than)
    if not any(met):
        return unknown(runs, level, math.nan, f"not reached by any run within {horizon:,.0f}", runs)
    quick, slow = _restricted(arm, axis, horizon), _restricted(than, axis, horizon)
    if all(met) and min(*quick, *slow) > 0:
        return geometric_ratio(slow, quick, level, paired=paired)
    if paired:
        return ratio_of_means(slow, quick, level)
    estimate = math.fsum(slow) / len(slow) / (math.fsum(quick) / len(quick)) if any(quick) else math.nan
    return unknown(runs, level, estimate, "not reached by every run: an interval needs the same seeds in both", runs)
