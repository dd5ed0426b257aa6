"""What a consolidation is held to, on items that were never trained on. Each check is a record with its numbers.

Scores are compared item by item, both sides with the same random numbers. That nothing is lost cannot be shown by a
test that finds no difference: so *non-inferiority* is tested. With d the mean of new minus old over n items, and L the
lower bound of its interval at level 1 − 2α, the check passes where L > −margin; the chance that a loss of ``margin`` or
more passes is then α (Schuirmann 1987, one side). ``power`` is the chance that it passes where nothing is lost,
Φ(margin / se − z₁₋α): where it is low, a failure says that there are too few items, not that something was lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from twoclock.measure.intervals import Interval
from twoclock.measure.pairs import paired_difference

__all__ = ["Check", "drift_check", "kept_check", "worth_check"]

NORMAL = NormalDist()
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: whether it passed, why, and its numbers."""

    name: str
    """``worth``, ``drift``, ``score`` or ``retention``."""
    about: str
    """The lesson, the prompt set or the task."""
    passed: bool
    reason: str
    interval: Interval | None = None
    """Of a difference of scores."""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "passed": self.passed,
            "reason": self.reason,
            "interval": self.interval.as_dict() if self.interval else None,
            "numbers": {key: value if math.isfinite(value) else None for key, value in self.numbers.items()},
        }


def worth_check(
    lesson: str, shown: Sequence[float], without: Sequence[float], *, alpha: float, seed: int, looks: int = 1
) -> Check:
    """Whether the lesson is better than none: rewards an item with it and without it, under the weights as they are.
    ``looks`` is how many lessons are asked about at once; together they pass by chance at ``alpha`` (Bonferroni)."""
    if not shown:
        return Check(name="worth", about=lesson, passed=False, reason="it is shown on none of the trial items")
    interval = paired_difference(shown, without, 1 - 2 * alpha / looks, seed)
    passed = interval.low > 0
    return Check(
        name="worth",
        about=lesson,
        passed=passed,
        reason="the lesson raises the score" if passed else "it is not shown that the lesson raises the score",
        interval=interval,
        numbers={"with": _mean(shown), "without": _mean(without), "items": float(len(shown))},
    )


def kept_check(
    name: str,
    about: str,
    old: Sequence[float],
    new: Sequence[float],
    *,
    margin: float,
    alpha: float,
    seed: int,
) -> Check:
    """Whether a loss of ``margin`` or more is excluded: rewards an item before and after."""
    if not old:
        return Check(name=name, about=about, passed=False, reason="there is no trial item to measure it on")
    interval = paired_difference(new, old, 1 - 2 * alpha, seed)
    passed = interval.low > -margin
    numbers = {"old": _mean(old), "new": _mean(new), "items": float(len(old)), "margin": margin}
    error = _error([b - a for a, b in zip(old, new, strict=True)])
    numbers |= {"power": _power(margin, error, alpha), "items_needed": _needed(margin, error, alpha, len(old))}
    reason = f"a loss of {margin:g} or more is excluded" if passed else f"a loss of {margin:g} is not excluded"
    if not passed and interval.estimate > -margin and numbers["power"] < POWER:
        reason += f": {len(old)} items are too few, {numbers['items_needed']:.0f} would do where nothing is lost"
    return Check(name=name, about=about, passed=passed, reason=reason, interval=interval, numbers=numbers)


def drift_check(live_base: float, base_live: float, before: tuple[float, float], budget: float | None) -> Check:
    """Both directions of the KL between the new weights and the base, in nats a token."""
    worst = max(live_base, base_live)
    finite = math.isfinite(worst)
    passed = finite and (budget is None or worst <= budget)
    if not finite:
        reason = "it is not finite"
    elif budget is None:
        reason = "no budget is set"
    else:
        reason = f"{worst:.4g} {'≤' if passed else '>'} {budget:g} nats a token"
    numbers = {
        "live_base": live_base,
        "base_live": base_live,
        "live_base_before": before[0],
        "base_live_before": before[1],
    }
    return Check(name="drift", about="general", passed=passed, reason=reason, numbers=numbers)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(differences: Sequence[float]) -> float:
    """The standard error of their mean. That of differences which are all alike is unknown, not 0: it is taken as if
    one more item had differed by 1."""
    n, mean = len(differences), _mean(differences)
    scatter = math.fsum((d - mean) ** 2 for d in differences)
    return math.sqrt((scatter if scatter > 0 else 1.0) / max(1, n - 1) / n)


def _power(margin: float, error: float, alpha: float) -> float:
    return NORMAL.cdf(margin / error - NORMAL.inv_cdf(1 - alpha))


def _needed(margin: float, error: float, alpha: float, n: int) -> float:
    """Items for a power of 0.8."""
    return float(math.ceil(n * ((NORMAL.inv_cdf(1 - alpha) + NORMAL.inv_cdf(POWER)) * error / margin) ** 2))
