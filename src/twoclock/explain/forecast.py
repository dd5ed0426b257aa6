"""How far a decision is from turning: groups, rounds and comparisons until a bound is passed, if what comes is like
what was measured. Numbers for people: nothing is decided by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

from twoclock.consolidation import ConsolidationSettings, LessonEvidence, lasting_rule
from twoclock.measure.generality import SIZE
from twoclock.measure.lessons import LessonRecord, Outcomes
from twoclock.types import Lesson
from twoclock.watching import Watch, bounds

__all__ = ["MOST_GROUPS", "MOST_ROUNDS", "comparisons_needed", "groups_needed", "items_needed", "rounds_until"]

MOST_GROUPS = 9_999
MOST_ROUNDS = 64


def groups_needed(record: LessonRecord, level: float) -> int | None:
    """How many more groups like those measured until the interval of the effect at ``level`` has 0 outside: 0 where it
    has already, None where there are none to go by or it takes more than ``MOST_GROUPS``.

    With the prior N(0, τ²), a difference d of weight W at noise σ² has its bound at 0 where ``u d = z √(1/τ² + u)``,
    u = W/σ²; so ``u = (z² + √(z⁴ + 4 d² z²/τ²)) / (2 d²)``.
    """
    total = record.outcomes
    difference, error = total.difference, total.error()
    if difference is None or error is None or not total.groups:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    if difference == 0:
        return None
    u = (z * z + math.sqrt(z**4 + 4 * difference**2 * z * z / SIZE**2)) / (2 * difference**2)
    each = 1 / (error * error) / total.groups  # the information of one group
    needed = max(0, math.ceil(u / each - 1e-9) - total.groups)
    return needed if needed <= MOST_GROUPS else None


def rounds_until(
    lesson: Lesson, found: LessonEvidence, settings: ConsolidationSettings, *, effect: float
) -> int | None:
    """How many more rounds, each with the mean round's comparisons at this effect, until the rule of consolidation
    answers otherwise than it does now; None where it is more than ``MOST_ROUNDS`` or nothing was compared."""
    if not found.rounds:
        return None
    now = lasting_rule(lesson, found, settings) is None

    def turned(count: int) -> bool:
        return (lasting_rule(lesson, _later(found, count, effect), settings) is None) != now

    return _first(turned, MOST_ROUNDS)


def _later(found: LessonEvidence, count: int, effect: float) -> LessonEvidence:
    """The evidence after ``count`` more rounds."""
    record, total = found.record, found.record.outcomes
    weight = total.weight / found.rounds if total.groups else 1.0
    groups = max(1, round(total.groups / found.rounds))
    scatter, freedom = total.scatter
    noise = scatter / freedom if freedom else 0.0
    own = Outcomes(
        groups=groups,
        weight=weight,
        weighted=weight * effect,
        # So that the rounds to come scatter as those measured did.
        squares=weight * effect * effect + noise * (groups - 1),
    )
    last = max(record.steps)
    steps = {**record.steps, **{last + n: own for n in range(1, count + 1)}}
    return replace(found, record=replace(record, steps=steps), age=found.age + count)


def comparisons_needed(watch: Watch, alpha: float) -> int | None:
    """How many comparisons a watch needs in all until its bounds leave 0 to one side, if the mean and the scatter stay;
    None where it is more than ``MOST_GROUPS``."""
    if not watch.count or not watch.total:
        return None

    def decided(more: int) -> bool:
        grown = 1 + more / watch.count
        later = replace(watch, count=watch.count + more, total=watch.total * grown, squares=watch.squares * grown)
        low, high = bounds(later, alpha)
        return low > 0 or high < 0

    found = 0 if decided(0) else _first(decided, MOST_GROUPS)
    return None if found is None else watch.count + found


def items_needed(gain: float, p: float, items: float, alpha: float) -> int | None:
    """How many items a paired trial of this gain needs for p ≤ ``alpha``: n (z_α / z_p)², as p shrinks with √n. None
    for a gain that is none."""
    if not (gain > 0 and 0 < p < 0.5 and 0 < alpha < 0.5):
        return None
    z = NormalDist().inv_cdf
    needed = math.ceil(items * (z(1 - alpha) / z(1 - p)) ** 2)
    return needed if needed <= MOST_GROUPS else None


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The first count from 1 to ``most`` at which it holds, if it goes on holding: doubling, then halving."""
    high = 1
    while not holds(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2 if high > 1 else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
