"""How many items are needed to see a difference, and how small a difference a number of items can show.

Differences are in the unit of the score (0.05 is 5 points). *Paired* means that both systems answer the same items,
*unpaired* that each has its own; a *gap* is one split's score minus another's, and its change is a difference of two
paired differences. All are for two-sided tests, 80 % power at 95 % unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from twoclock.measure.intervals import check_level, z_of
from twoclock.measure.pairs import differences_of

__all__ = [
    "ItemsNeeded",
    "detectable_difference",
    "discordance_of",
    "items_needed",
    "items_needed_for_gap",
    "items_needed_unpaired",
    "items_table",
]

Array = npt.NDArray[np.float64]

DELTAS = (0.02, 0.05, 0.1)


def _z_power(power: float) -> float:
    if not 0 < power < 1:
        raise ValueError(f"power lies between 0 and 1, such as 0.8; got {power}")
    return NormalDist().inv_cdf(power)


def items_needed(delta: float, discordance: float, power: float = 0.8, level: float = 0.95) -> int:
    """Items for a two-sided McNemar test to see a true difference ``delta`` in accuracy (Connor 1987).

    ``discordance`` is the share of items on which the two systems differ: n = (z_a √d + z_b √(d - δ²))² / δ².
    """
    check_level(level)
    if not 0 < abs(delta) <= discordance <= 1:
        raise ValueError(f"0 < |delta| <= discordance <= 1 is needed; got delta={delta}, discordance={discordance}")
    root = z_of(level) * math.sqrt(discordance) + _z_power(power) * math.sqrt(discordance - delta * delta)
    return math.ceil(root * root / (delta * delta))


def items_needed_unpaired(delta: float, rate: float = 0.5, power: float = 0.8, level: float = 0.95) -> int:
    """Items *for each* of two systems that answer items of their own, at rates ``rate`` and ``rate + delta``.

    The usual test of two proportions: n = (z_a √(2 p̄ q̄) + z_b √(p₁q₁ + p₂q₂))² / δ² (Fleiss, Levin and Paik 2003).
    """
    check_level(level)
    other = rate + delta
    if delta == 0 or not (0 <= rate <= 1 and 0 <= other <= 1):
        raise ValueError(
            f"two different rates in [0, 1] are needed; got rate={rate} and rate + delta={other:g}. "
            "A difference that would leave [0, 1] is given from the other side: a negative delta"
        )
    middle = (rate + other) / 2
    root = z_of(level) * math.sqrt(2 * middle * (1 - middle))
    root += _z_power(power) * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return math.ceil(root * root / (delta * delta))


def items_needed_for_gap(delta: float, discordance: float, power: float = 0.8, level: float = 0.95) -> int:
    """Items *for each split* to see a change ``delta`` of the gap between two splits, both measured before and after.

    The change is a difference of two paired differences, so its variance is that of both: n = (z_a + z_b)² 2d / δ².
    """
    check_level(level)
    if not (delta != 0 and 0 < discordance <= 1):
        raise ValueError(
            f"delta other than 0 and 0 < discordance <= 1 are needed; got delta={delta}, discordance={discordance}"
        )
    return math.ceil((z_of(level) + _z_power(power)) ** 2 * 2 * discordance / (delta * delta))


def discordance_of(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """The share of items on which two systems differ, from their scores in [0, 1] on the same items: mean((a - b)²),
    which for rewards between right and wrong counts a half difference as a quarter, as its variance does. NaN without
    items."""
    differences, _ = differences_of(a, b)
    return float(np.mean(differences**2)) if len(differences) else math.nan


def detectable_difference(
    n: int,
    *,
    discordance: float | None = None,
    rate: float | None = None,
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """The smallest true difference that ``n`` items show, the inverse of :func:`items_needed` (with ``discordance``) or
    of :func:`items_needed_unpaired` (with ``rate``, towards 0.5, n for each system). NaN when none that is possible
    is large enough."""
    if n < 1:
        raise ValueError(f"at least 1 item is needed; got {n}")
    if (discordance is None) == (rate is None):
        raise ValueError("give either discordance (paired: the same items) or rate (unpaired: items of their own)")
    if discordance is not None:
        share = discordance
        return _smallest(lambda delta: items_needed(delta, share, power, level), n, share)
    level_of = rate if rate is not None else 0.5
    sign = 1.0 if level_of <= 0.5 else -1.0
    most = 1 - level_of if sign > 0 else level_of
    return _smallest(lambda delta: items_needed_unpaired(sign * delta, level_of, power, level), n, most)


def _smallest(needed: Callable[[float], int], n: int, most: float) -> float:
    """Bisection: the items needed fall as the difference grows."""
    if needed(most) > n:
        return math.nan
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        if middle <= 0 or needed(middle) > n:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, kw_only=True)
class ItemsNeeded:
    """One line of the table: what it takes to see a difference of ``delta``."""

    delta: float
    paired: int | None
    """Items that both systems answer; None where the two differ on fewer items than ``delta``."""
    unpaired: int | None
    """Items for each of the two; None where no rate in [0, 1] is that far from ``rate``."""
    gap: int
    """Items for each split, for a change of a gap between splits."""


def items_table(
    deltas: Sequence[float] = DELTAS,
    discordance: float = 0.2,
    rate: float = 0.5,
    power: float = 0.8,
    level: float = 0.95,
) -> list[ItemsNeeded]:
    """How many items are needed for each difference. ``discordance`` and ``rate`` are best measured
    (:func:`discordance_of`, the base's score); the default discordance is the usual one between versions of a model."""
    sign = 1.0 if rate <= 0.5 else -1.0
    return [
        ItemsNeeded(
            delta=delta,
            paired=items_needed(delta, discordance, power, level) if abs(delta) <= discordance else None,
            unpaired=items_needed_unpaired(sign * abs(delta), rate, power, level)
            if 0 <= rate + sign * abs(delta) <= 1
            else None,
            gap=items_needed_for_gap(delta, discordance, power, level),
        )
        for delta in deltas
    ]
