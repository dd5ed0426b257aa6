"""Drift at matched reward: how far two arms are from the base where they score the same.

Two curves of (score, drift) a seed are read at one stated score, each at its first crossing, on the straight line
between evaluations (as published curves are read). An arm that never reaches the score has no drift there: the
comparison is refused rather than taken elsewhere. A reduction of 0.7 is 70 % less drift than the other arm's; a
negative one is more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twoclock.measure.across_seeds import ratio_of_means
from twoclock.measure.intervals import Interval, unknown

__all__ = ["MatchedDrift", "drift_at", "matched_drift"]

Curve = Sequence[tuple[float, float]]
"""(score, drift in nats a token) in the order of training."""


@dataclass(frozen=True, kw_only=True)
class MatchedDrift:
    """The drift of two arms at one score; ``reduction`` is 1 − arm / than over paired seeds."""

    score: float
    arm: Mapping[int, float | None]
    """By seed; None where the arm did not reach the score."""
    than: Mapping[int, float | None]
    reduction: Interval


def drift_at(curve: Curve, score: float) -> float | None:
    """The drift where the curve first meets ``score``; None where it never does."""
    before: tuple[float, float] | None = None
    for now in curve:
        if not (math.isfinite(now[0]) and math.isfinite(now[1])):
            raise ValueError(f"scores and drifts are numbers; got {now}")
        if now[0] >= score:
            if before is None or now[0] == before[0]:
                return now[1]
            part = (score - before[0]) / (now[0] - before[0])
            return before[1] + part * (now[1] - before[1])
        before = now
    return None


def matched_drift(
    arm: Mapping[int, Curve], than: Mapping[int, Curve], score: float, *, level: float = 0.95
) -> MatchedDrift:
    """``arm`` and ``than`` by seed. The interval is Fieller's over the seeds in which both reach the score; unknown
    where those are none, or where the other arm has not moved."""
    mine = {seed: drift_at(curve, score) for seed, curve in arm.items()}
    theirs = {seed: drift_at(curve, score) for seed, curve in than.items()}
    pairs = [
        (one, other)
        for seed in sorted(set(mine) & set(theirs))
        if (one := mine[seed]) is not None and (other := theirs[seed]) is not None
    ]
    if not pairs:
        why = f"no seed in which both arms reach {score:g}"
        return MatchedDrift(score=score, arm=mine, than=theirs, reduction=unknown(0, level, math.nan, why, 0))
    if not any(other for _, other in pairs):
        why = "the other arm has not moved from the base"
        return MatchedDrift(
            score=score, arm=mine, than=theirs, reduction=unknown(len(pairs), level, math.nan, why, len(pairs))
        )
    ratio = ratio_of_means([one for one, _ in pairs], [other for _, other in pairs], level)
    # 1 − x turns the ends around; no drift is below 0, so no reduction is above 1, whatever a t interval says.
    high = ratio.low if math.isnan(ratio.low) else 1 - max(0.0, ratio.low)
    turned = Interval(
        1 - ratio.estimate, 1 - ratio.high, high, ratio.n, ratio.level, f"1 − {ratio.method}", ratio.seeds
    )
    return MatchedDrift(score=score, arm=mine, than=theirs, reduction=turned)
