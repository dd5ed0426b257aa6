"""How much of a gain lives in the weights and how much in the prompt: the 2×2 of {base, live} × {none, learned}.

With A(θ, M) the score under weights θ and fast state M, 0 the base and ∅ no fast state::

    slow        = A(live, ∅) - A(base, ∅)      what the weights do alone
    fast        = A(base, M) - A(base, ∅)      what the fast state does alone
    total       = A(live, M) - A(base, ∅)      what the deployed system gains
    interaction = total - slow - fast          what only the two together do (negative: they overlap)

All in units of the score, higher is better. The three parts sum to the total exactly, not up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import Interval, constant_interval, expanded_tails, mean_interval, unknown
from twoclock.seeding import child_seed

__all__ = ["CELLS", "Cell", "Effects", "TwoByTwo", "effects", "two_by_two"]

Array = npt.NDArray[np.float64]
Cell = tuple[Literal["base", "live"], Literal["none", "learned"]]

CELLS: tuple[Cell, ...] = (("base", "none"), ("base", "learned"), ("live", "none"), ("live", "learned"))

GRID = 2.0**50
"""Scores are rounded to this grid, by less than 1e-15: differences and sums of such numbers are exact in floats."""
RESAMPLES = 4_000


@dataclass(frozen=True)
class Effects:
    """Of four scores; ``slow + fast + interaction == total`` exactly."""

    slow: float
    fast: float
    interaction: float
    total: float


@dataclass(frozen=True, kw_only=True)
class TwoByTwo:
    """The same with intervals over items; all from the items that the four cells share."""

    cells: Mapping[Cell, Interval]
    slow: Interval
    fast: Interval
    interaction: Interval
    total: Interval
    residual_use: Interval
    """A(live, M) - A(live, ∅): what is lost if the fast state is dropped now."""
    shares: Mapping[str, Interval] | None
    """slow, fast and interaction as shares of the total, summing to 1; None unless the total's interval excludes 0,
    because a share of nothing means nothing."""
    internalisation: Interval | None
    """slow / fast; after a consolidation of M, 1 says that the lesson lives in the weights. None unless the fast
    effect's interval excludes 0."""


def effects(base_none: float, base_learned: float, live_none: float, live_learned: float) -> Effects:
    """The decomposition of four scores, each in [-1, 1] (rewards are in [0, 1])."""
    scores = (base_none, base_learned, live_none, live_learned)
    if not all(abs(score) <= 1 for score in scores):
        raise ValueError(f"scores must lie in [-1, 1]; got {scores}")
    base, fast_only, slow_only, both = (round(score * GRID) / GRID for score in scores)
    slow, fast, total = slow_only - base, fast_only - base, both - base
    return Effects(slow=slow, fast=fast, interaction=total - slow - fast, total=total)


def two_by_two(cells: Mapping[Cell, Sequence[float]], level: float = 0.95, seed: int = 0) -> TwoByTwo:
    """``cells`` holds for each of the four cells the scores in [0, 1] of the same items in the same order."""
    missing = [cell for cell in CELLS if cell not in cells]
    if missing:
        raise ValueError(f"the 2×2 needs all four cells; {' and '.join(map(str, missing))} missing")
    arrays = {cell: np.asarray(cells[cell], dtype=np.float64) for cell in CELLS}
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise ValueError(f"the four cells are scores of the same items; got {sorted(counts)} of them")
    base, fast_only, slow_only, both = (arrays[cell] for cell in CELLS)
    n = len(base)
    exact = effects(*(math.fsum(array) / n for array in arrays.values())) if n else None

    def contrast(values: Array, bound: float, estimate: float | None) -> Interval:
        # Bounded differences are no successes and failures: without the bounds a run of 0 and 1 would look like some.
        interval = mean_interval(values, level, seed, bounds=(-bound, bound))
        return interval if estimate is None else replace(interval, estimate=estimate)

    total = contrast(both - base, 1.0, exact.total if exact else None)
    fast = contrast(fast_only - base, 1.0, exact.fast if exact else None)
    return TwoByTwo(
        cells={cell: mean_interval(array, level, seed, bounds=(0, 1)) for cell, array in arrays.items()},
        slow=contrast(slow_only - base, 1.0, exact.slow if exact else None),
        fast=fast,
        interaction=contrast(both - slow_only - fast_only + base, 2.0, exact.interaction if exact else None),
        total=total,
        residual_use=contrast(both - slow_only, 1.0, None),
        shares=_shares(arrays, exact, level, seed) if exact and total.excludes_zero else None,
        internalisation=_ratio(slow_only - base, fast_only - base, 1.0, level, seed) if fast.excludes_zero else None,
    )


def _shares(arrays: Mapping[Cell, Array], exact: Effects, level: float, seed: int) -> dict[str, Interval]:
    base, fast_only, slow_only, both = (arrays[cell] for cell in CELLS)
    parts = {
        "slow": (slow_only - base, 1.0, exact.slow),
        "fast": (fast_only - base, 1.0, exact.fast),
        "interaction": (both - slow_only - fast_only + base, 2.0, exact.interaction),
    }
    return {
        name: replace(_ratio(part, both - base, bound, level, seed), estimate=value / exact.total)
        for name, (part, bound, value) in parts.items()
    }


def _ratio(above: Array, below: Array, bound: float, level: float, seed: int) -> Interval:
    """mean(above) / mean(below) by expanded percentiles over items; unbounded where the divisor meets 0. ``bound`` is
    the most that one of ``above`` can be, either way: where all are alike it says how far their mean may lie."""
    n = len(above)
    generator = np.random.default_rng(child_seed("measure.ratio", seed))
    estimate = float(above.mean() / below.mean())
    tops, bottoms = [], []
    chunk = max(1, 1_000_000 // n)
    for start in range(0, RESAMPLES, chunk):
        drawn = generator.integers(0, n, size=(min(chunk, RESAMPLES - start), n))
        tops.append(above[drawn].mean(axis=1))
        bottoms.append(below[drawn].mean(axis=1))
    top, bottom = np.concatenate(tops), np.concatenate(bottoms)
    if n < 2 or bool((bottom == 0).any()) or (bottom > 0).any() != (bottom > 0).all():
        return unknown(n, level, estimate, "the divisor's resamples reach 0")
    low, high = (float(end) for end in np.quantile(top / bottom, expanded_tails(level, n)))
    if np.ptp(above) == 0:  # no resample differs, and n items alike are no proof of all
        part, divisor = constant_interval(float(above[0]), n, level, (-bound, bound)), abs(float(below.mean()))
        low = estimate - math.hypot(estimate - low, (part.estimate - part.low) / divisor)
        high = estimate + math.hypot(high - estimate, (part.high - part.estimate) / divisor)
    return Interval(estimate, low, high, n, level, "bootstrap of the ratio")
